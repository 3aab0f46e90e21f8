//! Announcements of incidents. Times are by SQLite's clock, in milliseconds.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::model::{IncidentId, TenantUid};

use super::super::row;
use super::super::{AnnouncementReads, Attempt, ReadError, Unannounced};
use super::{Sqlite, SqliteQuery, statements};

statements! {
    /// An attempt that is this holder's already counts, so that a retry says what the first try did.
    BEGIN_ATTEMPT = "
        UPDATE np_byok_announcements SET attempts = ?3, holder = ?4,
            next_attempt_at = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000 + ?5
        WHERE tenant = ?1 AND incident = ?2 AND outcome IS NULL AND (
            (attempts = ?3 - 1 AND next_attempt_at <= CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000)
            OR (attempts = ?3 AND holder = ?4))";

    /// The holder stays, so that a retry finds it.
    AGAIN = "
        UPDATE np_byok_announcements
        SET next_attempt_at = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000 + ?5
        WHERE tenant = ?1 AND incident = ?2 AND attempts = ?3 AND holder = ?4 AND outcome IS NULL";

    END = "
        UPDATE np_byok_announcements SET outcome = ?5,
            ended_at = COALESCE(ended_at, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000)
        WHERE tenant = ?1 AND incident = ?2 AND attempts = ?3 AND holder = ?4 AND COALESCE(outcome, ?5) = ?5";

    DUE = "
        SELECT i.id, i.at, i.key_name, i.key_version, i.was, i.posture, i.class, i.http_status, i.kms_request_id,
            t.uid, t.name, a.attempts, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000 - i.at
        FROM np_byok_announcements a
        JOIN np_byok_incidents i ON i.tenant = a.tenant AND i.id = a.incident
        JOIN np_byok_tenants t ON t.uid = a.tenant
        WHERE a.outcome IS NULL AND a.next_attempt_at <= CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000
            AND NOT EXISTS (
                SELECT 1 FROM np_byok_announcements b
                JOIN np_byok_incidents j ON j.tenant = b.tenant AND j.id = b.incident
                WHERE b.outcome IS NULL AND b.place < a.place AND b.tenant = a.tenant
                    AND j.key_name = i.key_name AND j.key_version = i.key_version)
        ORDER BY a.place LIMIT ?1";
}

pub(super) fn announce(
    tenant: &TenantUid,
    incident: IncidentId,
    attempt: u32,
    holder: Uuid,
    step: Attempt,
) -> SqliteQuery<'_> {
    let bound = |sql| sqlx::query(sql).bind(tenant.0.as_slice()).bind(incident.0).bind(attempt).bind(holder);
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    match step {
        Attempt::Begin { lease } => bound(BEGIN_ATTEMPT).bind(micros(lease)),
        Attempt::Again { after } => bound(AGAIN).bind(micros(after)),
        Attempt::End(outcome) => bound(END).bind(outcome.as_str()),
    }
}

#[async_trait]
impl AnnouncementReads for Sqlite {
    async fn unannounced(&self, limit: u32) -> Result<Vec<Unannounced>, ReadError> {
        self.all(sqlx::query(DUE).bind(limit), row::unannounced).await
    }
}
