//! See `group::group`.

#![no_main]

#[path = "../group.rs"]
mod group;

libfuzzer_sys::fuzz_target!(|data: &[u8]| group::group(data));
