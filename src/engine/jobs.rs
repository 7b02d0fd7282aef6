//! What waits for an engine's threads, and how it is answered: for engines that run on threads of this process.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::{
    Answer, Busy, Complete, Completion, Failure, Observer, Request, Token, clock,
    queue::{Queue, Weigh},
};
use crate::core::{
    id::{DeviceKey, RoomId, Seq, UnixMillis},
    log::{Append, LogMeta},
};

/// What a writer does.
#[derive(Debug)]
pub(super) enum Write {
    Create { room: RoomId, meta: LogMeta },
    Append(Append),
    Delete { room: RoomId },
    Packages { device: DeviceKey, packages: Bytes },
}

impl Write {
    /// Bytes of the envelope, or of the packages.
    fn bytes(&self) -> usize {
        match self {
            Self::Append(append) => append.envelope.len(),
            Self::Packages { packages, .. } => packages.len(),
            Self::Create { .. } | Self::Delete { .. } => 0,
        }
    }
}

/// What a reader does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Read {
    Load,
    After { after: Seq, bytes_max: u32 },
    Before { before: Seq, count_max: u32, bytes_max: u32 },
    Seek { time_ms: UnixMillis },
    Handshake { seq: Seq },
}

/// What is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject {
    Room(RoomId, Read),
    Packages(DeviceKey),
}

/// A write, and who waits for it.
pub(super) struct WriteJob {
    pub(super) write: Write,
    token: Token,
    to: Arc<dyn Complete>,
}

impl Weigh for WriteJob {
    fn bytes(&self) -> usize {
        self.write.bytes()
    }
}

struct ReadJob {
    subject: Subject,
    token: Token,
    to: Arc<dyn Complete>,
}

impl Weigh for ReadJob {
    fn bytes(&self) -> usize {
        0
    }
}

/// Requests that wait: one writer takes its own in batches, readers take theirs one by one.
pub(super) struct Jobs {
    writes: Queue<WriteJob>,
    reads: Queue<ReadJob>,
}

impl Jobs {
    /// At most so many writes, as many reads, and so many envelope bytes to write.
    pub(super) fn new(requests_max: usize, bytes_max: usize) -> Self {
        Self { writes: Queue::new(requests_max, bytes_max), reads: Queue::new(requests_max, usize::MAX) }
    }

    /// As [`Engine::submit`](super::Engine::submit).
    pub(super) fn submit(&self, request: Request, token: Token, to: &Arc<dyn Complete>) -> Result<(), Busy> {
        let to = Arc::clone(to);
        let read_of = |subject, to| self.reads.push(ReadJob { subject, token, to });
        let read = |room, read, to| read_of(Subject::Room(room, read), to);
        let write = |write, to| self.writes.push(WriteJob { write, token, to });
        match request {
            Request::Load { room } => read(room, Read::Load, to),
            Request::ReadAfter { room, after, bytes_max } => read(room, Read::After { after, bytes_max }, to),
            Request::ReadBefore { room, before, count_max, bytes_max } => {
                read(room, Read::Before { before, count_max, bytes_max }, to)
            }
            Request::Seek { room, time_ms } => read(room, Read::Seek { time_ms }, to),
            Request::ReadHandshake { room, seq } => read(room, Read::Handshake { seq }, to),
            Request::Create { room, meta } => write(Write::Create { room, meta }, to),
            Request::Append(append) => write(Write::Append(append), to),
            Request::Delete { room } => write(Write::Delete { room }, to),
            Request::LoadPackages { device } => read_of(Subject::Packages(device), to),
            Request::StorePackages { device, packages } => write(Write::Packages { device, packages }, to),
        }
    }

    /// Refuses what comes from now on; what waits is still taken.
    pub(super) fn close(&self) {
        self.close_writes();
        self.reads.close();
    }

    /// Refuses writes from now on: their thread is gone.
    pub(super) fn close_writes(&self) {
        self.writes.close();
    }

    /// Puts the writes that wait behind `writes`, up to the limits but at least one, in order. Without `wait` there may be
    /// none. False once closed and drained.
    pub(super) fn take_writes(&self, writes: &mut VecDeque<WriteJob>, count_max: usize, bytes_max: usize, wait: bool) -> bool {
        if wait { self.writes.take(writes, count_max, bytes_max) } else { self.writes.try_take(writes, count_max, bytes_max) }
    }

    /// Answers reads until closed and drained.
    pub(super) fn serve_reads(&self, observer: &dyn Observer, answer: impl Fn(Subject) -> Result<Answer, Failure>) {
        let mut jobs = VecDeque::new();
        while self.reads.take(&mut jobs, 1, usize::MAX) {
            for job in jobs.drain(..) {
                let begun = clock();
                // A panic here could only come from a damaged file; it must not cost the reader.
                let attempt = catch_unwind(AssertUnwindSafe(|| answer(job.subject)));
                let result = attempt.unwrap_or(Err(Failure::Read));
                match &result {
                    Ok(answer) => observer.read(answer_bytes(answer), begun.elapsed()),
                    Err(failure) => observer.failed(*failure),
                }
                job.to.complete(vec![Completion { token: job.token, result }]);
            }
        }
    }
}

fn answer_bytes(answer: &Answer) -> usize {
    match answer {
        Answer::Records(page) => page.records.iter().map(|record| record.envelope.len()).sum(),
        Answer::Packages(packages) => packages.len(),
        Answer::Loaded(_) | Answer::Done | Answer::Sought(_) => 0,
    }
}

/// Tells the observer of a batch of writes, and hands the results out: to each target one call, in order.
pub(super) fn answer(writes: &VecDeque<WriteJob>, results: &[Result<(), Failure>], took: Duration, observer: &dyn Observer) {
    let (mut count, mut bytes) = (0, 0);
    let mut groups: Vec<(&Arc<dyn Complete>, Vec<Completion>)> = Vec::new();
    for (job, result) in writes.iter().zip(results) {
        match result {
            Ok(()) => (count, bytes) = (count + 1, bytes + job.bytes()),
            Err(failure) => observer.failed(*failure),
        }
        let completion = Completion { token: job.token, result: result.map(|()| Answer::Done) };
        match groups.iter_mut().find(|(other, _)| Arc::ptr_eq(other, &job.to)) {
            Some((_, group)) => group.push(completion),
            None => {
                // Mostly there is one target, or a few with equal shares.
                let mut group = Vec::with_capacity(if groups.is_empty() { writes.len() } else { 4 });
                group.push(completion);
                groups.push((&job.to, group));
            }
        }
    }
    if count > 0 {
        observer.committed(count, bytes, took);
    }
    for (to, group) in groups {
        to.complete(group);
    }
}
