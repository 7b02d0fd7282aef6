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
    super::{
        Failure, Observer,
        jobs::{self, Jobs, WriteJob},
    },
    Config,
    batch::Batch,
    clock,
    store::Store,
    tables::{self, Error},
};
use crate::core::id::LogId;

/// Tells the free bytes of the file system.
pub(super) type FreeSpace = Box<dyn Fn() -> io::Result<u64> + Send>;

pub(super) struct Writer {
    pub(super) store: Arc<Store>,
    pub(super) jobs: Arc<Jobs>,
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
        let mut writes = VecDeque::new();
        while self.jobs.take_writes(&mut writes, count, bytes, self.sweeping.is_empty()) {
            let begun = clock();
            let results = self.store_batch(&writes);
            jobs::answer(&writes, &results, begun.elapsed(), &*self.observer);
            writes.clear();
        }
    }

    /// Stores the batch; when that fails, in whatever way, nothing is written ever after.
    fn store_batch(&mut self, writes: &VecDeque<WriteJob>) -> Vec<Result<(), Failure>> {
        if !self.store.is_healthy() {
            self.sweeping.clear();
            return vec![Err(Failure::OutcomeUnknown); writes.len()];
        }
        let why = match catch_unwind(AssertUnwindSafe(|| self.try_batch(writes))) {
            Ok(Ok(results)) => return results,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the writer panicked".to_owned(),
        };
        self.store.latch(&why);
        self.sweeping.clear();
        vec![Err(Failure::OutcomeUnknown); writes.len()]
    }

    fn try_batch(&mut self, writes: &VecDeque<WriteJob>) -> Result<Vec<Result<(), Failure>>, Error> {
        let full = !writes.is_empty() && (self.free_space)().is_ok_and(|free| free < self.config.disk_reserve_bytes);
        let txn = self.store.begin_write()?;
        let mut batch = Batch::open(&txn, full)?;
        let mut results = Vec::with_capacity(writes.len());
        for job in writes {
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
