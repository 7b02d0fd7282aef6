//! See `announcement::announcement`.

#![no_main]

#[path = "../announcement.rs"]
mod announcement;
#[path = "../group.rs"]
mod group;

libfuzzer_sys::fuzz_target!(|data: &[u8]| announcement::announcement(data));
