//! Announcements of incidents. Times are by SQLite's clock, in milliseconds.

use std::time::Duration;

use uuid::Uuid;

use crate::model::{IncidentId, TenantUid};

use super::super::AnnouncementStep;
use super::{SqliteQuery, statements};

statements! {
    /// An attempt that this holder has already taken counts as touched, so that a retry reports
    /// what the first attempt did.
    BEGIN = "
        UPDATE np_byok_announcements SET attempts = ?3, holder = ?4,
            next_attempt_at = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000 + ?5
        WHERE tenant = ?1 AND incident = ?2 AND outcome IS NULL AND (
            (attempts = ?3 - 1 AND next_attempt_at <= CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000)
            OR (attempts = ?3 AND holder = ?4))";

    /// Keeps the holder, so that a retry finds it.
    FAILED = "
        UPDATE np_byok_announcements
        SET next_attempt_at = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000 + ?5
        WHERE tenant = ?1 AND incident = ?2 AND attempts = ?3 AND holder = ?4 AND outcome IS NULL";

    END = "
        UPDATE np_byok_announcements SET outcome = ?5,
            ended_at = COALESCE(ended_at, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000)
        WHERE tenant = ?1 AND incident = ?2 AND attempts = ?3 AND holder = ?4 AND COALESCE(outcome, ?5) = ?5";
}

pub(super) fn announce(
    tenant: &TenantUid,
    incident: IncidentId,
    attempt: u32,
    holder: Uuid,
    step: AnnouncementStep,
) -> SqliteQuery<'_> {
    let bound = |sql| sqlx::query(sql).bind(tenant.0.as_slice()).bind(incident.0).bind(attempt).bind(holder);
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    match step {
        AnnouncementStep::Begin { lease } => bound(BEGIN).bind(micros(lease)),
        AnnouncementStep::Failed { after } => bound(FAILED).bind(micros(after)),
        AnnouncementStep::End(outcome) => bound(END).bind(outcome.as_str()),
    }
}
