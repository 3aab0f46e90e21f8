//! `byok`: field-level encryption for Hasura under a key that the customer holds in their own KMS.
//!
//! The map of the house. Imports run down only; `tests/it/architecture.rs` reads the `use crate::` lines and keeps it so.
//!
//! | row | rooms | what they do |
//! |---|---|---|
//! | 7 | [`cli`] | one file a subcommand; names concrete providers and databases |
//! | 6 | [`server`], [`worker`] | router, layers, graceful stop; timers that call `app` |
//! | 5 | [`graphql`], [`rest`], [`console`] | the fronts: translate, nothing else |
//! | 4 | [`app`] | the use cases: encrypt, decrypt, rotate, audit queries, health |
//! | 3 | [`keyring`] | which DEKs are in memory |
//! | 2 | [`audit`] | what an entry is, and the committer that makes it durable |
//! | 1 | [`store`], [`kms`], [`auth`], [`webhook`], [`archive`] | SQL; the customer's KMS; who calls and what they may do; whom incidents are announced to; where checkpoints are kept |
//! | 0 | [`crypto`], [`model`], [`merkle`], [`config`], [`telemetry`] | pure code, plain types, Merkle trees, the environment, logs and metrics |

pub mod app;
pub mod archive;
pub mod audit;
pub mod auth;
pub mod cli;
pub mod config;
pub mod console;
pub mod crypto;
pub mod graphql;
pub mod keyring;
pub mod kms;
pub mod merkle;
pub mod model;
pub mod reconcile;
pub mod rest;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod verify;
pub mod webhook;
pub mod worker;
