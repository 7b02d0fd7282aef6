//! What the generator counts, and the clock that it counts by.

use std::time::{Duration, Instant};

use crate::histogram::Histogram;

use super::session::STAMP;

/// Counters of one measurement.
#[derive(Debug)]
pub struct Tally {
    start: Instant,
    pub published: u64,
    pub deliveries: u64,
    pub acks: u64,
    /// From the moment that a message was due to the moment that a subscriber had it.
    pub latency: Histogram,
    /// From a publish to its ack.
    pub ack_latency: Histogram,
}

impl Tally {
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            published: 0,
            deliveries: 0,
            acks: 0,
            latency: Histogram::default(),
            ack_latency: Histogram::default(),
        }
    }

    /// Nanoseconds since it began: what stamps are in.
    pub fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A message came.
    pub fn delivered(&mut self, message: &[u8], now: u64) {
        let stamp = message.get(STAMP..).and_then(|rest| rest.first_chunk()).map_or(now, |bytes| u64::from_le_bytes(*bytes));
        self.delivered_at(stamp, now);
    }

    /// A message came that was due at `stamp`.
    pub fn delivered_at(&mut self, stamp: u64, now: u64) {
        self.deliveries += 1;
        self.latency.add(Duration::from_nanos(now.saturating_sub(stamp)));
    }

    /// Forgets what was counted; the clock goes on.
    pub fn clear(&mut self) {
        (self.published, self.deliveries, self.acks) = (0, 0, 0);
        self.latency.clear();
        self.ack_latency.clear();
    }
}
