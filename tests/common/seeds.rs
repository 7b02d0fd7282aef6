//! Seeded schedules: so many in an ordinary run, as many as one likes on demand.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

/// How often a long run says where it is.
const TELL_EVERY: u64 = 10_000;

/// Runs the seeds from 0 up to `count`; or those that the environment asks for: `WAXWING_TEST_SEED=n` is that one, and in
/// `variable` stands how many (`n`), or which (`from..to`).
pub(crate) fn seeded(variable: &str, count: u64, run: impl Fn(u64)) {
    let asked = std::env::var(variable).ok().map(|text| parse(&text).expect("a number, or from..to"));
    let seeds = match std::env::var("WAXWING_TEST_SEED") {
        Ok(seed) => parse(&seed).map(|Range { end, .. }| end..end + 1).expect("a number"),
        Err(_) => asked.clone().unwrap_or(0..count),
    };
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
            eprintln!("run again with WAXWING_TEST_SEED={seed}");
            resume_unwind(panic);
        }
        if asked.is_some() && (seed + 1).is_multiple_of(TELL_EVERY) {
            eprintln!("{}: seeds up to {seed}", std::thread::current().name().unwrap_or_default());
        }
    }
}

fn parse(text: &str) -> Option<Range<u64>> {
    match text.split_once("..") {
        Some((from, to)) => Some(from.parse().ok()?..to.parse().ok()?),
        None => Some(0..text.parse().ok()?),
    }
}
