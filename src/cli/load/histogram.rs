//! Latencies in buckets that are at most 3 % wide. Any number of tasks may count into it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Each power of two is divided into so many buckets.
const STEPS: u64 = 32;
pub(super) const BUCKETS: usize = 64 * 32;

/// Counts durations by microseconds.
#[derive(Debug)]
pub(super) struct Histogram {
    buckets: Vec<AtomicU64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }
}

/// The bucket of a value: values below `STEPS` have one each, larger ones share.
pub(super) fn bucket(micros: u64) -> u64 {
    match micros.checked_ilog2() {
        Some(power) if micros >= STEPS => {
            let shift = u64::from(power) - u64::from(STEPS.ilog2());
            shift * STEPS + (micros >> shift)
        }
        _ => micros,
    }
}

/// The largest value of a bucket.
const fn upper(bucket: u64) -> u64 {
    if bucket < 2 * STEPS {
        return bucket;
    }
    let shift = bucket / STEPS - 1;
    // The last bucket ends with the last value: the sum wraps to zero, and back.
    ((bucket % STEPS + STEPS + 1) << shift).wrapping_sub(1)
}

impl Histogram {
    /// Counts one.
    pub(super) fn add(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        if let Some(count) = usize::try_from(bucket(micros)).ok().and_then(|bucket| self.buckets.get(bucket)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        self.buckets.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    }

    /// Microseconds that this share of all did not exceed; `None` when there are none. 1.0 is the maximum.
    pub(super) fn quantile(&self, share: f64) -> Option<u64> {
        let counts: Vec<u64> = self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        quantile(&counts, share)
    }
}

/// The same of any counts by [`bucket`].
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are far below 2^52"
)]
pub(super) fn quantile(counts: &[u64], share: f64) -> Option<u64> {
    let total: u64 = counts.iter().sum();
    let mut left = ((total as f64 * share).ceil() as u64).max(1);
    for (bucket, count) in (0..).zip(counts) {
        if *count >= left {
            return Some(upper(bucket));
        }
        left -= count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_ordered_and_narrow() {
        let mut last = 0;
        for micros in (0..5000).chain([1 << 20, (1 << 40) + 7, u64::MAX]) {
            let bucket = bucket(micros);
            assert!(bucket >= last && upper(bucket) >= micros, "{micros}");
            assert!(upper(bucket) - micros <= micros / STEPS, "{micros}");
            last = bucket;
        }
    }

    #[test]
    fn quantiles_are_of_what_was_counted() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        (1..=1000).for_each(|micros| histogram.add(Duration::from_micros(micros)));
        let close =
            |share, expected: u64| histogram.quantile(share).is_some_and(|found| found.abs_diff(expected) <= expected / 32);
        assert!(close(0.5, 500) && close(0.99, 990) && close(1.0, 1000));
        histogram.clear();
        assert_eq!(histogram.quantile(1.0), None);
    }
}
