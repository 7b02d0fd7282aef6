//! The home of connections without a runtime: what a shard sent waits here until somebody reads it.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use waxwing::router::{Conn, ConnId, outbox::ShardSet, shard::Shard};

/// See the module.
#[derive(Debug, Default)]
pub struct Home {
    queues: HashMap<ConnId, Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    /// Bytes that were read last, and count as written with the next reading.
    taken: usize,
}

impl Home {
    /// Takes what the shard has sent since it was last asked.
    pub fn accept(&mut self, shard: &mut Shard) {
        for (id, sent) in shard.sent().iter_mut().flat_map(|batch| batch.drain(..)) {
            self.queues.entry(id).or_default().frames.push_back(sent.frame);
        }
    }

    /// An answer that does not come from a shard.
    pub fn answer(&mut self, conn: &Conn, frame: Bytes) {
        conn.outbox.push(frame.len());
        self.queues.entry(conn.id).or_default().frames.push_back(frame);
    }

    /// What was taken before has been written; the next frames, up to `bytes_max` bytes but at least one if there is one, go
    /// into `frames`. Returns the shards that wait for room, if there is some now.
    pub fn take(&mut self, conn: &Conn, bytes_max: usize, frames: &mut Vec<Bytes>) -> ShardSet {
        frames.clear();
        let queue = self.queues.entry(conn.id).or_default();
        let relieved = conn.outbox.written(std::mem::take(&mut queue.taken));
        while let Some(frame) = queue.frames.pop_front_if(|next| queue.taken == 0 || queue.taken + next.len() <= bytes_max) {
            queue.taken += frame.len();
            frames.push(frame);
        }
        relieved
    }
}
