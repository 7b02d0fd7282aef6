//! A queue with a limit in requests and in bytes: who submits is refused, never held up.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::Busy;
use crate::memory;

/// Who waits gives back the memory that it does not need after so long, and so often: what others still had use for by then comes later.
const REST: Duration = Duration::from_secs(2);
const RESTS: u32 = 4;

/// What waits in a queue.
pub(super) trait Weigh {
    /// What counts towards the limit in bytes.
    fn bytes(&self) -> usize;
}

#[derive(Debug)]
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
    requests_max: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct State<T> {
    jobs: VecDeque<T>,
    bytes: usize,
    /// Threads that wait for a job, and how many of them have been woken: a wake-up is a system call, which most pushes need
    /// not make.
    waiting: usize,
    woken: usize,
    closed: bool,
}

impl<T: Weigh> Queue<T> {
    pub(super) fn new(requests_max: usize, bytes_max: usize) -> Self {
        let state = State { jobs: VecDeque::new(), bytes: 0, waiting: 0, woken: 0, closed: false };
        Self { state: Mutex::new(state), ready: Condvar::new(), requests_max, bytes_max }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code panics while it holds the lock half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job; an empty queue takes one of any size.
    pub(super) fn push(&self, job: T) -> Result<(), Busy> {
        let bytes = job.bytes();
        let mut state = self.lock();
        let full = state.jobs.len() >= self.requests_max || state.bytes.saturating_add(bytes) > self.bytes_max;
        if state.closed || (full && !state.jobs.is_empty()) {
            return Err(Busy);
        }
        state.bytes += bytes;
        state.jobs.push_back(job);
        let wakes = state.waiting > state.woken;
        state.woken += usize::from(wakes);
        drop(state);
        if wakes {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Waits for work and puts what is there behind `jobs`, up to the limits but at least one. False once closed and drained.
    pub(super) fn take(&self, jobs: &mut VecDeque<T>, count_max: usize, bytes_max: usize) -> bool {
        let mut state = self.lock();
        let mut rests = 0;
        while state.jobs.is_empty() {
            if state.closed {
                return false;
            }
            state.waiting += 1;
            let rested;
            (state, rested) = if rests < RESTS {
                let (state, waited) = self.ready.wait_timeout(state, REST).unwrap_or_else(PoisonError::into_inner);
                (state, waited.timed_out())
            } else {
                (self.ready.wait(state).unwrap_or_else(PoisonError::into_inner), false)
            };
            state.waiting -= 1;
            // One that woke by itself counts as woken too: then somebody is woken once too often, never too seldom.
            state.woken = state.woken.saturating_sub(1);
            if rested && state.jobs.is_empty() {
                drop(state);
                rests += 1;
                memory::give_back();
                state = self.lock();
            }
        }
        state.drain(jobs, count_max, bytes_max);
        true
    }

    /// As [`Queue::take`] without waiting: nothing when nothing is there, false once closed and drained.
    pub(super) fn try_take(&self, jobs: &mut VecDeque<T>, count_max: usize, bytes_max: usize) -> bool {
        let mut state = self.lock();
        if state.jobs.is_empty() && state.closed {
            return false;
        }
        state.drain(jobs, count_max, bytes_max);
        true
    }

    /// Refuses what comes from now on; what is queued is still taken.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
    }
}

impl<T: Weigh> State<T> {
    fn drain(&mut self, taken: &mut VecDeque<T>, count_max: usize, bytes_max: usize) {
        if taken.is_empty() && self.jobs.len() <= count_max && self.bytes <= bytes_max {
            // Nothing is moved, and the emptied space is used again.
            std::mem::swap(&mut self.jobs, taken);
            self.bytes = 0;
            return;
        }
        let (mut count, mut bytes) = (0, 0_usize);
        while let Some(job) = self.jobs.front() {
            bytes = bytes.saturating_add(job.bytes());
            if count > 0 && (count >= count_max || bytes > bytes_max) {
                break;
            }
            let Some(job) = self.jobs.pop_front() else { break };
            self.bytes -= job.bytes();
            count += 1;
            taken.push_back(job);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    /// A number, and its bytes.
    #[derive(Debug, PartialEq, Eq)]
    struct Job(u32, usize);

    impl Weigh for Job {
        fn bytes(&self) -> usize {
            self.1
        }
    }

    fn take(queue: &Queue<Job>, count_max: usize, bytes_max: usize) -> Option<Vec<u32>> {
        let mut jobs = VecDeque::new();
        queue.take(&mut jobs, count_max, bytes_max).then(|| jobs.into_iter().map(|job| job.0).collect())
    }

    #[test]
    fn full_means_refused_and_batches_keep_order_and_limits() {
        let queue = Queue::new(3, 100);
        assert_eq!(queue.push(Job(1, 1000)), Ok(()), "an empty queue takes one of any size");
        assert_eq!(queue.push(Job(2, 1)), Err(Busy));
        assert_eq!(take(&queue, 10, 10), Some(vec![1]));
        for job in 1..=3 {
            queue.push(Job(job, 30)).unwrap();
        }
        assert_eq!(queue.push(Job(4, 0)), Err(Busy));
        assert_eq!(take(&queue, 10, 60), Some(vec![1, 2]));
        let mut jobs = VecDeque::new();
        assert!(queue.try_take(&mut jobs, 10, 60) && queue.try_take(&mut jobs, 10, 60));
        assert_eq!(jobs, [Job(3, 30)]);
        queue.push(Job(5, 0)).unwrap();
        queue.close();
        assert_eq!(queue.push(Job(6, 0)), Err(Busy));
        assert!(queue.try_take(&mut jobs, 1, 1), "behind what was taken before");
        assert_eq!(jobs, [Job(3, 30), Job(5, 0)]);
        assert!(take(&queue, 1, 1).is_none() && !queue.try_take(&mut jobs, 1, 1));
    }

    #[test]
    fn nobody_sleeps_while_there_is_work() {
        let queue = Arc::new(Queue::new(4, usize::MAX));
        let takers: Vec<_> = (0..3)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || std::iter::from_fn(|| take(&queue, 1, usize::MAX)).flatten().count())
            })
            .collect();
        for job in 0..10_000 {
            // A queue that stays full would hang here.
            while queue.push(Job(job, 0)).is_err() {
                thread::yield_now();
            }
        }
        queue.close();
        assert_eq!(takers.into_iter().map(|taker| taker.join().unwrap()).sum::<usize>(), 10_000);
    }
}
