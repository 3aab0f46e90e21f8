//! Announces incidents to the operator's webhook: at least once each, by one replica at a time, and
//! those of one key version in order. A tenant whose webhook hangs delays no other tenant's. The
//! database holds which announcements are due and their results, so any replica can continue after
//! a kill.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::model::TenantUid;
use crate::store::{AnnouncementOutcome, AnnouncementStep, Batch, Change, DueAnnouncement, ReadError};
use crate::tenancy::{NotServed, Turn, Turns};
use crate::webhook::{Delivery, Webhook};

use super::Jobs;

/// How long a replica that has died keeps an announcement from the others. Longer than an attempt
/// and its two commits.
const LEASE: Duration = Duration::from_secs(30);
/// The pause after the first failed attempt; it doubles after each.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);
/// The age from which an incident is no longer announced. Without this limit, a failing one could
/// block those after it forever.
const PATIENCE: Duration = Duration::from_secs(3 * 24 * 3_600);
/// The number of announcements that are read at once, of all tenants.
const PAGE: u32 = 256;

/// The database is out of reach, or there is no webhook. The tenant's next turn tries again.
struct Stalled;

impl Jobs {
    /// Announces what is due, each tenant's in a task of its own. Does nothing without a webhook.
    /// `holder` names this replica.
    pub(super) async fn announce_incidents(
        self: &Arc<Self>,
        turns: &mut Turns<TenantUid>,
        holder: Uuid,
        stop: &CancellationToken,
    ) {
        if self.tenants.settings().webhook.is_none() {
            return;
        }
        let Ok(due) = self.store.due_announcements(PAGE).await else { return };
        let tenants: HashSet<TenantUid> = due.into_iter().map(|due| due.tenant.uid).collect();
        turns.start(tenants.into_iter().map(|tenant| {
            let (jobs, stop) = (self.clone(), stop.clone());
            (tenant, move |turn| async move { jobs.announce_of(tenant, holder, &turn, &stop).await })
        }));
    }

    /// Announces what is due of one tenant, one after the other, until nothing is due, the turn is
    /// over, or `stop` is cancelled.
    async fn announce_of(&self, tenant: TenantUid, holder: Uuid, turn: &Turn, stop: &CancellationToken) {
        loop {
            let Ok(mut due) = self.store.due_announcements(PAGE).await else { return };
            due.retain(|due| due.tenant.uid == tenant);
            if due.is_empty() {
                return;
            }
            for one in &due {
                let ends = stop.is_cancelled() || turn.is_over();
                if ends || self.announce(one, holder, stop).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn announce(
        &self,
        due: &DueAnnouncement,
        holder: Uuid,
        stop: &CancellationToken,
    ) -> Result<(), Stalled> {
        let DueAnnouncement { tenant, incident, attempts, age } = due;
        let webhook = self.webhook_of(tenant.uid).await?;
        let attempt = attempts.saturating_add(1);
        let commit = async |step| {
            let change = Change::Announce { incident: incident.id, attempt, holder, step };
            self.commit_step(tenant.uid, change).await
        };
        if !commit(AnnouncementStep::Begin { lease: LEASE }).await? {
            // Another replica was first.
            return Ok(());
        }
        if *age > PATIENCE {
            error!(incident = %incident.id, attempts, "an incident could not be announced in time: given up");
            return commit(AnnouncementStep::End(AnnouncementOutcome::GivenUp)).await.map(drop);
        }
        let delivery = tokio::select! {
            delivery = webhook.announce(&tenant.name, incident, self.clock.now()) => delivery,
            // The next replica sends it again, because it is unknown whether it arrived.
            () = stop.cancelled() => return commit(AnnouncementStep::Failed { after: Duration::ZERO }).await.map(drop),
        };
        let status = match delivery {
            Delivery::Taken => {
                info!(incident = %incident.id, attempt, "an incident was announced");
                return commit(AnnouncementStep::End(AnnouncementOutcome::Announced)).await.map(drop);
            }
            Delivery::Gone => {
                warn!(incident = %incident.id, attempt, "the webhook refuses an incident for good (410): it is not sent again");
                return commit(AnnouncementStep::End(AnnouncementOutcome::Refused)).await.map(drop);
            }
            Delivery::Status(status) => status.to_string(),
            Delivery::Unreachable => "unreachable".to_owned(),
            Delivery::Timeout => "timeout".to_owned(),
        };
        let after = pause(attempt);
        warn!(incident = %incident.id, attempt, status, retry_in = after.as_secs(), "an incident could not be announced");
        commit(AnnouncementStep::Failed { after }).await.map(drop)
    }

    /// Returns the webhook that hears of a tenant's incidents. The deployment's hears of those of a
    /// tenant that is not served, or whose rows cannot be read: it must not keep the others' back.
    async fn webhook_of(&self, tenant: TenantUid) -> Result<Arc<Webhook>, Stalled> {
        let settings = match self.tenants.with(tenant).await {
            Ok(runtime) => runtime.settings.clone(),
            Err(NotServed::Store(ReadError::Unavailable | ReadError::Busy)) => return Err(Stalled),
            Err(
                NotServed::Unknown
                | NotServed::Locked
                | NotServed::NoKey
                | NotServed::Store(ReadError::Rejected | ReadError::Malformed),
            ) => self.tenants.settings(),
        };
        settings.webhook.clone().ok_or(Stalled)
    }

    /// Commits the change, and returns whether it was applied. A commit whose outcome is unknown is
    /// not repeated: the announcement is due again when the lease ends.
    async fn commit_step(&self, tenant: TenantUid, change: Change) -> Result<bool, Stalled> {
        let changes = vec![change];
        let batch = Batch::of_changes(tenant, changes);
        let committed = self.store.commit(&batch).await.map_err(|_| Stalled)?;
        Ok(committed.applied == [1])
    }
}

/// Returns the pause after this attempt; attempts count from 1.
fn pause(attempt: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1));
    FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_doubles_up_to_an_hour() {
        let seconds = |attempt| pause(attempt).as_secs();
        assert_eq!([1, 2, 3, 10, 11, 12, 1_000].map(seconds), [5, 10, 20, 2_560, 3_600, 3_600, 3_600]);
    }
}
