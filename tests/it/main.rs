//! Tests against real servers. `scripts/servers start` starts them; `scripts/test` does so by itself.

mod store_conformance;
mod store_outage;
mod store_pgbouncer;
mod store_postgres;
mod store_sqlite;
mod support;
