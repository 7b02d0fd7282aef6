//! See `evidence::evidence`.

#![no_main]

#[path = "../evidence.rs"]
mod evidence;
#[path = "../group.rs"]
mod group;

libfuzzer_sys::fuzz_target!(|data: &[u8]| evidence::evidence(data));
