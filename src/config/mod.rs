//! Everything that is read from the environment, one file a section. No other room reads it. Every section is read
//! whole before anything is reported, so that all mistakes come at once.

mod env;
mod kms;
mod limits;

pub use env::{Env, Mistake, Reader};
pub use kms::{ClientCertificate, KeyVersionStrategy, Kms, SecretSource, VaultLogin, VaultSettings};
pub use limits::Limits;
