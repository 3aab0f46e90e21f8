//! `byok`: field-level encryption for Hasura under a key that the customer holds in their own KMS.
//!
//! `ARCHITECTURE.md` is the map: what each room is for, in which row it stands, and three calls followed through the rooms. A
//! room imports from rows below its own; `tests/it/architecture.rs` reads the map, holds this list against it, and fails on
//! an import that runs another way. Each room's own page says what it does and what it must not do.

// Row 10: the command line, which puts concrete providers and databases behind their seams.
pub mod cli;

// Row 9: the server around the fronts.
pub mod server;

// Row 8: the fronts, which translate between a protocol and the use cases.
pub mod console;
pub mod graphql;
pub mod rest;

// Row 7: what one request does.
pub mod app;

// Row 6: what runs beside requests.
pub mod jobs;

// Row 5: the DEKs in memory; what only the owner of the tables may do.
pub mod admin;
pub mod keyring;

// Row 4: what reads a log to find what does not hold.
pub mod reconcile;
pub mod verify;

// Row 3: the log, and whose it is.
pub mod audit;
pub mod tenancy;

// Row 2: the seams to what is outside.
pub mod archive;
pub mod auth;
pub mod kms;
pub mod store;
pub mod telemetry;
pub mod webhook;

// Row 1: the environment; Merkle trees.
pub mod config;
pub mod merkle;

// Row 0: pure code and plain types.
pub mod crypto;
pub mod model;
