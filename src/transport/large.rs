//! What clients may hold of a server's memory with frames that are not complete.
//!
//! A frame of a usual size is small change beside its connection. A handshake record is not: where it may have 3 MiB, a thousand
//! connections that each send all but the last byte of one would hold 3 GiB. So all of a server's connections share a budget for
//! what exceeds the usual size.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// The budget for frames that are larger than usual.
#[derive(Debug)]
pub struct LargeFrames {
    usual_max: u32,
    bytes_max: u64,
    bytes: AtomicU64,
}

impl LargeFrames {
    /// At most `bytes_max` bytes at a time, of frames that have more than `usual_max`. One frame is always let in.
    #[must_use]
    pub const fn new(usual_max: u32, bytes_max: u64) -> Self {
        Self { usual_max, bytes_max, bytes: AtomicU64::new(0) }
    }

    /// Whether a frame of so many bytes needs a part of the budget.
    pub(super) const fn concerns(&self, len: usize) -> bool {
        len > self.usual_max as usize
    }

    /// The part of the budget for a frame of so many bytes, until it is dropped; `None` if there is not so much left.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Option<Part> {
        let len = len as u64;
        let add = |bytes| (bytes == 0 || bytes + len <= self.bytes_max).then_some(bytes + len);
        self.bytes.fetch_update(Relaxed, Relaxed, add).ok()?;
        Some(Part { budget: Arc::clone(self), len })
    }
}

/// A part of the budget.
#[derive(Debug)]
pub(super) struct Part {
    budget: Arc<LargeFrames>,
    len: u64,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.budget.bytes.fetch_sub(self.len, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt as _;

    use super::*;
    use crate::transport::{Error, memory};

    #[test]
    fn the_budget_is_shared_and_given_back() {
        let frames = Arc::new(LargeFrames::new(10, 100));
        assert!(!frames.concerns(10) && frames.concerns(11));
        let first = frames.take(60).expect("there is all of it");
        assert!(frames.take(41).is_none());
        let second = frames.take(40).expect("there is so much left");
        assert!(frames.take(1).is_none());
        drop(first);
        assert!(frames.take(60).is_some());
        drop(second);
        let all = frames.take(1_000).expect("one is let in, whatever its size");
        assert!(frames.take(11).is_none());
        drop(all);
        assert_eq!(frames.bytes.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn a_reader_is_refused_a_large_frame_while_others_have_the_budget() {
        let budget = Arc::new(LargeFrames::new(100, 5_000));
        let pair = || {
            let (client, mut server) = memory::pair(1_000, 10_000);
            server.reader.authenticated(10_000, Arc::clone(&budget));
            (client, server)
        };
        let (frame, small) = (Bytes::from(vec![7; 4_000]), Bytes::from(vec![7; 90]));
        let (mut first, mut second) = (pair(), pair());
        // As much of it as the pipe takes.
        assert!(first.0.writer.send(std::slice::from_ref(&frame)).now_or_never().is_none());
        assert!(first.1.reader.recv().now_or_never().is_none() && first.1.reader.is_within_large());
        assert!(second.0.writer.send(&[small.clone(), frame.clone()]).now_or_never().is_none());
        assert_eq!(second.1.reader.recv().await.unwrap(), Some(small), "what is of the usual size needs none of it");
        assert!(matches!(second.1.reader.recv().await, Err(Error::Overloaded)));
        let rest = async { first.0.writer.send(&[]).await.unwrap() };
        let (received, ()) = tokio::join!(first.1.reader.recv(), rest);
        assert_eq!((received.unwrap(), first.1.reader.is_within_large()), (Some(frame.clone()), false));
        let mut third = pair();
        assert!(third.0.writer.send(std::slice::from_ref(&frame)).now_or_never().is_none());
        assert!(third.1.reader.recv().now_or_never().is_none() && third.1.reader.is_within_large());
        drop(third);
        assert!(budget.take(5_000).is_some(), "a connection that is gone holds none of it");
    }
}
