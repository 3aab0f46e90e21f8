#![no_main]

use byok::{auth, config, crypto, model};

#[path = "../checks/jwt_config.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
