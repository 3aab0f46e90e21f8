//! Publishes checkpoints where the customer can keep them. One replica at a time publishes at a
//! destination, no more often than configured, and after a pause if the destination is down. A
//! destination that is down delays no other, and no other tenant's checkpoints.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::archive::{Archive, ArchiveError};
use crate::kms::{DekBinding, LogPosition, Purpose};
use crate::model::{DekId, TenantUid, Timestamp};
use crate::store::{Batch, Change, PublicationStep};
use crate::tenancy::{Tenants, Turn, Turns};
use crate::webhook::{Delivery, PublishedCheckpoint, Webhook};

use super::Jobs;
use super::checkpoints::Signing;
use super::tenant_checkpoints::{SignedHead, TenantCheckpoints};

/// How long a replica that has died keeps a destination from the others. Longer than one attempt
/// takes.
const LEASE: Duration = Duration::from_secs(60);
/// The pause after the first failed attempt; it doubles after each.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// The number of logs after the current one that are looked for at a destination. A restored
/// database may be several logs behind.
const LOGS_AHEAD: u32 = 16;

/// The number of ended logs that are looked for at a destination, latest first.
const LOGS_BACK: u32 = 32;

/// The reason why nothing was published at a destination.
enum NotPublished {
    /// There is no checkpoint: the log is behind, or the database is out of reach.
    NoCheckpoint,
    /// The destination did not accept it.
    Failed(String),
}

/// A receiver of checkpoints.
pub enum Receiver {
    /// A receiver that can be read back.
    Archive(Archive),
    /// A receiver that cannot be read back.
    Webhook(Webhook),
    /// The KMS of each tenant's key, if its own log shows the context of a request
    /// (`KmsProfile::logs_context`).
    Kms(Tenants),
}

/// A destination of published checkpoints.
pub struct Destination {
    receiver: Receiver,
    name: Arc<str>,
}

/// What this process knows of one tenant's checkpoints at a destination.
#[derive(Default)]
pub(super) struct Published {
    failures: AtomicU32,
    unpublished: AtomicU64,
    /// All logs before this one have been looked for at the destination; 0 if none has.
    looked_back: AtomicU32,
}

impl Published {
    /// Returns the number of entries of the current log that no checkpoint at this destination
    /// covers, as this process last saw it.
    pub(super) fn unpublished(&self) -> u64 {
        self.unpublished.load(Ordering::Relaxed)
    }

    /// Returns the number of attempts of this process that have failed here since the last success.
    pub(super) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }
}

impl Destination {
    /// Creates a destination of which nothing is known yet.
    pub fn new(receiver: Receiver) -> Self {
        let name = match &receiver {
            Receiver::Archive(archive) => archive.name(),
            Receiver::Webhook(webhook) => webhook.name(),
            Receiver::Kms(_) => "kms".to_owned(),
        };
        Self { receiver, name: name.into() }
    }

    /// Returns the kind: `directory`, `bucket`, `webhook` or `kms`.
    pub fn kind(&self) -> &'static str {
        match &self.receiver {
            Receiver::Archive(Archive::Directory(_)) => "directory",
            Receiver::Archive(Archive::Bucket(_)) => "bucket",
            Receiver::Webhook(_) => "webhook",
            Receiver::Kms(_) => "kms",
        }
    }

    /// Returns the webhook, if this destination is one.
    pub(super) fn webhook(&self) -> Option<&Webhook> {
        match &self.receiver {
            Receiver::Webhook(webhook) => Some(webhook),
            Receiver::Archive(_) | Receiver::Kms(_) => None,
        }
    }

    /// Returns the name in the database: the kind, and a digest of the address.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl TenantCheckpoints {
    /// Reads the newest checkpoints at a destination, of the log `from` and of the logs after it,
    /// and adds them for the next check.
    ///
    /// # Errors
    /// The destination could not be read.
    pub(super) async fn read_current(&self, at: usize, from: u32) -> Result<(), ArchiveError> {
        let destination = &self.signing.destinations[at];
        let Receiver::Archive(archive) = &destination.receiver else { return Ok(()) };
        let now = self.signing.clock.now();
        // Logs are opened one after the other: if one is missing, none follows.
        for log in from..=from.saturating_add(LOGS_AHEAD) {
            match self.newest_at(archive, log, now).await {
                Ok(heads) if heads.is_empty() && log != from => break,
                Ok(heads) => {
                    for head in heads {
                        match head {
                            Some(published) => self.learn(published).await,
                            None => {
                                warn!(
                                    destination = destination.kind(),
                                    log, "a checkpoint at this destination is signed by none of our keys"
                                )
                            }
                        }
                    }
                }
                Err(error) => {
                    warn!(destination = destination.kind(), %error, "a destination of checkpoints cannot be read");
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Reads the newest checkpoints at a destination of each log before this one, and adds them for
    /// the next check. They are there even if the database claims that those logs have ended.
    ///
    /// # Errors
    /// The destination could not be read.
    pub(super) async fn read_earlier(&self, at: usize, before: u32) -> Result<(), ArchiveError> {
        let Receiver::Archive(archive) = &self.signing.destinations[at].receiver else { return Ok(()) };
        for log in before.saturating_sub(LOGS_BACK).max(1)..before {
            for published in
                self.newest_at(archive, log, self.signing.clock.now()).await?.into_iter().flatten()
            {
                self.learn_ended(published).await;
            }
        }
        self.published[at].looked_back.store(before, Ordering::Relaxed);
        Ok(())
    }

    /// Returns what a destination has of a log: the head in its `latest`, and the head of a note of
    /// a larger size, if there is one. A head is `None` if none of our keys has signed it.
    async fn newest_at(
        &self,
        archive: &Archive,
        log: u32,
        now: Timestamp,
    ) -> Result<Vec<Option<SignedHead>>, ArchiveError> {
        let origin = self.origin(log);
        let latest = archive.latest(&origin, now).await?.map(|note| self.read(&note, log));
        let size = latest.iter().flatten().map(|head| head.size).max().unwrap_or(0);
        let above = match archive.above(&origin, size, now).await {
            // Credentials that may read notes may be denied listing them. Then `latest` has to do.
            Err(error) if error.is_denial() => None,
            above => above?.map(|note| self.read(&note, log)),
        };
        Ok(latest.into_iter().chain(above).collect())
    }

    /// Publishes the current head, after checking everything that is at the destination already.
    async fn publish(&self, at: usize) -> Result<SignedHead, NotPublished> {
        let seen = self.renew().await.map_err(|_| NotPublished::NoCheckpoint)?;
        let mut looked = self.read_current(at, seen.log).await;
        // Look at earlier logs if that failed when the server started, or if another log was opened
        // since.
        if looked.is_ok() && self.published[at].looked_back.load(Ordering::Relaxed) < seen.log {
            looked = self.read_earlier(at, seen.log).await;
        }
        match looked {
            // What cannot be read now might show that the log was rewritten, so it is not
            // overwritten.
            Err(error) if !error.is_denial() => return Err(NotPublished::Failed(error.to_string())),
            Ok(()) | Err(_) => {}
        }
        let head = self.renew().await.map_err(|_| NotPublished::NoCheckpoint)?;
        let note = self.sign(&head).ok_or(NotPublished::NoCheckpoint)?;
        self.deliver(at, &head, &note).await.map_err(NotPublished::Failed)?;
        Ok(head)
    }

    async fn deliver(&self, at: usize, head: &SignedHead, note: &str) -> Result<(), String> {
        let (origin, now) = (self.origin(head.log), self.signing.clock.now());
        match &self.signing.destinations[at].receiver {
            Receiver::Archive(archive) => {
                archive.put(&origin, head.size, note, now).await.map_err(|error| error.to_string())
            }
            Receiver::Webhook(webhook) => {
                let root = head.root.to_string();
                let (tenant, size) = (self.tenant.name.as_str(), head.size);
                let checkpoint = PublishedCheckpoint { tenant, origin: &origin, size, root: &root, note };
                match webhook.publish(&checkpoint, now).await {
                    Delivery::Taken => Ok(()),
                    Delivery::Gone => Err("410".to_owned()),
                    Delivery::Status(status) => Err(status.to_string()),
                    Delivery::Unreachable => Err("unreachable".to_owned()),
                    Delivery::Timeout => Err("timeout".to_owned()),
                }
            }
            Receiver::Kms(tenants) => {
                let runtime = tenants.with(self.tenant.uid).await.map_err(|_| "not served".to_owned())?;
                // The answer is discarded: the point is the trace of the request in the KMS's own
                // log.
                let position = LogPosition { log: head.log, size: head.size, root: head.root };
                let purpose = Purpose::Checkpoint(position);
                let binding = DekBinding { tenant: self.tenant.uid, dek_id: DekId::new(), purpose };
                match runtime.keys.generate(&[binding]).await.pop() {
                    Some(Ok(_)) => Ok(()),
                    Some(Err(error)) => Err(error.class.as_str().to_owned()),
                    None => Err("no answer".to_owned()),
                }
            }
        }
    }

    /// Returns whether a destination takes this tenant's checkpoints.
    async fn is_received_at(&self, destination: &Destination) -> bool {
        match &destination.receiver {
            Receiver::Archive(_) | Receiver::Webhook(_) => true,
            Receiver::Kms(tenants) => {
                tenants.with(self.tenant.uid).await.is_ok_and(|runtime| runtime.keys.profile().logs_context)
            }
        }
    }

    /// Commits the step, and returns whether it was applied. Also returns `false` if the database
    /// is out of reach; then the attempt is due again when its lease ends.
    async fn step(&self, at: usize, holder: Uuid, step: PublicationStep) -> bool {
        let destination = self.signing.destinations[at].name.clone();
        let changes = vec![Change::Publish { place: destination, holder, step }];
        let batch = Batch::of_changes(self.tenant.uid, changes);
        self.signing.store.commit(&batch).await.is_ok_and(|committed| committed.applied == [1])
    }

    async fn publish_at(&self, at: usize, holder: Uuid, failures: u32) {
        if !self.step(at, holder, PublicationStep::Begin { lease: LEASE }).await {
            // Another replica was first.
            return;
        }
        let (destination, tenant) = (self.signing.destinations[at].kind(), self.tenant.name.as_str());
        let published = &self.published[at];
        match self.publish(at).await {
            Ok(head) => {
                if published.failures.swap(0, Ordering::Relaxed) > 0 {
                    info!(tenant, destination, "checkpoints are published there again");
                }
                let (log, size) = (head.log, head.size);
                published.unpublished.store(0, Ordering::Relaxed);
                self.step(at, holder, PublicationStep::Done { log, size, after: self.signing.publish_every })
                    .await;
            }
            // The attempt is due again when the lease ends.
            Err(NotPublished::NoCheckpoint) => {}
            Err(NotPublished::Failed(status)) => {
                let after = pause(failures);
                published.failures.fetch_add(1, Ordering::Relaxed);
                let (unpublished, retry_in) = (published.unpublished(), after.as_secs());
                warn!(
                    tenant,
                    destination,
                    status,
                    unpublished,
                    retry_in,
                    "a checkpoint could not be published: no published one covers the latest entries"
                );
                self.step(at, holder, PublicationStep::Failed { after }).await;
            }
        }
    }

    /// Publishes the checkpoint of the current head at every destination where one is due.
    async fn publish_where_due(&self, holder: Uuid, stop: &CancellationToken) {
        if self.is_behind() || stop.is_cancelled() {
            return;
        }
        let Signing { store, destinations, .. } = &*self.signing;
        let Ok(Some(head)) = store.log_head(self.tenant.uid).await else { return };
        let head = SignedHead::of(&head);
        let Ok(known) = store.publications(self.tenant.uid).await else { return };
        let publishing = destinations.iter().enumerate().map(async |(at, destination)| {
            if !self.is_received_at(destination).await {
                return;
            }
            let known = known.iter().find(|known| *known.place == *destination.name);
            let published = known.and_then(|known| known.published);
            let before = published.filter(|(log, _)| *log == head.log).map_or(0, |(_, size)| size);
            self.published[at].unpublished.store(head.size.saturating_sub(before), Ordering::Relaxed);
            let is_there = published == Some((head.log, head.size));
            if !stop.is_cancelled() && head.size > 0 && !is_there && known.is_none_or(|known| known.due) {
                self.publish_at(at, holder, known.map_or(0, |known| known.failures)).await;
            }
        });
        // Concurrently: a destination that does not answer delays no other.
        join_all(publishing).await;
    }
}

impl Jobs {
    /// Publishes the checkpoints of all logs where one is due, each tenant's at its own pace.
    /// `holder` names this replica.
    pub(super) fn publish_checkpoints(
        &self,
        turns: &mut Turns<TenantUid>,
        holder: Uuid,
        stop: &CancellationToken,
    ) {
        if self.checkpoints.signing.destinations.is_empty() {
            return;
        }
        turns.start(self.checkpoints.logs().into_iter().map(|log| {
            let (tenant, stop) = (log.tenant.uid, stop.clone());
            (tenant, move |_: Turn| async move { log.publish_where_due(holder, &stop).await })
        }));
    }
}

/// Returns the pause after a failure that follows this many failures.
fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_doubles_up_to_ten_minutes() {
        assert_eq!([0, 1, 6, 7, 1_000].map(|failures| pause(failures).as_secs()), [5, 10, 320, 600, 600]);
    }
}
