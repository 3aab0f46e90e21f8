//! Everything that is read from the environment, one file a section. No other room reads it. Every section is read
//! whole before anything is reported, so that all mistakes come at once.

mod dek_cache;
mod env;
mod kms;
mod limits;
mod server;
mod store;
mod telemetry;

pub use env::{Env, Mistake, Reader};
pub use kms::{ClientCertificate, KeyVersionStrategy, Kms, SecretSource, VaultLogin, VaultSettings};
pub use dek_cache::DekCache;
pub use limits::Limits;
pub use server::{Server, Tls};
pub use store::{Engine, Postgres, Store};
pub use telemetry::{LogFormat, Telemetry};
