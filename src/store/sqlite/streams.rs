//! Streams of the log. Times are by SQLite's clock, in milliseconds.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::model::TenantUid;

use super::super::row::{self, signed};
use super::super::{ReadError, StreamName, StreamReads, StreamRow, StreamStep};
use super::{Sqlite, SqliteQuery, statements};

statements! {
    LEASE = "
        INSERT INTO np_byok_streams (tenant, name, holder, leased_until)
        VALUES (?1, ?2, ?3, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000 + ?4)
        ON CONFLICT (tenant, name) DO UPDATE SET holder = excluded.holder, leased_until = excluded.leased_until
            WHERE holder = ?3 OR leased_until <= CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000";

    /// A stream that already stands where it should counts as touched, so that a retry says what the first try did.
    ADVANCE = "
        UPDATE np_byok_streams SET next = ?6, failing_since = NULL,
            leased_until = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000 + ?4
        WHERE tenant = ?1 AND name = ?2 AND holder = ?3 AND next IN (?5, ?6)";

    /// The holder stays, so that a retry finds it.
    FAIL = "
        UPDATE np_byok_streams SET leased_until = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000,
            failing_since = COALESCE(failing_since, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000)
        WHERE tenant = ?1 AND name = ?2 AND holder = ?3";

    STREAMS = "SELECT name, next, failing_since FROM np_byok_streams WHERE tenant = ?1 ORDER BY name";
}

pub(super) fn step(tenant: &TenantUid, name: StreamName, holder: Uuid, step: StreamStep) -> SqliteQuery<'_> {
    let bound = |sql| sqlx::query(sql).bind(tenant.0.as_slice()).bind(name.as_str()).bind(holder);
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    match step {
        StreamStep::Lease { lease } => bound(LEASE).bind(micros(lease)),
        StreamStep::Advance { from, to, lease } => {
            bound(ADVANCE).bind(micros(lease)).bind(signed(from)).bind(signed(to))
        }
        StreamStep::Fail => bound(FAIL),
    }
}

#[async_trait]
impl StreamReads for Sqlite {
    async fn streams(&self, tenant: TenantUid) -> Result<Vec<StreamRow>, ReadError> {
        self.all(sqlx::query(STREAMS).bind(tenant.0.as_slice()), row::stream).await
    }
}
