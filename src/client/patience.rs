//! How long a client waits: before it comes back, before it tries again what failed, before it takes silence for death.

use rand_core::Rng as _;

use super::ClientRandom;

/// First and longest wait before connecting again; the wait is random between zero and the bound, which doubles.
const BACKOFF_MS: (u64, u64) = (500, 10_000);
/// The longest wait that a server can ask for.
const RETRY_AFTER_MAX_MS: u64 = 600_000;
/// A session that lasted this long was a good one: the next wait is short again.
const GOOD_AFTER_MS: u64 = 10_000;
/// First and longest time for which WebTransport is not tried again where it failed and WebSocket did not.
const SHUN_MS: (u64, u64) = (20_000, 600_000);
/// What carried the session for so long works.
const PROVEN_AFTER_MS: u64 = 60_000;
/// Patience is doubled this often at most.
const SLOW_MAX: u32 = 4;

/// The bound that doubles with each failure.
fn bound(limits: (u64, u64), failures: u32) -> u64 {
    limits.0.saturating_mul(1 << failures.min(16)).min(limits.1)
}

/// When to come back.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempts: u32,
    /// The server does not want to be asked before.
    not_before_ms: u64,
    /// The server does not know this device, or not any more.
    pub(super) refused: bool,
}

impl Backoff {
    /// The server has let the client in.
    pub(super) const fn let_in(&mut self) {
        self.not_before_ms = 0;
        self.refused = false;
    }

    /// The session ended after so long.
    pub(super) const fn lasted(&mut self, ms: u64) {
        if ms >= GOOD_AFTER_MS {
            self.attempts = 0;
        }
    }

    /// The server asks for so much time.
    pub(super) fn asked(&mut self, retry_after_ms: u32, now_ms: u64) {
        let retry_after_ms = u64::from(retry_after_ms).min(RETRY_AFTER_MAX_MS);
        self.not_before_ms = self.not_before_ms.max(now_ms + retry_after_ms);
    }

    /// Trying again soon does not help.
    pub(super) fn be_slow(&mut self) {
        self.attempts = self.attempts.max(5);
    }

    /// Whether it may be now, for somebody who wants it.
    pub(super) const fn may_hurry(&mut self, now_ms: u64) -> bool {
        let may = now_ms >= self.not_before_ms;
        if may {
            self.attempts = 0;
        }
        may
    }

    /// When to come back. Those whom a server sent away at one moment do not come back at one moment.
    pub(super) fn next(&mut self, now_ms: u64, rng: &mut ClientRandom) -> u64 {
        let asked_ms = self.not_before_ms.saturating_sub(now_ms);
        let bound = bound(BACKOFF_MS, self.attempts).max(asked_ms);
        self.attempts += 1;
        now_ms + asked_ms + rng.next_u64() % bound
    }

    /// The clock was set.
    pub(super) fn clock_set(&mut self, now_ms: u64) {
        self.not_before_ms = self.not_before_ms.min(now_ms + RETRY_AFTER_MAX_MS);
    }
}

/// What is known of WebTransport on this network.
#[derive(Debug, Default)]
pub(super) struct Better {
    failures: u32,
    until_ms: u64,
    /// It failed, and WebSocket has not shown yet that it is not everything that fails.
    failed: bool,
    /// It carried the session when it was last tried.
    worked: bool,
}

impl Better {
    /// Whether it may be tried.
    pub(super) const fn is_due(&self, now_ms: u64) -> bool {
        now_ms >= self.until_ms
    }

    /// When it may be tried.
    pub(super) const fn due_ms(&self) -> u64 {
        self.until_ms
    }

    /// Whether it is worth a head start.
    pub(super) const fn has_worked(&self) -> bool {
        self.worked
    }

    /// It carries the session.
    pub(super) const fn works(&mut self) {
        self.worked = true;
        self.failed = false;
        self.until_ms = 0;
    }

    /// It carried the session for so long.
    pub(super) const fn lasted(&mut self, ms: u64) {
        if ms >= PROVEN_AFTER_MS {
            self.failures = 0;
        }
    }

    /// It failed. That counts once WebSocket is known to work.
    pub(super) fn failed(&mut self, websocket_works: bool, now_ms: u64, rng: &mut ClientRandom) {
        self.worked = false;
        self.failed = true;
        if websocket_works {
            self.websocket_works(now_ms, rng);
        }
    }

    /// WebSocket works: if WebTransport failed, it is left alone for a while.
    pub(super) fn websocket_works(&mut self, now_ms: u64, rng: &mut ClientRandom) {
        if core::mem::take(&mut self.failed) {
            let bound = bound(SHUN_MS, self.failures);
            self.failures += 1;
            self.until_ms = now_ms + bound / 2 + rng.next_u64() % (bound / 2);
        }
    }

    /// WebSocket failed as well: then it was everything.
    pub(super) const fn websocket_failed(&mut self) {
        self.failed = false;
    }

    /// The network is another one.
    pub(super) fn network_changed(&mut self) {
        *self = Self { worked: self.worked, ..Self::default() };
    }

    /// The clock was set.
    pub(super) fn clock_set(&mut self, now_ms: u64) {
        self.until_ms = self.until_ms.min(now_ms + SHUN_MS.1);
    }
}

/// How much longer than usual an answer may take. A shell that sees whole messages only cannot tell a page that takes long from
/// silence: so that it is not begun for ever, whoever follows a link that was given up while it owed a page gets more time.
#[derive(Debug, Default)]
pub(super) struct Patience {
    slow: u32,
    /// The server has begun to send a page that is not complete here.
    pub(super) owed: bool,
}

impl Patience {
    /// How often the usual time is to be doubled.
    pub(super) const fn doubled(&self) -> u32 {
        self.slow
    }

    /// A link is given up because it does not answer.
    pub(super) fn ended(&mut self) {
        self.slow = if self.owed { (self.slow + 1).min(SLOW_MAX) } else { 0 };
    }

    /// A link has answered for so long.
    pub(super) const fn lasted(&mut self, ms: u64) {
        if ms >= PROVEN_AFTER_MS && !self.owed {
            self.slow = 0;
        }
    }

    /// The network is another one.
    pub(super) const fn network_changed(&mut self) {
        self.slow = 0;
    }
}
