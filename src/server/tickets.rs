//! Tickets of earlier logins, and which of them were used: what a resume is checked against.
//!
//! A ticket is `issued u64 LE ‖ HMAC-SHA256(key, "waxwing ticket v1" ‖ device key ‖ issued)`, `issued` in Unix milliseconds. The
//! key is made with the process and dies with it; a ticket of another process is not recognised, and costs a round trip. It
//! is no credential: a resume is signed by the device, and the token and the dialled name are checked as in any login. What it
//! proves is that the signature was made after this server said something that nobody could know before.
//!
//! So that a resume that somebody saw cannot be told again, each is accepted once (RFC 8446 §8 has the same two means): it
//! states the time, which must be near the server's, and what was accepted is remembered for as long as that time is near.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::core::{
    frame::Resume,
    id::{DeviceKey, Digest},
    login::RESUME_SKEW_MS,
};

const LABEL: &[u8] = b"waxwing ticket v1";
/// A ticket is good for this long, in milliseconds: a day.
const LIFE_MS: u64 = 24 * 3600 * 1000;
/// A stated time is near the clock for this long.
const WINDOW_MS: u64 = 2 * RESUME_SKEW_MS;
/// Resumes accepted in a window; whoever comes when they are used up logs in with a challenge. About 3 MB when full.
const SPENT_MAX: usize = 1 << 16;

/// Makes tickets, and takes each resume once.
#[derive(Debug)]
pub struct Tickets {
    key: Key,
    spent: Mutex<Spent>,
}

struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// The first half of a binding: nobody finds two that share it.
type Mark = [u8; 16];

/// What was accepted, in two generations of a window each: whatever was, is known for a window at least.
#[derive(Debug, Default)]
struct Spent {
    /// The clock, which here never goes back: stepping it does not make an old time near again.
    now_ms: u64,
    since_ms: u64,
    newer: HashSet<Mark>,
    older: HashSet<Mark>,
}

impl Spent {
    fn advance(&mut self, now_ms: u64) -> u64 {
        self.now_ms = self.now_ms.max(now_ms);
        let age = self.now_ms - self.since_ms;
        if age >= WINDOW_MS {
            self.older = std::mem::take(&mut self.newer);
            if age >= 2 * WINDOW_MS {
                self.older = HashSet::new();
            }
            self.since_ms = self.now_ms;
        }
        self.now_ms
    }
}

impl Tickets {
    /// Tickets under this key, 32 fresh random bytes.
    #[must_use]
    pub fn new(key: [u8; 32]) -> Self {
        Self { key: Key(key), spent: Mutex::default() }
    }

    fn mac(&self, device: &DeviceKey, issued_ms: u64) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key.0).expect("HMAC takes keys of any length");
        mac.update(LABEL);
        mac.update(device.as_bytes());
        mac.update(&issued_ms.to_le_bytes());
        mac
    }

    fn spent(&self) -> std::sync::MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ticket for this device.
    #[must_use]
    pub fn issue(&self, device: &DeviceKey, now_ms: u64) -> Bytes {
        let now_ms = self.spent().advance(now_ms);
        [&now_ms.to_le_bytes()[..], &self.mac(device, now_ms).finalize().into_bytes()].concat().into()
    }

    /// Whether the ticket was made here for this device and is not too old, and the stated time is near.
    #[must_use]
    pub fn recognises(&self, resume: &Resume, now_ms: u64) -> bool {
        let now_ms = self.spent().advance(now_ms);
        let Some((issued, tag)) = resume.ticket.split_first_chunk::<8>() else { return false };
        let issued_ms = u64::from_le_bytes(*issued);
        self.mac(&resume.hello.device, issued_ms).verify_slice(tag).is_ok()
            && now_ms.saturating_sub(issued_ms) < LIFE_MS
            && now_ms.abs_diff(resume.time_ms) < RESUME_SKEW_MS
    }

    /// Whether a resume of this binding was not accepted before; from now on it was. When there is no room to remember it,
    /// none is the first.
    #[must_use]
    pub fn is_first(&self, binding: Digest, now_ms: u64) -> bool {
        let mark = *binding.0.first_chunk().expect("a digest is longer than a mark");
        let mut spent = self.spent();
        spent.advance(now_ms);
        !spent.older.contains(&mark) && spent.newer.len() < SPENT_MAX && spent.newer.insert(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        frame::Hello,
        id::{Nonce, Signature},
    };

    const DEVICE: DeviceKey = DeviceKey([1; 32]);

    fn resume(ticket: &Bytes, device: DeviceKey, time_ms: u64) -> Resume {
        let hello = Hello {
            version: 1,
            nonce: Nonce([2; 32]),
            device,
            authority: String::new(),
            exporter: false,
            token: Bytes::new(),
            agent: String::new(),
        };
        Resume { hello, time_ms, ticket: ticket.clone(), signature: Signature::from([0; 64]) }
    }

    #[test]
    fn a_ticket_is_for_its_device_and_its_server_and_a_day() {
        let tickets = Tickets::new([7; 32]);
        let ticket = tickets.issue(&DEVICE, 1_000_000);
        assert_eq!(ticket.len(), 40);
        let good = |tickets: &Tickets, now_ms| tickets.recognises(&resume(&ticket, DEVICE, now_ms), now_ms);
        assert!(good(&tickets, 1_000_000));
        assert!(!tickets.recognises(&resume(&ticket, DeviceKey([2; 32]), 1_000_000), 1_000_000), "another device");
        assert!(!good(&Tickets::new([8; 32]), 1_000_000), "another server");
        for len in 0..ticket.len() {
            assert!(!tickets.recognises(&resume(&ticket.slice(..len), DEVICE, 1_000_000), 1_000_000), "cut to {len}");
            let mut bent = ticket.to_vec();
            bent[len] ^= 1;
            assert!(!tickets.recognises(&resume(&bent.into(), DEVICE, 1_000_000), 1_000_000), "bent at {len}");
        }
        assert!(good(&tickets, 1_000_000 + LIFE_MS - 1));
        assert!(!good(&tickets, 1_000_000 + LIFE_MS));
    }

    #[test]
    fn the_stated_time_is_near_the_clock() {
        let tickets = Tickets::new([7; 32]);
        let now_ms = 1_000_000;
        let ticket = tickets.issue(&DEVICE, now_ms);
        for (time_ms, near) in [
            (now_ms - RESUME_SKEW_MS, false),
            (now_ms - RESUME_SKEW_MS + 1, true),
            (now_ms + RESUME_SKEW_MS - 1, true),
            (now_ms + RESUME_SKEW_MS, false),
            (0, false),
            (u64::MAX, false),
        ] {
            assert_eq!(tickets.recognises(&resume(&ticket, DEVICE, time_ms), now_ms), near, "{time_ms}");
        }
    }

    #[test]
    fn what_was_accepted_is_known_for_as_long_as_it_would_be_accepted() {
        let tickets = Tickets::new([7; 32]);
        let mark = |n: u64| Digest(std::array::from_fn(|index| n.to_le_bytes()[index % 8]));
        let start = 10 * WINDOW_MS;
        // Wherever in a window it is used, for the whole time in which its own stated time is near.
        for (n, used_ms) in (0..).zip((start..start + 3 * WINDOW_MS).step_by(7_000)) {
            assert!(tickets.is_first(mark(n), used_ms));
            assert!(!tickets.is_first(mark(n), used_ms));
            let later = Tickets::new([7; 32]);
            assert!(later.is_first(mark(n), used_ms));
            assert!(!later.is_first(mark(n), used_ms + WINDOW_MS - 1));
        }
        // A clock that jumps ahead and comes back makes nothing near again.
        let ticket = tickets.issue(&DEVICE, 20 * WINDOW_MS);
        assert!(tickets.is_first(mark(1000), 20 * WINDOW_MS));
        assert!(tickets.is_first(mark(1001), 40 * WINDOW_MS));
        assert!(!tickets.recognises(&resume(&ticket, DEVICE, 20 * WINDOW_MS), 20 * WINDOW_MS));
    }

    #[test]
    fn memory_is_bounded_and_comes_back() {
        let tickets = Tickets::new([7; 32]);
        let mark = |n: u64| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            Digest(bytes)
        };
        let max = SPENT_MAX as u64;
        let accepted = (0..max + 10).filter(|n| tickets.is_first(mark(*n), WINDOW_MS)).count();
        assert_eq!(accepted, SPENT_MAX);
        assert!(tickets.is_first(mark(max + 1), 2 * WINDOW_MS), "there is room again");
        assert!(!tickets.is_first(mark(1), 2 * WINDOW_MS), "and nothing was forgotten too early");
        assert_eq!(tickets.spent().older.len(), SPENT_MAX);
        assert!(tickets.is_first(mark(1), 5 * WINDOW_MS));
        assert_eq!(tickets.spent().older.len(), 0);
    }
}
