//! Everything that is read from the environment, one file a section. No other room reads it. Every section is read
//! whole before anything is reported, so that all mistakes come at once.

mod auth;
mod env;

pub use auth::{Auth, File, Jwt};
pub use env::{Env, Mistake, Reader};
