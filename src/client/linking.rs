//! Becoming a device of a person by a code, and making another device one. A device that shows a code logs in as somebody who is nobody
//! yet: the keys of its device stay, and the person comes with the answer.

use super::{
    Client, Me, Output, people,
    records::{IdentityRecord, Letter},
    view::{Event, Level},
};
use crate::{
    core::id::UnixMillis,
    seal::{
        Random as _,
        identity::{CERTIFICATE_LIFE_MS, Identity, IdentitySecrets},
        linking::{CODE_LIFE_MS, CodeError, DeviceCode, Grant},
    },
};

/// A code that is shown.
#[derive(Clone)]
pub(super) struct Shown {
    secret: [u8; 16],
    expires_ms: UnixMillis,
}

impl core::fmt::Debug for Shown {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Shown").field("expires_ms", &self.expires_ms).finish_non_exhaustive()
    }
}

impl Shown {
    pub(super) const fn expires_ms(&self) -> UnixMillis {
        self.expires_ms
    }
}

/// The words of another device's code.
///
/// # Errors
/// [`CodeError`]: it is none.
pub fn device_words(code: &str) -> Result<Vec<String>, CodeError> {
    Ok(code.parse::<DeviceCode>()?.words())
}

impl Client {
    /// Whether this device is no person's yet.
    pub(super) fn is_nobody(&self) -> bool {
        self.me.as_ref().is_none_or(|me| me.shown.is_some())
    }

    /// The keys of this device, if it is nobody's and has some already.
    pub(super) fn fresh_keys(&self) -> Option<IdentitySecrets> {
        self.me.as_ref().filter(|me| me.shown.is_some()).map(|me| me.record.secrets.clone())
    }

    /// Shows a code by which this device can become one of a person's.
    pub(super) fn show_code(&mut self, now_ms: u64) {
        if !self.is_nobody() {
            return self.notice(Level::Warn, "this device has an identity already: a code makes a fresh one yours", None);
        }
        if self.me.is_none() {
            let identity = Identity::generate(&mut self.rng, now_ms);
            self.me = Some(Me::new(IdentityRecord {
                format: 2,
                secrets: identity.secrets().clone(),
                not_after_ms: now_ms.saturating_add(CERTIFICATE_LIFE_MS),
                counter: 1,
                name: String::new(),
                own_devices: Vec::new(),
                devices: None,
                inbox: None,
            }));
        }
        self.renew_code(now_ms);
        self.connect(now_ms);
    }

    /// Another code in the place of the one that is shown, if that is not good any more.
    pub(super) fn renew_code_when_due(&mut self, now_ms: u64) {
        if self.code_expires_ms().is_some_and(|at_ms| at_ms <= now_ms) {
            self.renew_code(now_ms);
        }
    }

    /// When the code that is shown is not good any more.
    pub(super) fn code_expires_ms(&self) -> Option<u64> {
        self.me.as_ref()?.shown.as_ref().map(Shown::expires_ms)
    }

    fn renew_code(&mut self, now_ms: u64) {
        let shown = Shown { secret: self.rng.bytes(), expires_ms: now_ms.saturating_add(CODE_LIFE_MS) };
        self.me.iter_mut().for_each(|me| me.shown = Some(shown.clone()));
        self.tell_code();
    }

    /// Shows the code, once it can be answered.
    pub(super) fn tell_code(&mut self) {
        let Some(me) = self.me.as_ref().filter(|me| me.inbox.subscribed()) else { return };
        let Some(Shown { secret, expires_ms }) = me.shown.clone() else { return };
        let code = DeviceCode { device: me.identity.device(), inbox: me.identity.inbox_public().clone(), secret, expires_ms };
        let (device, words) = (code.device.to_string(), code.words());
        self.outputs.push_back(Output::Event(Event::DeviceCode { code: code.to_string(), device, words, expires_ms }));
    }

    /// What answers the code that is shown makes this device one of a person's. Anything else is skipped; anybody may post.
    pub(super) fn take_grant(&mut self, envelope: &[u8], now_ms: u64) {
        let Some(me) = &mut self.me else { return };
        let Some(shown) = me.shown.as_ref().filter(|shown| now_ms <= shown.expires_ms) else { return };
        let keys = (me.identity.inbox(), me.identity.inbox_public());
        let Ok(grant) = Grant::open(me.identity.device(), keys, &shown.secret, envelope) else { return };
        let IdentitySecrets { device, inbox, .. } = &me.record.secrets;
        let secrets = IdentitySecrets { user: grant.user, device: *device, inbox: *inbox };
        let read = core::mem::take(&mut me.inbox);
        let Grant { issuer, certificate, name, devices, .. } = grant;
        let identity = Identity::certify(secrets, certificate.not_after_ms, certificate.counter);
        let others = devices.into_iter().chain([issuer]);
        let own =
            others.filter(|other| other.user == identity.user() && other.device != identity.device() && other.verify().is_ok());
        self.adopt(&identity, name, own.collect(), now_ms);
        if let Some(me) = &mut self.me {
            me.inbox = read;
        }
        self.notice(Level::Info, "this device is now one of yours; your rooms come by themselves", None);
    }

    /// Makes the device that shows this code one of this person's: it gets the person's key and name, and the rooms one after the other.
    /// The person has compared its words.
    pub(super) fn link_device(&mut self, code: &str, now_ms: u64) {
        let code: DeviceCode = match code.parse() {
            Ok(code) => code,
            Err(error) => return self.notice(Level::Warn, &format!("{error}"), None),
        };
        let Some(me) = &self.me else { return };
        if code.device == me.identity.device() {
            return self.notice(Level::Warn, "that is this device's own code", None);
        }
        if now_ms > code.expires_ms || code.expires_ms > now_ms.saturating_add(2 * CODE_LIFE_MS) {
            return self.notice(
                Level::Warn,
                "the code is not good any more (or the clocks differ): take the one that is shown now",
                None,
            );
        }
        let grant = Grant::new(&code, &me.identity, &me.record.own_devices, now_ms);
        let Ok((inbox, envelope)) = grant.seal(&code, &me.identity, &mut self.rng) else {
            return self.notice(Level::Warn, "what makes it yours could not be sealed to that device", None);
        };
        let letter = self.letter(Letter::Envelope(envelope), now_ms);
        people::post(self, inbox, letter);
        self.learn_device(&grant.certificate, now_ms);
        self.tell_devices_everywhere(now_ms);
        self.notice(
            Level::Info,
            "that device is being made yours: it comes into your rooms by itself, and everybody there sees it",
            None,
        );
    }
}
