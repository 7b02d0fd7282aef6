//! See `handed::handed`.

#![no_main]

#[path = "../group.rs"]
mod group;
#[path = "../handed.rs"]
mod handed;

libfuzzer_sys::fuzz_target!(|data: &[u8]| handed::handed(data));
