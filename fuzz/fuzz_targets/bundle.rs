#![no_main]

use byok::{audit, crypto, verify};

#[path = "../checks/bundle.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
