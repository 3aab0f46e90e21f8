//! The one integration target: the real binary against real servers, and the house's own rules.

mod architecture;
mod canary;
mod cli;
mod committer;
mod faults;
mod rest;
mod kms_conformance;
mod kms_vault_errors;
mod kms_vault_faults;
mod kms_vault_login;
mod kms_vault_tls;
mod roles;
mod rotation;
mod store_conformance;
mod store_outage;
mod store_pgbouncer;
mod store_postgres;
mod store_sqlite;
mod support;
mod web;
