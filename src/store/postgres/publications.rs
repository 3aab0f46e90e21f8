//! What was published of a log at each destination, and the logs that have ended.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::model::TenantUid;

use super::super::row::signed;
use super::super::{LogHead, PublicationStep};
use super::commit::PgQuery;
use super::statements;

statements! {
    BEGIN = "
        WITH taken AS (
            INSERT INTO np_byok_publications AS p (tenant, place, holder, next_attempt_at)
            VALUES ($1, $2, $3, now() + $4 * interval '1 microsecond')
            ON CONFLICT (tenant, place) DO UPDATE SET holder = EXCLUDED.holder,
                next_attempt_at = EXCLUDED.next_attempt_at WHERE p.next_attempt_at <= now()
            RETURNING 1)
        SELECT count(*) FROM taken";
    FAILED = "
        WITH failed AS (
            UPDATE np_byok_publications SET failures = failures + 1,
                next_attempt_at = now() + $4 * interval '1 microsecond'
            WHERE tenant = $1 AND place = $2 AND holder = $3 RETURNING 1)
        SELECT count(*) FROM failed";
    DONE = "
        WITH done AS (
            UPDATE np_byok_publications SET failures = 0, log = $5::int8, size = $6, published_at = now(),
                next_attempt_at = now() + $4 * interval '1 microsecond'
            WHERE tenant = $1 AND place = $2 AND holder = $3 RETURNING 1)
        SELECT count(*) FROM done";
    /// Opens another log after this head, and records the head of the ended one. Touches nothing if
    /// the current head is a different one.
    OPEN_LOG = "
        WITH opened AS (
            UPDATE np_byok_heads SET log = $6::int8, first = size, frontier = ''
            WHERE tenant = $1 AND log = $2::int8 AND first = $3 AND size = $4 AND frontier = $5 RETURNING 1
        ), ended AS (
            INSERT INTO np_byok_logs (tenant, log, first, size, frontier)
            SELECT $1, $2::int8, $3, $4, $5 FROM opened
        )
        SELECT count(*) FROM opened";
}

pub(super) fn publish(tenant: TenantUid, place: &Arc<str>, holder: Uuid, step: PublicationStep) -> PgQuery {
    let bound = |sql, pause: Duration| {
        let pause = i64::try_from(pause.as_micros()).unwrap_or(i64::MAX);
        sqlx::query(sql).bind(tenant.0).bind(place.clone()).bind(holder).bind(pause)
    };
    match step {
        PublicationStep::Begin { lease } => bound(BEGIN, lease),
        PublicationStep::Failed { after } => bound(FAILED, after),
        PublicationStep::Done { log, size, after } => {
            bound(DONE, after).bind(i64::from(log)).bind(signed(size))
        }
    }
}

pub(super) fn open_log(tenant: TenantUid, from: &LogHead, log: u32) -> PgQuery {
    sqlx::query(OPEN_LOG)
        .bind(tenant.0)
        .bind(i64::from(from.log))
        .bind(signed(from.first))
        .bind(signed(from.end()))
        .bind(from.frontier.to_bytes())
        .bind(i64::from(log))
}
