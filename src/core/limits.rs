//! Limits: each has a name, a default, and an error that says it. The server tells them to every client in its welcome.

use serde::{Deserialize, Serialize};

/// What one connection, device, room and session may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest envelope, in bytes. Default 65,536.
    pub envelope_bytes_max: u32,
    /// Largest handshake record (kind 4), in bytes: commit, welcome and group info. Default 3 MiB, which is the most.
    pub handshake_bytes_max: u32,
    /// Largest frame, in bytes: an envelope or a handshake record, and what surrounds it. Default 3 MiB + 4,096.
    pub frame_bytes_max: u32,
    /// Bytes that a connection may send before it is authenticated. Default 4,096.
    pub unauthenticated_bytes_max: u32,
    /// Milliseconds that a connection may take to authenticate. Default 10,000.
    pub handshake_timeout_ms: u32,
    /// Milliseconds without any byte from the client before the connection is closed. Default 60,000.
    pub idle_timeout_ms: u32,
    /// Rooms that one device may have entered at a time, over all of its sessions. Default 4,096.
    pub rooms_per_device_max: u32,
    /// Rooms that one device may create per hour. Default 256.
    pub rooms_created_per_hour_max: u32,
    /// Publishes per second that one device may make for long, over all of its sessions. Default 200.
    pub publishes_per_second_max: u32,
    /// Publishes that one device may make at once, above that rate. Default 400.
    pub publish_burst_max: u32,
    /// Handshake records that one device may publish in a minute, and as many at once, over all of its sessions. Default 30.
    pub handshakes_per_minute_max: u32,
    /// Key packages that one device may have for groups of one suite, the last resort included. Default 50.
    pub key_packages_max: u32,
    /// Largest key package, in bytes. Default 16,384. All of a device and suite together have 2 MiB at most.
    pub key_package_bytes_max: u32,
    /// Requests about key packages, of its own and of others, that one device may make in a minute, and as many at once, over all of
    /// its sessions. Default 60.
    pub key_package_requests_per_minute_max: u32,
    /// Ephemeral envelopes per second that one session may send. Default 20.
    pub ephemerals_per_second_max: u32,
    /// Outboxes (producers) that one device may use in one room. Default 64. One that was idle for 30 days is forgotten.
    pub producers_per_device_max: u32,
    /// Bytes that one room may keep. Default 1 GiB.
    pub room_bytes_max: u64,
    /// Bytes that one inbox may keep. Default 1 MiB.
    pub inbox_bytes_max: u64,
    /// Bytes queued towards one connection before live delivery turns into catching up. Default 65,536.
    pub outbox_bytes_max: u32,
    /// Bytes of one page of history. Default 65,536.
    pub page_bytes_max: u32,
    /// Bytes of recent messages that a room in use keeps in memory. Default 65,536.
    pub recent_bytes_max: u32,
    /// Sessions in one room up to which the room tells who is present. Default 256.
    pub presence_sessions_max: u32,
    /// Sessions that one device may have open at a time. Default 16.
    pub sessions_per_device_max: u32,
    /// Posts that one room's drop-box takes in a minute, and as many at once. Default 60.
    pub posts_per_minute_max: u32,
    /// Requests about drop-boxes that one address may make in a minute, and as many at once. Default 120.
    pub post_requests_per_minute_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            envelope_bytes_max: 64 << 10,
            handshake_bytes_max: 3 << 20,
            frame_bytes_max: (3 << 20) + (4 << 10),
            unauthenticated_bytes_max: 4 << 10,
            handshake_timeout_ms: 10_000,
            idle_timeout_ms: 60_000,
            rooms_per_device_max: 4096,
            rooms_created_per_hour_max: 256,
            publishes_per_second_max: 200,
            publish_burst_max: 400,
            handshakes_per_minute_max: 30,
            key_packages_max: 50,
            key_package_bytes_max: 16 << 10,
            key_package_requests_per_minute_max: 60,
            ephemerals_per_second_max: 20,
            producers_per_device_max: 64,
            room_bytes_max: 1 << 30,
            inbox_bytes_max: 1 << 20,
            outbox_bytes_max: 64 << 10,
            page_bytes_max: 64 << 10,
            recent_bytes_max: 64 << 10,
            presence_sessions_max: 256,
            sessions_per_device_max: 16,
            posts_per_minute_max: 60,
            post_requests_per_minute_max: 120,
        }
    }
}

/// A token bucket: `rate` tokens a second or a minute, `burst` at once. Pure: the time is an argument.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    /// What was in hand at `at_ms`; a token is as much of it as the rate's period has milliseconds.
    level: u64,
    at_ms: u64,
}

/// How much may be done, and how fast: of a [`TokenBucket`], which does not keep it, because there are many of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    period_ms: u32,
    tokens: u32,
    burst: u32,
}

impl Rate {
    /// So many a second, and `burst` at once.
    #[must_use]
    pub const fn per_second(tokens: u32, burst: u32) -> Self {
        Self { period_ms: 1000, tokens, burst }
    }

    /// So many a minute, and as many at once.
    #[must_use]
    pub const fn per_minute(tokens: u32) -> Self {
        Self { period_ms: 60_000, tokens, burst: tokens }
    }

    /// What a full bucket has.
    const fn full(self) -> u64 {
        self.burst as u64 * self.period_ms as u64
    }
}

impl Default for TokenBucket {
    /// A full one, whatever its rate.
    fn default() -> Self {
        Self { level: u64::MAX, at_ms: 0 }
    }
}

impl TokenBucket {
    const fn level(&self, rate: Rate, now_ms: u64) -> u64 {
        let gained = now_ms.saturating_sub(self.at_ms).saturating_mul(rate.tokens as u64);
        let level = self.level.saturating_add(gained);
        if level < rate.full() { level } else { rate.full() }
    }

    /// Whether it has all that it can have at `now_ms`: then it is as a new one.
    #[must_use]
    pub const fn is_full(&self, rate: Rate, now_ms: u64) -> bool {
        self.level(rate, now_ms) == rate.full()
    }

    /// Takes one token at `now_ms`.
    ///
    /// # Errors
    /// The milliseconds until there is one.
    pub fn take(&mut self, rate: Rate, now_ms: u64) -> Result<(), u32> {
        self.level = self.level(rate, now_ms);
        self.at_ms = self.at_ms.max(now_ms);
        let period_ms = u64::from(rate.period_ms);
        match self.level.checked_sub(period_ms) {
            Some(rest) => {
                self.level = rest;
                Ok(())
            }
            None => Err(u32::try_from((period_ms - self.level).div_ceil(rate.tokens.max(1).into())).unwrap_or(u32::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let (rate, mut bucket) = (Rate::per_second(2, 3), TokenBucket::default());
        let mut take = |now_ms| bucket.take(rate, now_ms);
        assert!((0..3).all(|_| take(0).is_ok()));
        assert_eq!(take(0), Err(500));
        assert_eq!(take(499), Err(1));
        assert_eq!(take(500), Ok(()));
        assert_eq!(take(100), Err(500), "a clock that steps back gives nothing");
        assert!((0..3).all(|_| take(1_000_000).is_ok()));
        assert!(take(1_000_000).is_err(), "idle time does not exceed the burst");
    }

    #[test]
    fn a_bucket_may_fill_by_the_minute() {
        let (rate, mut bucket) = (Rate::per_minute(2), TokenBucket::default());
        assert!((0..2).all(|_| bucket.take(rate, 0).is_ok()));
        assert_eq!(bucket.take(rate, 0), Err(30_000));
        assert_eq!(bucket.take(rate, 29_999), Err(1));
        assert_eq!(bucket.take(rate, 30_000), Ok(()));
        assert!(!bucket.is_full(rate, 89_999) && bucket.is_full(rate, 90_000));
    }
}
