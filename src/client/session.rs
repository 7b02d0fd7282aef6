//! The client's side of one session: connecting with back-off, login, keeping the connection alive.

use std::collections::VecDeque;

use bytes::Bytes;
use rand_core::Rng as _;

use super::{
    ClientRandom, Connected, Output,
    view::{ConnectionState, Event},
};
use crate::{
    core::{
        close::CloseCode,
        frame::{ClientFrame, Hello, PROTOCOL_VERSION},
        id::{DeviceKey, Digest, Nonce},
        login::Transcript,
    },
    seal::{Random as _, identity::Identity},
};

/// First and longest wait before connecting again; the wait is random between zero and the bound, which doubles.
const BACKOFF_MS: (u64, u64) = (500, 10_000);
/// After this long without a word from the server, ask for one.
const PING_AFTER_MS: u64 = 10_000;
/// After this long, when something was sent that calls for an answer.
const PING_AFTER_ASKING_MS: u64 = 2_000;
/// After this long without an answer to that, the connection is dead. A server that is only slow answers a ping.
const DEAD_AFTER_MS: u64 = 3_000;
/// Ask at least this often, so that the server does not take a client that only reads for a dead one.
const KEEP_ALIVE_MS: u64 = 20_000;
/// A login takes no longer than this.
const LOGIN_MAX_MS: u64 = 10_000;

/// The state of the connection.
#[derive(Debug, Default)]
pub(super) struct Wire {
    state: State,
    attempts: u32,
    transport: Option<String>,
    /// The server asked to wait this long.
    retry_after_ms: Option<u64>,
    /// Why the server closed, to be told once the connection is gone.
    closing: Option<CloseCode>,
}

#[derive(Debug, Default)]
enum State {
    /// Not connected, and nothing planned.
    #[default]
    Idle,
    Waiting {
        until_ms: u64,
    },
    Connecting,
    Login {
        hello: Box<Hello>,
        exporter: Option<[u8; 32]>,
        until_ms: u64,
    },
    Online {
        binding: Digest,
        heard_ms: u64,
        pinged_ms: u64,
        /// Since when an answer is due.
        asked_ms: Option<u64>,
        /// Since when the answer to a ping is due.
        unanswered_ms: Option<u64>,
    },
}

/// A hello with a fresh nonce.
pub(super) fn hello(
    authority: &str,
    token: &Bytes,
    device: DeviceKey,
    connected: Connected<'_>,
    rng: &mut ClientRandom,
) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        nonce: Nonce(rng.bytes()),
        device,
        authority: authority.to_owned(),
        exporter: connected.exporter.is_some(),
        token: token.clone(),
        agent: concat!("waxwing/", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

impl Wire {
    pub(super) const fn is_online(&self) -> bool {
        matches!(self.state, State::Online { .. })
    }

    /// Names this login in access proofs.
    pub(super) const fn binding(&self) -> Option<Digest> {
        match self.state {
            State::Online { binding, .. } => Some(binding),
            _ => None,
        }
    }

    pub(super) fn connect(&mut self, _now_ms: u64, outputs: &mut VecDeque<Output>) {
        self.state = State::Connecting;
        outputs.push_back(Output::Connect);
        outputs.push_back(self.event(None));
    }

    pub(super) fn wake(&mut self, now_ms: u64, outputs: &mut VecDeque<Output>) {
        match &mut self.state {
            State::Idle | State::Waiting { .. } => {
                self.attempts = 0;
                self.connect(now_ms, outputs);
            }
            State::Online { heard_ms, .. } => *heard_ms = heard_ms.saturating_sub(PING_AFTER_MS),
            State::Connecting | State::Login { .. } => {}
        }
        self.tick(now_ms, outputs);
    }

    pub(super) fn connected(&mut self, hello: Hello, connected: Connected<'_>, now_ms: u64, outputs: &mut VecDeque<Output>) {
        self.transport = Some(connected.transport.to_owned());
        outputs.push_back(Output::Send(ClientFrame::Hello(hello.clone()).encode()));
        let until_ms = now_ms + LOGIN_MAX_MS;
        self.state = State::Login { hello: Box::new(hello), exporter: connected.exporter, until_ms };
        outputs.push_back(Output::Timer { at_ms: until_ms });
    }

    /// Signs the challenge. Returns false when none was expected.
    pub(super) fn challenged(&mut self, nonce: Nonce, identity: &Identity, now_ms: u64, outputs: &mut VecDeque<Output>) -> bool {
        let State::Login { hello, exporter, .. } = &self.state else { return false };
        let transcript = Transcript { hello, challenge: nonce, exporter: exporter.as_ref() };
        let signature = identity.sign(&transcript.message());
        let binding = transcript.binding();
        outputs.push_back(Output::Send(ClientFrame::Authenticate { signature }.encode()));
        // Not online before the welcome: kept here so that the welcome knows the binding.
        self.state = State::Online { binding, heard_ms: now_ms, pinged_ms: now_ms, asked_ms: None, unanswered_ms: None };
        true
    }

    pub(super) fn welcomed(&mut self, now_ms: u64, outputs: &mut VecDeque<Output>) {
        self.attempts = 0;
        self.heard(now_ms);
        outputs.push_back(self.event(None));
        outputs.push_back(Output::Timer { at_ms: now_ms + PING_AFTER_MS });
    }

    pub(super) const fn heard(&mut self, now_ms: u64) {
        if let State::Online { heard_ms, asked_ms, unanswered_ms, .. } = &mut self.state {
            *heard_ms = now_ms;
            *asked_ms = None;
            *unanswered_ms = None;
        }
    }

    /// Something is sent that calls for an answer.
    pub(super) fn asks(&mut self, now_ms: u64) {
        if let State::Online { asked_ms, .. } = &mut self.state {
            asked_ms.get_or_insert(now_ms);
        }
    }

    pub(super) fn closing(&mut self, code: CloseCode, retry_after_ms: u32) {
        self.retry_after_ms = Some(retry_after_ms.into());
        self.closing = Some(code);
    }

    pub(super) fn disconnected(&mut self, reason: &str, now_ms: u64, rng: &mut ClientRandom, outputs: &mut VecDeque<Output>) {
        if matches!(self.state, State::Idle | State::Waiting { .. }) {
            return;
        }
        let bound = BACKOFF_MS.0.saturating_mul(1 << self.attempts.min(10)).min(BACKOFF_MS.1);
        let wait = self.retry_after_ms.take().unwrap_or(0) + rng.next_u64() % bound;
        self.attempts += 1;
        let until_ms = now_ms + wait;
        self.state = State::Waiting { until_ms };
        let reason = self.closing.take().map_or_else(|| reason.to_owned(), |code| code.to_string());
        self.transport = None;
        outputs.push_back(self.event(Some(reason)));
        outputs.push_back(Output::Timer { at_ms: until_ms });
    }

    pub(super) fn tick(&mut self, now_ms: u64, outputs: &mut VecDeque<Output>) {
        match &mut self.state {
            State::Waiting { until_ms } if now_ms >= *until_ms => self.connect(now_ms, outputs),
            State::Login { until_ms, .. } if now_ms >= *until_ms => outputs.push_back(Output::Disconnect),
            State::Online { unanswered_ms: Some(since), .. } if now_ms.saturating_sub(*since) >= DEAD_AFTER_MS => {
                outputs.push_back(Output::Disconnect);
            }
            State::Online { heard_ms, pinged_ms, asked_ms, unanswered_ms: unanswered @ None, .. }
                if now_ms >= ping_at(*heard_ms, *pinged_ms, *asked_ms) =>
            {
                // The answer is due from now on, however long this machine slept.
                *unanswered = Some(now_ms);
                *pinged_ms = now_ms;
                outputs.push_back(Output::Send(ClientFrame::Ping { token: now_ms }.encode()));
            }
            _ => {}
        }
    }

    pub(super) fn timeout(&self) -> Option<u64> {
        match self.state {
            State::Waiting { until_ms } | State::Login { until_ms, .. } => Some(until_ms),
            State::Online { unanswered_ms: Some(since), .. } => Some(since + DEAD_AFTER_MS),
            State::Online { heard_ms, pinged_ms, asked_ms, .. } => Some(ping_at(heard_ms, pinged_ms, asked_ms)),
            State::Idle | State::Connecting => None,
        }
    }

    fn event(&self, detail: Option<String>) -> Output {
        let state = match self.state {
            State::Idle | State::Waiting { .. } => ConnectionState::Offline,
            State::Connecting | State::Login { .. } => ConnectionState::Connecting,
            State::Online { .. } => ConnectionState::Online,
        };
        Output::Event(Event::Connection { state, transport: self.transport.clone(), detail })
    }
}

/// When to ask whether the server is still there.
fn ping_at(heard_ms: u64, pinged_ms: u64, asked_ms: Option<u64>) -> u64 {
    let asked = asked_ms.map_or(u64::MAX, |at_ms| at_ms + PING_AFTER_ASKING_MS);
    asked.min(heard_ms + PING_AFTER_MS).min(pinged_ms + KEEP_ALIVE_MS)
}
