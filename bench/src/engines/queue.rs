//! Natural batching: who stores takes all that queued while the last batch was stored, and may take what queues while the next one
//! is prepared.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use waxwing::{
    core::log::Append,
    engine::{Answer, Busy, Complete, Completion, Failure, Request, Token},
};

/// Appends that may wait; the driver never has so many under way.
const QUEUED_MAX: usize = 1 << 16;

/// An append, and who waits for it.
pub struct Job {
    pub append: Append,
    pub token: Token,
    pub to: Arc<dyn Complete>,
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    closed: bool,
}

/// The appends that wait.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    ready: Condvar,
}

impl Queue {
    /// Queues an append. Rooms need no making here, and nothing else is answered.
    pub fn submit(&self, request: Request, token: Token, to: &Arc<dyn Complete>) -> Result<(), Busy> {
        let append = match request {
            Request::Append(append) => append,
            Request::Create { .. } => {
                to.complete(vec![Completion { token, result: Ok(Answer::Done) }]);
                return Ok(());
            }
            _ => {
                to.complete(vec![Completion { token, result: Err(Failure::NotFound) }]);
                return Ok(());
            }
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed || state.jobs.len() >= QUEUED_MAX {
            return Err(Busy);
        }
        state.jobs.push(Job { append, token, to: Arc::clone(to) });
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// Waits for appends and moves all of them into `jobs`; false once closed and drained.
    pub fn take(&self, jobs: &mut Vec<Job>) -> bool {
        jobs.clear();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.jobs.is_empty() {
            if state.closed {
                return false;
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut state.jobs, jobs);
        true
    }

    /// Moves the appends that wait behind those in `jobs`.
    pub fn take_more(&self, jobs: &mut Vec<Job>) {
        jobs.append(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).jobs);
    }

    pub fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.ready.notify_all();
    }
}

/// A queue and the thread that stores from it. Dropping it stores what is queued, and ends.
pub struct Worker {
    pub queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// `store` makes a batch durable, to which it may add from the queue.
    pub fn start(mut store: impl FnMut(&mut Vec<Job>, &Queue) -> anyhow::Result<()> + Send + 'static) -> Self {
        let queue = Arc::new(Queue::default());
        let jobs = Arc::clone(&queue);
        let thread = thread::spawn(move || {
            let mut batch = Vec::new();
            while jobs.take(&mut batch) {
                let stored = store(&mut batch, &jobs);
                if let Err(error) = &stored {
                    eprintln!("a batch was not stored: {error:#}");
                }
                let failed = stored.is_err();
                complete(&batch, failed);
            }
        });
        Self { queue, thread: Some(thread) }
    }
}

/// One call for a whole batch: in these runs all completions go to the same driver.
fn complete(batch: &[Job], failed: bool) {
    let Some(first) = batch.first() else { return };
    let result = || if failed { Err(Failure::OutcomeUnknown) } else { Ok(Answer::Done) };
    first.to.complete(batch.iter().map(|job| Completion { token: job.token, result: result() }).collect());
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
