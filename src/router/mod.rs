//! The router: rooms hashed over shards, one owner each; cursors and outboxes.
//!
//! [`shard::Shard`] is pure: messages in, frames and requests to the engine out; no task, clock or socket. [`task`] runs shards
//! on tokio, each on a thread of its own. A room belongs to exactly one shard, so its order needs no lock; a connection lives
//! on one too, its *home*: what other shards have for it travels there once a turn, all of their connections' frames together.

mod context;
mod delivery;
mod dropbox;
mod handshakes;
pub mod outbox;
mod packages;
mod presence;
mod reads;
mod room;
pub mod shard;
mod tails;
pub mod task;

pub use task::{Config, Handle, Stopped, Worker};

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::core::{
    close::{CloseCode, Refusal},
    id::{DeviceKey, Digest},
    limits::{Limits, Rate, TokenBucket},
};

use outbox::{Outbox, ShardSet};

/// Names a connection within this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// What shards know of an authenticated connection.
#[derive(Debug)]
pub struct Conn {
    /// Its name.
    pub id: ConnId,
    /// Who it is.
    pub device: DeviceKey,
    /// Its login, which access proofs sign.
    pub binding: Digest,
    /// How much waits to be written to it.
    pub outbox: Outbox,
    /// What its device uses, over all of its connections.
    pub usage: Arc<Usage>,
    /// The shard on whose thread it is read and written: at most 63.
    home: u8,
    rooms: AtomicU32,
}

impl Conn {
    /// A connection that has entered no room and lives on the first shard.
    #[must_use]
    pub const fn new(id: ConnId, device: DeviceKey, binding: Digest, outbox: Outbox, usage: Arc<Usage>) -> Self {
        Self { id, device, binding, home: 0, outbox, usage, rooms: AtomicU32::new(0) }
    }

    /// The same, on another shard.
    #[must_use]
    pub fn at_home(mut self, shard: usize) -> Self {
        debug_assert!(shard < ShardSet::BITS as usize, "a shard is a bit of a ShardSet");
        self.home = u8::try_from(shard).unwrap_or(u8::MAX);
        self
    }

    /// The shard on whose thread it is read and written.
    #[must_use]
    pub fn home(&self) -> usize {
        self.home.into()
    }

    /// Counts one more entered room, of this connection and of its device.
    fn enter(&self, limits: &Limits) -> Result<(), Refusal> {
        self.usage.enter(limits)?;
        self.rooms.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn leave(&self) {
        self.rooms.fetch_sub(1, Ordering::Relaxed);
        self.usage.leave(1);
    }
}

impl Drop for Conn {
    /// The last shard that knew of the connection has forgotten it: its device may enter as many rooms again.
    fn drop(&mut self) {
        self.usage.leave(*self.rooms.get_mut());
    }
}

const HOUR_MS: u64 = 3600 * 1000;

/// What one device uses, over all of its connections and all shards.
#[derive(Debug, Default)]
pub struct Usage(Mutex<Used>);

#[derive(Debug, Default)]
struct Used {
    sessions: u32,
    /// Rooms entered, over all of its sessions.
    entered: u32,
    /// Rooms made since `since_ms`.
    created: u32,
    since_ms: u64,
    publishes: TokenBucket,
    handshakes: TokenBucket,
    packages: TokenBucket,
}

impl Usage {
    fn with<T>(&self, change: impl FnOnce(&mut Used) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts one more room that the device makes.
    fn create(&self, now_ms: u64, limits: &Limits) -> Result<(), Refusal> {
        self.with(|used| {
            if now_ms.saturating_sub(used.since_ms) >= HOUR_MS {
                (used.created, used.since_ms) = (0, now_ms);
            }
            if used.created >= limits.rooms_created_per_hour_max {
                return Err(Refusal::TooManyRooms);
            }
            used.created += 1;
            Ok(())
        })
    }

    fn enter(&self, limits: &Limits) -> Result<(), Refusal> {
        self.with(|used| {
            if used.entered >= limits.rooms_per_device_max {
                return Err(Refusal::TooManyRooms);
            }
            used.entered += 1;
            Ok(())
        })
    }

    fn leave(&self, rooms: u32) {
        self.with(|used| used.entered -= rooms);
    }

    /// Counts one more publish of the device: its sessions share one rate, and another one for handshake records.
    fn publish(&self, is_handshake: bool, now_ms: u64, limits: &Limits) -> Result<(), Refusal> {
        self.with(|used| match is_handshake {
            false => used.publishes.take(Rate::per_second(limits.publishes_per_second_max, limits.publish_burst_max), now_ms),
            true => used.handshakes.take(Rate::per_minute(limits.handshakes_per_minute_max), now_ms),
        })
        .map_err(|retry_after_ms| Refusal::RateLimited { retry_after_ms })
    }

    /// Counts one more request about key packages.
    fn packages(&self, now_ms: u64, limits: &Limits) -> Result<(), Refusal> {
        self.with(|used| used.packages.take(Rate::per_minute(limits.key_package_requests_per_minute_max), now_ms))
            .map_err(|retry_after_ms| Refusal::RateLimited { retry_after_ms })
    }

    fn is_idle(&self, now_ms: u64) -> bool {
        self.with(|used| {
            used.sessions == 0 && used.entered == 0 && (used.created == 0 || now_ms.saturating_sub(used.since_ms) >= HOUR_MS)
        })
    }
}

/// Every device that has a session, or made a room within the last hour. Asked at login and at the end of a session only.
#[derive(Debug, Default)]
pub struct Devices {
    used: Mutex<HashMap<DeviceKey, Arc<Usage>>>,
}

impl Devices {
    /// Fewest entries at which idle ones are looked for.
    const SWEEP_MIN: usize = 1024;

    /// Counts one more session of `device`.
    ///
    /// # Errors
    /// [`CloseCode::Overloaded`] when it has as many as it may.
    pub fn open(&self, device: DeviceKey, now_ms: u64, limits: &Limits) -> Result<DeviceSession, CloseCode> {
        let mut devices = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if devices.len() >= Self::SWEEP_MIN && devices.len() == devices.capacity() {
            devices.retain(|_, usage| !usage.is_idle(now_ms));
        }
        let usage = Arc::clone(devices.entry(device).or_default());
        usage.with(|used| {
            if used.sessions >= limits.sessions_per_device_max {
                return Err(CloseCode::Overloaded);
            }
            used.sessions += 1;
            Ok(())
        })?;
        Ok(DeviceSession(usage))
    }
}

/// Counts a session of a device until it is dropped.
#[derive(Debug)]
pub struct DeviceSession(Arc<Usage>);

impl DeviceSession {
    /// What the device uses.
    #[must_use]
    pub fn usage(&self) -> Arc<Usage> {
        Arc::clone(&self.0)
    }
}

impl Drop for DeviceSession {
    fn drop(&mut self) {
        self.0.with(|used| used.sessions -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entered_rooms_are_limited_per_device_and_given_back_with_the_connection() {
        let limits = Limits { rooms_per_device_max: 2, ..Limits::default() };
        let usage = Arc::new(Usage::default());
        let conn = |id| Conn::new(ConnId(id), DeviceKey([1; 32]), Digest([2; 32]), Outbox::new(1), Arc::clone(&usage));
        let (first, second) = (conn(1), conn(2));
        assert_eq!(first.enter(&limits), Ok(()));
        assert_eq!(second.enter(&limits), Ok(()));
        assert_eq!(first.enter(&limits), Err(Refusal::TooManyRooms), "counted over its connections");
        second.leave();
        assert_eq!(first.enter(&limits), Ok(()));
        assert_eq!(second.enter(&limits), Err(Refusal::TooManyRooms));
        drop(first);
        assert_eq!(second.enter(&limits).and_then(|()| second.enter(&limits)), Ok(()), "a closed connection holds none");
    }

    #[test]
    fn sessions_and_creations_are_limited_per_device() {
        let limits = Limits { sessions_per_device_max: 2, rooms_created_per_hour_max: 1, ..Limits::default() };
        let devices = Devices::default();
        let device = DeviceKey([1; 32]);
        let first = devices.open(device, 0, &limits).unwrap();
        let second = devices.open(device, 0, &limits).unwrap();
        assert_eq!(devices.open(device, 0, &limits).map(drop), Err(CloseCode::Overloaded));
        assert!(devices.open(DeviceKey([2; 32]), 0, &limits).is_ok());
        assert_eq!(first.usage().create(5, &limits), Ok(()));
        assert_eq!(second.usage().create(6, &limits), Err(Refusal::TooManyRooms), "counted over its sessions");
        assert_eq!(second.usage().create(HOUR_MS, &limits), Ok(()));
        drop(first);
        assert!(devices.open(device, 0, &limits).is_ok());
        drop(second);
        assert!(!devices.used.lock().unwrap()[&device].is_idle(HOUR_MS), "its creations are remembered");
        assert!(devices.used.lock().unwrap()[&device].is_idle(2 * HOUR_MS));
    }
}
