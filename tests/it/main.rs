//! Tests against real servers. `scripts/servers start` starts them; `scripts/test` does so by itself.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod store_conformance;
mod store_outage;
mod store_pgbouncer;
mod store_postgres;
mod store_sqlite;
mod support;
