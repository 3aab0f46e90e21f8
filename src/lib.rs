//! `byok`: field-level encryption for Hasura under a key that the customer holds in their own KMS.
//!
//! The map of the house. Imports run down only; `tests/it/architecture.rs` reads the `use crate::` lines and keeps it so.
//!
//! | row | rooms | what they do |
//! |---|---|---|
//! | 7 | [`cli`] | one file a subcommand; names concrete providers and databases |
//! | 6 | [`server`] | router, layers, graceful stop |
//! | 5 | [`graphql`], [`rest`], [`console`] | the fronts: translate, nothing else |
//! | 4 | [`app`] | the use cases: encrypt, decrypt, rotate, audit queries, health |
//! | 3 | [`jobs`] | what runs beside requests |
//! | 3 | [`keyring`], [`admin`] | which DEKs are in memory; what only the owner of the tables may do |
//! | 2 | [`verify`], [`reconcile`] | whether a log holds, and agrees with the KMS's own |
//! | 2 | [`audit`], [`tenancy`] | what an entry is, and the committer that makes it durable; which tenant is served |
//! | 1 | [`store`], [`kms`], [`auth`], [`webhook`], [`archive`] | SQL; the customer's KMS; who calls and what they may do; whom incidents are announced to; where checkpoints are kept |
//! | 0 | [`crypto`], [`model`], [`merkle`], [`config`], [`telemetry`] | pure code, plain types, Merkle trees, the environment, logs and metrics |

pub mod admin;
pub mod app;
pub mod archive;
pub mod audit;
pub mod auth;
pub mod cli;
pub mod config;
pub mod console;
pub mod crypto;
pub mod graphql;
pub mod jobs;
pub mod keyring;
pub mod kms;
pub mod merkle;
pub mod model;
pub mod reconcile;
pub mod rest;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod tenancy;
pub mod verify;
pub mod webhook;
