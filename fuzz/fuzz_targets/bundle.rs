#![no_main]

use byok::{audit, crypto};

#[path = "../checks/bundle.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
