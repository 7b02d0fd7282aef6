//! A queue with a limit in requests and in bytes: who submits is refused, never held up.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use super::Busy;

#[derive(Debug)]
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
    requests_max: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct State<T> {
    jobs: VecDeque<(T, usize)>,
    bytes: usize,
    closed: bool,
}

impl<T> Queue<T> {
    pub(super) fn new(requests_max: usize, bytes_max: usize) -> Self {
        let state = State { jobs: VecDeque::new(), bytes: 0, closed: false };
        Self { state: Mutex::new(state), ready: Condvar::new(), requests_max, bytes_max }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code panics while it holds the lock half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job; an empty queue takes one of any size.
    pub(super) fn push(&self, job: T, bytes: usize) -> Result<(), Busy> {
        let mut state = self.lock();
        let full = state.jobs.len() >= self.requests_max || state.bytes.saturating_add(bytes) > self.bytes_max;
        if state.closed || (full && !state.jobs.is_empty()) {
            return Err(Busy);
        }
        state.bytes += bytes;
        state.jobs.push_back((job, bytes));
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// Waits for work and takes what is there, up to the limits but at least one. `None` once closed and drained.
    pub(super) fn take(&self, count_max: usize, bytes_max: usize) -> Option<Vec<T>> {
        let mut state = self.lock();
        while state.jobs.is_empty() {
            if state.closed {
                return None;
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Some(state.drain(count_max, bytes_max))
    }

    /// As [`Queue::take`] without waiting: empty when nothing is there, `None` once closed and drained.
    pub(super) fn try_take(&self, count_max: usize, bytes_max: usize) -> Option<Vec<T>> {
        let mut state = self.lock();
        if state.jobs.is_empty() && state.closed { None } else { Some(state.drain(count_max, bytes_max)) }
    }

    /// Refuses what comes from now on; what is queued is still taken.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
    }
}

impl<T> State<T> {
    fn drain(&mut self, count_max: usize, bytes_max: usize) -> Vec<T> {
        let mut taken = Vec::new();
        let mut bytes = 0_usize;
        while let Some((_, size)) = self.jobs.front() {
            bytes = bytes.saturating_add(*size);
            if !taken.is_empty() && (taken.len() >= count_max || bytes > bytes_max) {
                break;
            }
            let Some((job, size)) = self.jobs.pop_front() else { break };
            self.bytes -= size;
            taken.push(job);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_means_refused_and_batches_keep_order_and_limits() {
        let queue = Queue::new(3, 100);
        assert_eq!(queue.push(1, 1000), Ok(()), "an empty queue takes one of any size");
        assert_eq!(queue.push(2, 1), Err(Busy));
        assert_eq!(queue.take(10, 10), Some(vec![1]));
        for job in 1..=3 {
            queue.push(job, 30).unwrap();
        }
        assert_eq!(queue.push(4, 0), Err(Busy));
        assert_eq!(queue.take(10, 60), Some(vec![1, 2]));
        assert_eq!(queue.try_take(10, 60), Some(vec![3]));
        assert_eq!(queue.try_take(10, 60), Some(vec![]));
        queue.push(5, 0).unwrap();
        queue.close();
        assert_eq!(queue.push(6, 0), Err(Busy));
        assert_eq!(queue.take(1, 1), Some(vec![5]));
        assert_eq!(queue.take(1, 1), None);
    }
}
