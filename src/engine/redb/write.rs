//! The one writer: takes all that queued while the last batch was synced, stores it in one transaction, syncs once, and
//! completes it in order.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use redb::ReadableTable as _;

use super::{
    super::{Answer, Complete, Completion, Failure, Observer, Token, queue::Queue},
    Config,
    batch::Batch,
    clock,
    store::Store,
    tables::{self, Error},
};
use crate::core::{
    id::{LogId, RoomId},
    log::{Append, LogMeta},
};

/// What the writer does.
#[derive(Debug)]
pub(super) enum Write {
    Create { room: RoomId, meta: LogMeta },
    Append(Append),
    Delete { room: RoomId },
}

/// A write, and where its result goes.
pub(super) struct WriteJob {
    pub(super) write: Write,
    pub(super) token: Token,
    pub(super) to: Arc<dyn Complete>,
}

impl Write {
    /// Envelope bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Append(append) => append.envelope.len(),
            Self::Create { .. } | Self::Delete { .. } => 0,
        }
    }
}

/// Tells the free bytes of the file system.
pub(super) type FreeSpace = Box<dyn Fn() -> io::Result<u64> + Send>;

pub(super) struct Writer {
    pub(super) store: Arc<Store>,
    pub(super) queue: Arc<Queue<WriteJob>>,
    pub(super) config: Config,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) free_space: FreeSpace,
    /// Deleted logs whose rows are still to be swept.
    pub(super) sweeping: VecDeque<LogId>,
}

/// The logs whose sweeping a crash or a stop has interrupted.
pub(super) fn interrupted_sweeps(store: &Store) -> Result<VecDeque<LogId>, Error> {
    store.read(|txn| txn.open_table(tables::DELETING)?.iter()?.map(|entry| Ok(LogId(*entry?.0.value()))).collect())
}

impl Writer {
    /// Writes until the queue is closed and drained. Sweeping that is left over goes on when the store is opened again.
    pub(super) fn run(mut self) {
        let (count, bytes) = (self.config.batch_requests_max, self.config.batch_bytes_max);
        loop {
            let sweeping = !self.sweeping.is_empty();
            let taken = if sweeping { self.queue.try_take(count, bytes) } else { self.queue.take(count, bytes) };
            let Some(jobs) = taken else { return };
            self.turn(jobs);
        }
    }

    fn turn(&mut self, jobs: Vec<WriteJob>) {
        let begun = clock();
        let results = self.store_batch(&jobs);
        let stored = |(job, result): (&WriteJob, &Result<(), Failure>)| result.is_ok().then(|| job.write.bytes());
        let sizes: Vec<usize> = jobs.iter().zip(&results).filter_map(stored).collect();
        if !sizes.is_empty() {
            self.observer.committed(sizes.len(), sizes.iter().sum(), begun.elapsed());
        }
        for failure in results.iter().filter_map(|result| result.err()) {
            self.observer.failed(failure);
        }
        complete(jobs, results);
    }

    /// Stores the batch; when that fails, in whatever way, nothing is written ever after.
    fn store_batch(&mut self, jobs: &[WriteJob]) -> Vec<Result<(), Failure>> {
        if !self.store.is_healthy() {
            self.sweeping.clear();
            return vec![Err(Failure::OutcomeUnknown); jobs.len()];
        }
        let why = match catch_unwind(AssertUnwindSafe(|| self.try_batch(jobs))) {
            Ok(Ok(results)) => return results,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the writer panicked".to_owned(),
        };
        self.store.latch(&why);
        self.sweeping.clear();
        vec![Err(Failure::OutcomeUnknown); jobs.len()]
    }

    fn try_batch(&mut self, jobs: &[WriteJob]) -> Result<Vec<Result<(), Failure>>, Error> {
        let full = !jobs.is_empty() && (self.free_space)().is_ok_and(|free| free < self.config.disk_reserve_bytes);
        let txn = self.store.begin_write()?;
        let mut batch = Batch::open(&txn, full)?;
        let mut results = Vec::with_capacity(jobs.len());
        for job in jobs {
            results.push(batch.apply(&job.write)?);
        }
        let outcome = batch.finish(self.sweeping.front().copied())?;
        if outcome.changed {
            txn.commit()?
        } else {
            txn.abort()?
        }
        self.sweeping.extend(outcome.deleted);
        if outcome.swept {
            self.sweeping.pop_front();
        }
        Ok(results)
    }
}

/// Hands the results out: to each target one call, in order.
fn complete(jobs: Vec<WriteJob>, results: Vec<Result<(), Failure>>) {
    let mut groups: Vec<(Arc<dyn Complete>, Vec<Completion>)> = Vec::new();
    for (job, result) in jobs.into_iter().zip(results) {
        let completion = Completion { token: job.token, result: result.map(|()| Answer::Done) };
        match groups.iter_mut().find(|(to, _)| Arc::ptr_eq(to, &job.to)) {
            Some((_, group)) => group.push(completion),
            None => groups.push((job.to, vec![completion])),
        }
    }
    for (to, group) in groups {
        to.complete(group);
    }
}
