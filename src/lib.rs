//! `byok`: field-level encryption for Hasura under a key that the customer holds in their own KMS.
//!
//! `ARCHITECTURE.md` is the map. It describes what each room is for and in which row it is, and
//! follows three calls through the rooms. A room imports only from rows below its own.
//! `tests/it/architecture.rs` reads the map, checks this list against it, and fails on an import in
//! another direction. The documentation of each room says what it does and what it must not do.

// Row 10: the command line, which connects the code to concrete providers and databases.
pub mod cli;

// Row 9: the server that runs the front ends.
pub mod server;

// Row 8: the front ends, which translate between a protocol and the use cases.
pub mod console;
pub mod graphql;
pub mod rest;

// Row 7: the handling of one request.
pub mod app;

// Row 6: background work.
pub mod jobs;

// Row 5: the DEKs in memory; operations that only the owner of the tables may perform.
pub mod admin;
pub mod keyring;

// Row 4: verification of logs.
pub mod reconcile;
pub mod verify;

// Row 3: the log, and the tenant that owns it.
pub mod audit;
pub mod tenancy;

// Row 2: the interfaces to external systems.
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
