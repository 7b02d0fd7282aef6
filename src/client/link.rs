//! One link: a connection that the client asked for, from opening through its login to its end; and whether it lives.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ClientRandom, session::Turn};
use crate::{
    core::{
        frame::{ClientFrame, Hello, PROTOCOL_VERSION, Resume},
        id::{Digest, Nonce, UnixMillis},
        login::{self, Transcript},
    },
    seal::{Random as _, identity::Identity},
};

/// Names a link. A client uses each number once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u32);

/// Which transports a client uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// WebSocket, and WebTransport where it gets through.
    #[default]
    Auto,
    /// This one.
    Only(Transport),
}

/// What carries a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// WebSocket: gets through nearly everywhere.
    WebSocket,
    /// WebTransport: better where it gets through.
    WebTransport,
    /// Raw QUIC: only where it is asked for.
    Quic,
}

impl Transport {
    /// A short name, as on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "ws",
            Self::WebTransport => "wt",
            Self::Quic => "quic",
        }
    }
}

/// Opening takes no longer than this.
const OPEN_MAX_MS: u64 = 8_000;
/// Nor does a login.
const LOGIN_MAX_MS: u64 = 10_000;
/// Nor the echo by which a link beside another one proves itself.
const ECHO_MAX_MS: u64 = 4_000;
/// After this long without a byte from the server, ask for one.
const PING_AFTER_MS: u64 = 10_000;
/// Ask at least this often, so that the server does not take a client that only reads for a dead one.
const KEEP_ALIVE_MS: u64 = 20_000;
/// A ping without an answer for this long: another link is opened beside this one.
const SUSPECT_AFTER_MS: u64 = 1_000;
/// A ping without an answer for this long: the link is dead. A server that is only slow answers a ping.
const DEAD_AFTER_MS: u64 = 3_000;

/// How long an answer may take before the link itself is asked. UDP can stop passing from one moment to the next, with TCP
/// beside it in good health: there it is asked soon.
const fn ping_after_asking_ms(transport: Transport) -> u64 {
    match transport {
        Transport::WebSocket => 2_000,
        Transport::WebTransport | Transport::Quic => 500,
    }
}

/// Who logs in, at which server.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) authority: &'a str,
    pub(super) token: &'a Bytes,
    pub(super) identity: &'a Identity,
}

impl Caller<'_> {
    /// A hello with a fresh nonce.
    fn hello(&self, exporter: bool, rng: &mut ClientRandom) -> Hello {
        Hello {
            version: PROTOCOL_VERSION,
            nonce: Nonce(rng.bytes()),
            device: self.identity.device(),
            authority: self.authority.to_owned(),
            exporter,
            token: self.token.clone(),
            agent: concat!("waxwing/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    /// A resume with a fresh nonce, and the binding that it makes.
    fn resume(
        &self,
        record: &TicketRecord,
        exporter: Option<&[u8; 32]>,
        now_ms: u64,
        rng: &mut ClientRandom,
    ) -> (Resume, Digest) {
        let hello = self.hello(exporter.is_some(), rng);
        let time_ms = now_ms.saturating_add_signed(record.ahead_ms);
        let message = login::resume_message(&hello, time_ms, &record.ticket, exporter);
        let signature = self.identity.sign(&message);
        (Resume { hello, time_ms, ticket: record.ticket.clone(), signature }, login::binding(&message))
    }
}

/// What an earlier login left for the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketRecord {
    /// Format of this record: 1.
    pub format: u8,
    /// The server's ticket.
    pub ticket: Bytes,
    /// The server's clock minus this device's, in milliseconds.
    pub ahead_ms: i64,
    /// What the server takes before it has accepted a login, in bytes.
    pub first_flight_max: u32,
}

impl TicketRecord {
    pub(super) fn new(ticket: Bytes, server_ms: UnixMillis, now_ms: u64, first_flight_max: u32) -> Self {
        let ahead_ms = i64::try_from(i128::from(server_ms) - i128::from(now_ms)).unwrap_or(0);
        Self { format: 1, ticket, ahead_ms, first_flight_max }
    }
}

/// One link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) transport: Transport,
    stage: Stage,
    /// When it must be a stage further; of no meaning once it carries the session.
    until_ms: u64,
    heard_ms: u64,
    pinged_ms: u64,
    /// Since when an answer is due.
    asked_ms: Option<u64>,
    /// Since when the answer to a ping is due.
    unanswered_ms: Option<u64>,
    /// Pings sent: the token of the newest.
    pings: u64,
}

#[derive(Debug)]
enum Stage {
    Opening {
        early: Option<Early>,
    },
    /// A hello was sent.
    Greeted {
        hello: Box<Hello>,
        exporter: Option<[u8; 32]>,
    },
    /// A resume was sent.
    Resuming {
        hello: Box<Hello>,
        exporter: Option<[u8; 32]>,
        binding: Digest,
    },
    /// The challenge was signed.
    Signed {
        binding: Digest,
    },
    /// The welcome came.
    Open {
        binding: Digest,
        since_ms: u64,
        echoed: bool,
    },
}

/// A resume that the shell may say while it opens the link.
#[derive(Debug)]
struct Early {
    hello: Box<Hello>,
    binding: Digest,
    /// Bytes of its frame.
    len: usize,
}

/// How a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    Fine,
    /// It is to be asked now.
    Quiet,
    /// It did not answer for a while.
    Suspect,
    /// It did not answer for too long.
    Dead,
}

impl Link {
    pub(super) const fn new(id: LinkId, transport: Transport, now_ms: u64) -> Self {
        Self {
            id,
            transport,
            stage: Stage::Opening { early: None },
            until_ms: now_ms + OPEN_MAX_MS,
            heard_ms: now_ms,
            pinged_ms: now_ms,
            asked_ms: None,
            unanswered_ms: None,
            pings: 0,
        }
    }

    pub(super) const fn is_opening(&self) -> bool {
        matches!(self.stage, Stage::Opening { .. })
    }

    pub(super) const fn is_resuming(&self) -> bool {
        matches!(self.stage, Stage::Resuming { .. })
    }

    pub(super) const fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open { .. })
    }

    /// Since when it is open.
    pub(super) const fn open_since_ms(&self) -> Option<u64> {
        match self.stage {
            Stage::Open { since_ms, .. } => Some(since_ms),
            _ => None,
        }
    }

    /// Whether a ping came back over it.
    pub(super) const fn has_echoed(&self) -> bool {
        matches!(self.stage, Stage::Open { echoed: true, .. })
    }

    /// Names its login in access proofs; known as soon as frames may be sent over it.
    pub(super) const fn binding(&self) -> Option<Digest> {
        match self.stage {
            Stage::Resuming { binding, .. } | Stage::Open { binding, .. } => Some(binding),
            _ => None,
        }
    }

    /// What may be said while it is being opened, where the transport has early data: a resume, because it is accepted once and a
    /// replay of it is worth nothing. There is no exporter yet that it could sign.
    pub(super) fn early(&mut self, ticket: Option<&TicketRecord>, turn: &mut Turn<'_>) -> Option<Box<Resume>> {
        if self.transport != Transport::Quic {
            return None;
        }
        let (resume, binding) = turn.caller?.resume(ticket?, None, turn.now_ms, turn.rng);
        let len = ClientFrame::Resume(resume.clone()).encode().len();
        self.stage = Stage::Opening { early: Some(Early { hello: Box::new(resume.hello.clone()), binding, len }) };
        Some(Box::new(resume))
    }

    /// It is connected. Returns the first frame: a resume if there is a ticket, else a hello. `None` without anybody to log in.
    pub(super) fn opened(
        &mut self,
        exporter: Option<[u8; 32]>,
        ticket: Option<&TicketRecord>,
        turn: &mut Turn<'_>,
    ) -> Option<Bytes> {
        let caller = turn.caller?;
        self.connected(turn.now_ms);
        let Some(ticket) = ticket else {
            let hello = caller.hello(exporter.is_some(), turn.rng);
            let frame = ClientFrame::Hello(hello.clone()).encode();
            self.stage = Stage::Greeted { hello: Box::new(hello), exporter };
            return Some(frame);
        };
        let (resume, binding) = caller.resume(ticket, exporter.as_ref(), turn.now_ms, turn.rng);
        self.stage = Stage::Resuming { hello: Box::new(resume.hello.clone()), exporter, binding };
        Some(ClientFrame::Resume(resume).encode())
    }

    /// It is connected, and the early resume was said. Returns the bytes of that; `None` when there was none.
    pub(super) fn opened_resuming(&mut self, now_ms: u64) -> Option<usize> {
        let Stage::Opening { early } = &mut self.stage else { return None };
        let Early { hello, binding, len } = early.take()?;
        self.stage = Stage::Resuming { hello, exporter: None, binding };
        self.connected(now_ms);
        Some(len)
    }

    const fn connected(&mut self, now_ms: u64) {
        self.heard(now_ms);
        self.until_ms = now_ms + LOGIN_MAX_MS;
    }

    /// Signs a challenge. `None` when none was due.
    pub(super) fn challenged(&mut self, nonce: Nonce, identity: &Identity) -> Option<Bytes> {
        let (Stage::Greeted { hello, exporter } | Stage::Resuming { hello, exporter, .. }) = &self.stage else { return None };
        let transcript = Transcript { hello, challenge: nonce, exporter: exporter.as_ref() };
        let signature = identity.sign(&transcript.message());
        self.stage = Stage::Signed { binding: transcript.binding() };
        Some(ClientFrame::Authenticate { signature }.encode())
    }

    /// The server has accepted the login. False when none was due.
    pub(super) fn welcomed(&mut self, now_ms: u64) -> bool {
        let (Stage::Resuming { binding, .. } | Stage::Signed { binding }) = self.stage else { return false };
        self.stage = Stage::Open { binding, since_ms: now_ms, echoed: false };
        self.until_ms = now_ms + ECHO_MAX_MS;
        true
    }

    /// A ping, to be sent now.
    pub(super) fn ping(&mut self, now_ms: u64) -> Bytes {
        self.pings += 1;
        self.pinged_ms = now_ms;
        if self.is_open() {
            self.unanswered_ms.get_or_insert(now_ms);
        }
        ClientFrame::Ping { token: self.pings }.encode()
    }

    pub(super) fn echoed(&mut self, token: u64) {
        if let Stage::Open { echoed, .. } = &mut self.stage {
            *echoed |= (1..=self.pings).contains(&token);
        }
    }

    /// Bytes came, whatever they say.
    pub(super) const fn heard(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
        self.asked_ms = None;
        self.unanswered_ms = None;
    }

    /// Something was sent that calls for an answer.
    pub(super) fn asks(&mut self, now_ms: u64) {
        self.asked_ms.get_or_insert(now_ms);
    }

    /// This machine slept, or its clock was set: what was to happen by then could not.
    pub(super) fn start_over(&mut self, now_ms: u64) {
        self.heard(now_ms);
        self.pinged_ms = now_ms;
        self.until_ms = now_ms + OPEN_MAX_MS;
        if let Stage::Open { since_ms, .. } = &mut self.stage {
            *since_ms = now_ms.min(*since_ms);
        }
    }

    /// Whether it took too long to come where it must be.
    pub(super) const fn is_late(&self, now_ms: u64) -> bool {
        now_ms >= self.until_ms
    }

    pub(super) const fn until_ms(&self) -> u64 {
        self.until_ms
    }

    /// `slow`: how often patience is to be doubled.
    pub(super) fn health(&self, slow: u32, now_ms: u64) -> Health {
        match self.unanswered_ms.map(|since_ms| now_ms.saturating_sub(since_ms)) {
            Some(waited) if waited >= DEAD_AFTER_MS << slow => Health::Dead,
            Some(waited) if waited >= SUSPECT_AFTER_MS << slow => Health::Suspect,
            None if now_ms >= self.ping_at_ms() => Health::Quiet,
            _ => Health::Fine,
        }
    }

    /// When its health changes if nothing is heard.
    pub(super) fn health_changes_ms(&self, slow: u32, now_ms: u64) -> u64 {
        let Some(since_ms) = self.unanswered_ms else { return self.ping_at_ms() };
        let suspect_ms = since_ms + (SUSPECT_AFTER_MS << slow);
        if now_ms < suspect_ms { suspect_ms } else { since_ms + (DEAD_AFTER_MS << slow) }
    }

    fn ping_at_ms(&self) -> u64 {
        let asked = self.asked_ms.map_or(u64::MAX, |at_ms| at_ms + ping_after_asking_ms(self.transport));
        asked.min(self.heard_ms + PING_AFTER_MS).min(self.pinged_ms + KEEP_ALIVE_MS)
    }
}

#[cfg(test)]
impl Link {
    pub(super) fn open_for_test(&mut self, now_ms: u64) {
        self.stage = Stage::Open { binding: Digest([0; 32]), since_ms: now_ms, echoed: false };
    }
}
