//! What was published of a log at each destination, and the logs that have ended. Times are by
//! SQLite's clock, in milliseconds.

use std::time::Duration;

use sqlx::SqliteConnection;
use uuid::Uuid;

use crate::model::TenantUid;

use super::super::row::signed;
use super::super::{LogHead, PublicationStep};
use super::{SqliteQuery, statements};

statements! {
    BEGIN = "
        INSERT INTO np_byok_publications (tenant, place, holder, next_attempt_at)
        VALUES (?1, ?2, ?3, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000 + ?4)
        ON CONFLICT (tenant, place) DO UPDATE SET holder = excluded.holder, next_attempt_at = excluded.next_attempt_at
            WHERE next_attempt_at <= CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000";
    FAILED = "
        UPDATE np_byok_publications SET failures = failures + 1,
            next_attempt_at = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000 + ?4
        WHERE tenant = ?1 AND place = ?2 AND holder = ?3";
    DONE = "
        UPDATE np_byok_publications SET failures = 0, log = ?5, size = ?6,
            published_at = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000,
            next_attempt_at = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000 + ?4
        WHERE tenant = ?1 AND place = ?2 AND holder = ?3";
    OPEN_LOG = "
        UPDATE np_byok_heads SET log = ?6, first = size, frontier = x''
        WHERE tenant = ?1 AND log = ?2 AND first = ?3 AND size = ?4 AND frontier = ?5";
    END_LOG = "
        INSERT INTO np_byok_logs (tenant, log, first, size, frontier, ended_at)
        VALUES (?1, ?2, ?3, ?4, ?5, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000)";
}

pub(super) fn publish<'q>(
    tenant: &'q TenantUid,
    place: &'q str,
    holder: Uuid,
    step: PublicationStep,
) -> SqliteQuery<'q> {
    let bound = |sql, pause: Duration| {
        let pause = i64::try_from(pause.as_micros()).unwrap_or(i64::MAX);
        sqlx::query(sql).bind(tenant.0.as_slice()).bind(place).bind(holder).bind(pause)
    };
    match step {
        PublicationStep::Begin { lease } => bound(BEGIN, lease),
        PublicationStep::Failed { after } => bound(FAILED, after),
        PublicationStep::Done { log, size, after } => bound(DONE, after).bind(log).bind(signed(size)),
    }
}

/// Opens another log after this head, and records where the previous one ended. Touches nothing if
/// the current head is another one.
pub(super) async fn open_log(
    connection: &mut SqliteConnection,
    tenant: &TenantUid,
    from: &LogHead,
    log: u32,
) -> Result<u64, sqlx::Error> {
    let bound = |sql| {
        let query = sqlx::query(sql).bind(tenant.0.as_slice()).bind(from.log).bind(signed(from.first));
        query.bind(signed(from.end())).bind(from.frontier.to_bytes())
    };
    let opened = bound(OPEN_LOG).bind(log).execute(&mut *connection).await?.rows_affected();
    if opened == 1 {
        bound(END_LOG).execute(connection).await?;
    }
    Ok(opened)
}
