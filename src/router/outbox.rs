//! What waits to be written towards one connection, counted in bytes.
//!
//! The frames themselves lie with the connection's *home*, the shard on whose thread it is written; other shards hand theirs
//! over once a turn. What every shard must know is how much waits, and that is here, in counters: no shard locks anything for
//! a delivery, and nobody waits for a slow reader. Two kinds of frames enter. *Answers* always do: they are bounded because the
//! connection stops reading while the outbox is over its limit, and because what is asked and not yet answered is counted too
//! ([`Permit`]). *Pages* are refused when they do not fit; then the shard notes that the member is behind, and is told
//! ([`Outbox::written`]) when there is room again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;

use super::Conn;

/// Bytes of requests that one connection may have asked and not yet seen answered (the answer's largest size counts too).
pub const IN_FLIGHT_BYTES_MAX: usize = 256 << 10;

/// The frame does not fit now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the outbox is full")]
pub struct Full;

/// A set of shards, by index: bit n is shard n.
pub type ShardSet = u64;

/// How much waits towards one connection.
#[derive(Debug)]
pub struct Outbox {
    bytes_max: u32,
    /// Bytes on their way to the home, queued there, or taken by the transport and not yet written.
    bytes: AtomicUsize,
    in_flight: AtomicUsize,
    /// Shards that were refused and want to know when there is room.
    waiting: AtomicU64,
    closed: AtomicBool,
    /// The reader waits here for room.
    reader: AtomicWaker,
}

impl Outbox {
    /// An empty outbox that takes pages up to `bytes_max` bytes. Shards that push at the same moment may exceed it by a page
    /// each.
    #[must_use]
    pub fn new(bytes_max: u32) -> Self {
        Self {
            bytes_max,
            bytes: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            waiting: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            reader: AtomicWaker::new(),
        }
    }

    /// Counts an answer of `len` bytes, whatever the fill.
    pub fn push(&self, len: usize) {
        self.bytes.fetch_add(len, SeqCst);
    }

    /// Counts a page of `len` bytes if it fits, or if nothing waits.
    ///
    /// # Errors
    /// [`Full`]: `shard` is told when there is room again.
    pub fn push_page(&self, len: usize, shard: usize) -> Result<(), Full> {
        loop {
            if self.push_droppable(len).is_ok() {
                return Ok(());
            }
            let bit = 1 << shard;
            if self.waiting.fetch_or(bit, SeqCst) & bit != 0 || !self.fits(self.bytes.load(SeqCst), len) {
                return Err(Full);
            }
            // Much was written just before the note was made. If the writer has not seen it, it is taken back.
            if self.waiting.fetch_and(!bit, SeqCst) & bit == 0 {
                return Err(Full);
            }
        }
    }

    /// As [`Outbox::push_page`], for what is worth nothing later: nobody is told when there is room again.
    ///
    /// # Errors
    /// [`Full`].
    pub fn push_droppable(&self, len: usize) -> Result<(), Full> {
        let add = |bytes| self.fits(bytes, len).then_some(bytes + len);
        self.bytes.fetch_update(SeqCst, SeqCst, add).map(drop).map_err(|_| Full)
    }

    const fn bytes_max(&self) -> usize {
        self.bytes_max as usize
    }

    const fn fits(&self, bytes: usize, len: usize) -> bool {
        bytes == 0 || bytes + len <= self.bytes_max()
    }

    /// Whether history may be queued: at most half of the limit is in use. If not, `shard` is told when it is so.
    pub fn has_room(&self, shard: usize) -> bool {
        let room = || self.bytes.load(SeqCst) <= self.bytes_max() / 2 || self.is_closed();
        let bit = 1 << shard;
        // As in `push_page`: the note is made before the second look, and the writer looks at notes after it has counted.
        room() || (self.waiting.fetch_or(bit, SeqCst) & bit == 0 && room() && self.waiting.fetch_and(!bit, SeqCst) & bit != 0)
    }

    /// The home's call: `len` bytes were written, or dropped. Returns the shards that wait for room, if there is some now.
    pub fn written(&self, len: usize) -> ShardSet {
        let before = self.bytes.fetch_sub(len, SeqCst);
        debug_assert!(before >= len, "what is written was counted before");
        let after = before.saturating_sub(len);
        if before > self.bytes_max() && after <= self.bytes_max() {
            self.reader.wake();
        }
        if after <= self.bytes_max() / 2 && self.waiting.load(SeqCst) != 0 { self.waiting.swap(0, SeqCst) } else { 0 }
    }

    /// Waits until the connection may read on: until neither the queue nor the unanswered requests exceed their limits. One task
    /// waits here, the connection's own.
    pub fn poll_relieved(&self, cx: &Context<'_>) -> Poll<()> {
        if self.may_read() {
            return Poll::Ready(());
        }
        self.reader.register(cx.waker());
        // It may have been so since, before anybody knew whom to wake.
        if self.may_read() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether [`Outbox::poll_relieved`] has nothing to wait for.
    #[must_use]
    pub fn may_read(&self) -> bool {
        let within = self.bytes.load(SeqCst) <= self.bytes_max() && self.in_flight.load(SeqCst) < IN_FLIGHT_BYTES_MAX;
        within || self.is_closed()
    }

    /// Nothing more is queued; what is queued can still be written.
    pub fn close(&self) {
        self.closed.store(true, SeqCst);
        self.reader.wake();
    }

    /// Whether [`Outbox::close`] was called: the connection is ending, or gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// Bytes that wait to be written.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(SeqCst)
    }

    /// Bytes of requests not yet answered.
    #[must_use]
    pub fn in_flight_bytes(&self) -> usize {
        self.in_flight.load(SeqCst)
    }
}

/// Counts a request against its connection until it has been answered, that is, until this is dropped.
#[derive(Debug)]
pub struct Permit {
    conn: Arc<Conn>,
    bytes: usize,
}

impl Permit {
    /// Counts `bytes`: the request's, and the largest answer's.
    #[must_use]
    pub fn new(conn: &Arc<Conn>, bytes: usize) -> Self {
        conn.outbox.in_flight.fetch_add(bytes, SeqCst);
        Self { conn: Arc::clone(conn), bytes }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let outbox = &self.conn.outbox;
        let before = outbox.in_flight.fetch_sub(self.bytes, SeqCst);
        if before >= IN_FLIGHT_BYTES_MAX && before - self.bytes < IN_FLIGHT_BYTES_MAX {
            outbox.reader.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::{
        core::id::{DeviceKey, Digest},
        router::ConnId,
    };

    #[test]
    fn pages_are_refused_when_they_do_not_fit_and_answers_are_not() {
        let outbox = Outbox::new(100);
        assert_eq!(outbox.push_page(300, 3), Ok(()), "into an empty queue, whatever its size");
        assert_eq!(outbox.push_page(1, 3), Err(Full));
        assert_eq!(outbox.push_droppable(1), Err(Full));
        outbox.push(10);
        assert_eq!(outbox.bytes(), 310);
        assert_eq!(outbox.written(250), 0);
        assert_eq!(outbox.written(50), 1 << 3, "room again, once");
        assert_eq!(outbox.written(10), 0);
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn a_shard_that_asked_for_room_hears_of_it() {
        let outbox = Outbox::new(100);
        outbox.push(40);
        outbox.push(40);
        assert!(!outbox.has_room(0));
        assert_eq!(outbox.written(20), 0);
        assert_eq!(outbox.written(20), 1);
        assert!(outbox.has_room(0));
    }

    /// A writer and two shards at once: a shard that is refused is told, whatever the interleaving, or would hang here.
    #[test]
    fn no_shard_that_was_refused_is_forgotten() {
        let outbox = Outbox::new(100);
        let told = [AtomicU64::new(0), AtomicU64::new(0)];
        let left = AtomicUsize::new(2);
        std::thread::scope(|scope| {
            for (shard, told) in told.iter().enumerate() {
                let (outbox, left) = (&outbox, &left);
                scope.spawn(move || {
                    let mut heard = 0;
                    for _ in 0..20_000 {
                        while outbox.push_page(40, shard).is_err() {
                            while told.load(SeqCst) == heard {
                                std::hint::spin_loop();
                                std::thread::yield_now();
                            }
                            heard = told.load(SeqCst);
                        }
                    }
                    left.fetch_sub(1, SeqCst);
                });
            }
            while left.load(SeqCst) > 0 || outbox.bytes() > 0 {
                let shards = if outbox.bytes() >= 40 { outbox.written(40) } else { 0 };
                for (shard, told) in told.iter().enumerate().filter(|(shard, _)| shards & (1 << shard) != 0) {
                    told.fetch_add(1, SeqCst);
                    assert!(shard < 2);
                }
                std::thread::yield_now();
            }
        });
    }

    #[tokio::test]
    async fn unanswered_requests_hold_the_reader() {
        let (device, binding, usage) = (DeviceKey([1; 32]), Digest([2; 32]), Arc::default());
        let conn = Arc::new(Conn::new(ConnId(1), device, binding, Outbox::new(100), usage));
        let (outbox, permit) = (&conn.outbox, Permit::new(&conn, IN_FLIGHT_BYTES_MAX));
        let mut reader = poll_fn(|cx| outbox.poll_relieved(cx));
        tokio::select! {
            biased;
            () = &mut reader => panic!("the reader goes on"),
            () = std::future::ready(()) => {}
        }
        drop(permit);
        reader.await;
        outbox.push(101);
        outbox.close();
        poll_fn(|cx| outbox.poll_relieved(cx)).await;
        assert!(outbox.is_closed());
    }
}
