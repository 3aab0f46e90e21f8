//! Announcements of incidents. Times are by the database's clock.

use std::time::Duration;

use uuid::Uuid;

use crate::model::{IncidentId, TenantUid};

use super::super::AnnouncementStep;
use super::commit::PgQuery;
use super::statements;

statements! {
    /// An attempt that this holder has already taken counts as touched, so that a retry reports
    /// what the first attempt did.
    BEGIN = "
        WITH begun AS (
            UPDATE np_byok_announcements
            SET attempts = $3, holder = $4, next_attempt_at = clock_timestamp() + $5 * interval '1 microsecond'
            WHERE tenant = $1 AND incident = $2 AND outcome IS NULL AND (
                (attempts = $3 - 1 AND next_attempt_at <= clock_timestamp()) OR (attempts = $3 AND holder = $4))
            RETURNING 1)
        SELECT count(*) FROM begun";

    /// Keeps the holder, so that a retry finds it.
    FAILED = "
        WITH failed AS (
            UPDATE np_byok_announcements SET next_attempt_at = clock_timestamp() + $5 * interval '1 microsecond'
            WHERE tenant = $1 AND incident = $2 AND attempts = $3 AND holder = $4 AND outcome IS NULL
            RETURNING 1)
        SELECT count(*) FROM failed";

    END = "
        WITH ended AS (
            UPDATE np_byok_announcements SET outcome = $5, ended_at = COALESCE(ended_at, clock_timestamp())
            WHERE tenant = $1 AND incident = $2 AND attempts = $3 AND holder = $4 AND COALESCE(outcome, $5) = $5
            RETURNING 1)
        SELECT count(*) FROM ended";
}

/// Builds a statement that returns how many rows it touched.
pub(super) fn announce(
    tenant: TenantUid,
    incident: IncidentId,
    attempt: u32,
    holder: Uuid,
    step: AnnouncementStep,
) -> PgQuery {
    let bound = |sql| {
        let attempt = i32::try_from(attempt).unwrap_or(i32::MAX);
        sqlx::query(sql).bind(tenant.0).bind(incident.0).bind(attempt).bind(holder)
    };
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    match step {
        AnnouncementStep::Begin { lease } => bound(BEGIN).bind(micros(lease)),
        AnnouncementStep::Failed { after } => bound(FAILED).bind(micros(after)),
        AnnouncementStep::End(outcome) => bound(END).bind(outcome.as_str()),
    }
}
