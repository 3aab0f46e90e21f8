//! Streams of the log. Times are by SQLite's clock, in milliseconds.

use std::time::Duration;

use uuid::Uuid;

use crate::model::TenantUid;

use super::super::row::signed;
use super::super::{StreamName, StreamStep};
use super::{SqliteQuery, statements};

statements! {
    LEASE = "
        INSERT INTO np_byok_streams (tenant, name, holder, leased_until)
        VALUES (?1, ?2, ?3, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000 + ?4)
        ON CONFLICT (tenant, name) DO UPDATE SET holder = excluded.holder, leased_until = excluded.leased_until
            WHERE holder = ?3 OR leased_until <= CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000";

    /// A stream that is already at the new position counts as touched, so that a retry reports what
    /// the first attempt did.
    ADVANCE = "
        UPDATE np_byok_streams SET next = ?6, failing_since = NULL,
            leased_until = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000 + ?4
        WHERE tenant = ?1 AND name = ?2 AND holder = ?3 AND next IN (?5, ?6)";

    /// Keeps the holder, so that a retry finds it.
    FAIL = "
        UPDATE np_byok_streams SET leased_until = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000,
            failing_since = COALESCE(failing_since, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000)
        WHERE tenant = ?1 AND name = ?2 AND holder = ?3";
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
