//! The one integration target: the real binary against real servers, and the house's own rules.

mod architecture;
mod canary;
mod cli;
mod faults;
mod rest;
mod roles;
mod rotation;
mod store_conformance;
mod store_outage;
mod store_pgbouncer;
mod store_postgres;
mod store_sqlite;
mod support;
mod web;
