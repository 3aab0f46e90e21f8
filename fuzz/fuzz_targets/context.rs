#![no_main]

use byok::crypto;

#[path = "../checks/context.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
