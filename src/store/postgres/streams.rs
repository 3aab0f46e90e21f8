//! Streams of the log. Times are by the database's clock.

use std::time::Duration;

use uuid::Uuid;

use crate::model::TenantUid;

use super::super::row::signed;
use super::super::{StreamName, StreamStep};
use super::commit::PgQuery;
use super::statements;

statements! {
    LEASE = "
        WITH leased AS (
            INSERT INTO np_byok_streams AS s (tenant, name, holder, leased_until)
            VALUES ($1, $2, $3, clock_timestamp() + $4 * interval '1 microsecond')
            ON CONFLICT (tenant, name) DO UPDATE SET holder = EXCLUDED.holder, leased_until = EXCLUDED.leased_until
                WHERE s.holder = $3 OR s.leased_until <= clock_timestamp()
            RETURNING 1)
        SELECT count(*) FROM leased";

    /// A stream that is already at the new position counts as touched, so that a retry reports what
    /// the first attempt did.
    ADVANCE = "
        WITH advanced AS (
            UPDATE np_byok_streams SET next = $6, failing_since = NULL,
                leased_until = clock_timestamp() + $4 * interval '1 microsecond'
            WHERE tenant = $1 AND name = $2 AND holder = $3 AND next IN ($5, $6)
            RETURNING 1)
        SELECT count(*) FROM advanced";

    /// Keeps the holder, so that a retry finds it.
    FAIL = "
        WITH failed AS (
            UPDATE np_byok_streams SET leased_until = clock_timestamp(),
                failing_since = COALESCE(failing_since, clock_timestamp())
            WHERE tenant = $1 AND name = $2 AND holder = $3
            RETURNING 1)
        SELECT count(*) FROM failed";
}

/// Builds a statement that returns how many rows it touched.
pub(super) fn step(tenant: TenantUid, name: StreamName, holder: Uuid, step: StreamStep) -> PgQuery {
    let bound = |sql| sqlx::query(sql).bind(tenant.0).bind(name.as_str()).bind(holder);
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    match step {
        StreamStep::Lease { lease } => bound(LEASE).bind(micros(lease)),
        StreamStep::Advance { from, to, lease } => {
            bound(ADVANCE).bind(micros(lease)).bind(signed(from)).bind(signed(to))
        }
        StreamStep::Fail => bound(FAIL),
    }
}
