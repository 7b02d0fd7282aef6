//! What waits to be written towards one connection, counted in bytes.
//!
//! Shards push, the connection's writer takes; nobody waits for a slow reader. Two kinds of frames enter. *Answers* are
//! always queued: they are bounded because the connection stops reading while the outbox is over its limit, and because
//! what is asked and not yet answered is counted too ([`Permit`]). *Pages* are refused when they do not fit; then the shard
//! notes that the member is behind, and is told ([`Outbox::take`]) when there is room again.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

/// Bytes of requests that one connection may have asked and not yet seen answered (the answer's largest size counts too).
pub const IN_FLIGHT_BYTES_MAX: usize = 256 << 10;

/// The frame does not fit now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the outbox is full")]
pub struct Full;

/// A set of shards, by index: bit n is shard n.
pub type ShardSet = u64;

/// The queue towards one connection.
#[derive(Debug)]
pub struct Outbox {
    bytes_max: usize,
    state: Mutex<State>,
    /// The writer waits here for something to write.
    filled: Notify,
    /// The reader waits here for room.
    relieved: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Bytes>,
    /// Bytes queued, and taken by the writer but not yet written.
    bytes: usize,
    /// Of these, taken.
    taken: usize,
    in_flight: usize,
    /// Shards that were refused and want to know when there is room.
    waiting: ShardSet,
    closed: bool,
}

impl Outbox {
    /// An empty outbox that takes pages up to `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: u32) -> Self {
        Self { bytes_max: bytes_max as usize, state: Mutex::default(), filled: Notify::new(), relieved: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an answer, whatever the fill. On a closed outbox it is dropped.
    pub fn push_control(&self, frame: Bytes) {
        self.push(&mut self.state(), frame);
    }

    /// Queues a page if it fits, or if nothing is queued. On a closed outbox it is dropped.
    ///
    /// # Errors
    /// [`Full`]: `shard` is told when there is room again.
    pub fn push_page(&self, frame: &Bytes, shard: usize) -> Result<(), Full> {
        self.push_if_fits(frame, 1 << shard)
    }

    /// As [`Outbox::push_page`], for what is worth nothing later: nobody is told when there is room again.
    ///
    /// # Errors
    /// [`Full`].
    pub fn push_droppable(&self, frame: &Bytes) -> Result<(), Full> {
        self.push_if_fits(frame, 0)
    }

    fn push_if_fits(&self, frame: &Bytes, wait: ShardSet) -> Result<(), Full> {
        let mut state = self.state();
        if state.bytes > 0 && state.bytes + frame.len() > self.bytes_max && !state.closed {
            state.waiting |= wait;
            return Err(Full);
        }
        self.push(&mut state, frame.clone());
        Ok(())
    }

    fn push(&self, state: &mut State, frame: Bytes) {
        if state.closed {
            return;
        }
        state.bytes += frame.len();
        state.queue.push_back(frame);
        if state.queue.len() == 1 {
            self.filled.notify_one();
        }
    }

    /// Whether history may be queued: at most half of the limit is in use. If not, `shard` is told when it is so.
    pub fn has_room(&self, shard: usize) -> bool {
        let mut state = self.state();
        let room = state.bytes <= self.bytes_max / 2 || state.closed;
        if !room {
            state.waiting |= 1 << shard;
        }
        room
    }

    /// The writer's call: what it took before has been written; the next frames, up to `bytes_max` bytes but at least
    /// one if there is one, go into `frames`. Returns the shards that wait for room, if there is some now.
    pub fn take(&self, bytes_max: usize, frames: &mut Vec<Bytes>) -> ShardSet {
        frames.clear();
        let mut state = self.state();
        state.bytes -= state.taken;
        state.taken = 0;
        while let Some(len) = state.queue.front().map(Bytes::len) {
            if !frames.is_empty() && state.taken + len > bytes_max {
                break;
            }
            state.taken += len;
            frames.extend(state.queue.pop_front());
        }
        self.relieve(&state);
        if state.bytes <= self.bytes_max / 2 { std::mem::take(&mut state.waiting) } else { 0 }
    }

    /// Waits until there is something to take, or the outbox is closed.
    pub async fn filled(&self) {
        loop {
            {
                let state = self.state();
                if !state.queue.is_empty() || state.closed {
                    return;
                }
            }
            self.filled.notified().await;
        }
    }

    /// Waits until the connection may read on: until neither the queue nor the unanswered requests exceed their limits.
    pub async fn relieved(&self) {
        loop {
            {
                let state = self.state();
                if self.may_read(&state) || state.closed {
                    return;
                }
            }
            self.relieved.notified().await;
        }
    }

    fn may_read(&self, state: &State) -> bool {
        state.bytes <= self.bytes_max && state.in_flight < IN_FLIGHT_BYTES_MAX
    }

    fn relieve(&self, state: &State) {
        if self.may_read(state) {
            self.relieved.notify_one();
        }
    }

    /// Nothing more is queued; what is queued can still be taken.
    pub fn close(&self) {
        self.state().closed = true;
        self.filled.notify_one();
        self.relieved.notify_one();
    }

    /// Whether [`Outbox::close`] was called: the connection is ending, or gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Bytes queued and not yet written.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Bytes of requests not yet answered.
    #[must_use]
    pub fn in_flight_bytes(&self) -> usize {
        self.state().in_flight
    }
}

/// Counts a request against its connection until it has been answered, that is, until this is dropped.
#[derive(Debug)]
pub struct Permit {
    outbox: Arc<Outbox>,
    bytes: usize,
}

impl Permit {
    /// Counts `bytes`: the request's, and the largest answer's.
    #[must_use]
    pub fn new(outbox: &Arc<Outbox>, bytes: usize) -> Self {
        outbox.state().in_flight += bytes;
        Self { outbox: Arc::clone(outbox), bytes }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.outbox.state();
        let could = self.outbox.may_read(&state);
        state.in_flight -= self.bytes;
        if !could {
            self.outbox.relieve(&state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize) -> Bytes {
        vec![7; len].into()
    }

    #[test]
    fn pages_are_refused_when_they_do_not_fit_and_answers_are_not() {
        let outbox = Outbox::new(100);
        assert_eq!(outbox.push_page(&frame(300), 3), Ok(()), "into an empty queue, whatever its size");
        assert_eq!(outbox.push_page(&frame(1), 3), Err(Full));
        assert_eq!(outbox.push_droppable(&frame(1)), Err(Full));
        outbox.push_control(frame(10));
        assert_eq!(outbox.bytes(), 310);
        let mut frames = Vec::new();
        assert_eq!(outbox.take(50, &mut frames), 0);
        assert_eq!(frames.len(), 1, "at least one");
        assert_eq!(outbox.bytes(), 310, "taken is not written");
        assert_eq!(outbox.take(50, &mut frames), 1 << 3, "room again, once");
        assert_eq!((frames.len(), outbox.bytes()), (1, 10));
        assert_eq!(outbox.take(50, &mut frames), 0);
        assert_eq!((frames.len(), outbox.bytes()), (0, 0));
    }

    #[test]
    fn a_shard_that_asked_for_room_hears_of_it() {
        let outbox = Outbox::new(100);
        outbox.push_control(frame(40));
        outbox.push_control(frame(40));
        assert!(!outbox.has_room(0));
        let mut frames = Vec::new();
        assert_eq!(outbox.take(40, &mut frames), 0);
        assert_eq!(outbox.take(40, &mut frames), 1);
        assert!(outbox.has_room(0));
    }

    #[tokio::test]
    async fn unanswered_requests_hold_the_reader() {
        let outbox = Arc::new(Outbox::new(100));
        let permit = Permit::new(&outbox, IN_FLIGHT_BYTES_MAX);
        let waiter = Arc::clone(&outbox);
        let mut reader = std::pin::pin!(waiter.relieved());
        tokio::select! {
            biased;
            () = &mut reader => panic!("the reader goes on"),
            () = std::future::ready(()) => {}
        }
        drop(permit);
        reader.await;
        outbox.push_control(frame(101));
        let mut frames = Vec::new();
        outbox.take(1, &mut frames);
        outbox.close();
        outbox.relieved().await;
        outbox.filled().await;
        assert!(outbox.is_closed());
        outbox.push_control(frame(1));
        assert_eq!(outbox.bytes(), 101, "nothing enters a closed outbox");
    }
}
