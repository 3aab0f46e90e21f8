//! The cryptography: pure, synchronous, no I/O.

mod secret;

pub use secret::{Dek, SecretText};
