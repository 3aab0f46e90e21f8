//! Streams entries to the customer's monitoring: at least once each, in the order of each tenant's
//! log, by one replica at a time. The database holds the progress of each stream, so any replica
//! can continue after a kill. A sink that is down delays only its own stream, and a log that cannot
//! be read no other tenant's.

mod file;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::audit::ocsf_event;
use crate::model::{Tenant, TenantUid};
use crate::store::{Batch, Change, LogHead, PlacedEntry, ReadError, StreamName, StreamRow, StreamStep};
use crate::tenancy::{Turn, Turns};
use crate::webhook::{Delivery, StreamedEntries, Webhook};

use super::Jobs;
use file::Lines;

/// How long a replica that has died keeps a stream from the others. Longer than a delivery and its
/// commits.
const LEASE: Duration = Duration::from_secs(30);
/// The pause after the first failed delivery; it doubles after each.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The approximate size of a delivery, which holds at least one entry.
const DELIVERY_BYTES: usize = 1 << 20;
/// The initial and the largest number of entries that are read at once. In between, the number
/// depends on their size.
const FIRST_PAGE: u32 = 16;
const LARGEST_PAGE: u32 = 1_024;

/// One stream of the tenants' logs.
pub struct Stream {
    name: StreamName,
    sink: Sink,
    /// The progress in each tenant's log.
    progress: DashMap<TenantUid, Progress>,
}

enum Sink {
    File(Lines),
    Webhook(Webhook),
}

/// What this replica knows of a stream in one tenant's log.
struct Progress {
    behind: u64,
    failures: u64,
    in_a_row: u32,
    not_before: Option<Instant>,
    page: u32,
}

/// The progress of one stream over all tenants, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamStatus {
    /// `file` or `webhook`.
    pub name: &'static str,
    /// The number of entries that the stream still had to take when this replica last looked.
    pub behind: u64,
    /// The number of deliveries of this replica that failed since its start.
    pub failures: u64,
}

/// The round ends, and the worker comes back later.
struct PassEnded;

impl Stream {
    /// Creates a stream to this file.
    pub fn to_file(path: PathBuf) -> Self {
        Self::of(StreamName::File, Sink::File(Lines::new(path)))
    }

    /// Creates a stream to this webhook.
    pub fn to_webhook(webhook: Webhook) -> Self {
        Self::of(StreamName::Webhook, Sink::Webhook(webhook))
    }

    /// Returns the webhook, if the sink is one.
    pub(super) fn webhook(&self) -> Option<&Webhook> {
        match &self.sink {
            Sink::File(_) => None,
            Sink::Webhook(webhook) => Some(webhook),
        }
    }

    fn of(name: StreamName, sink: Sink) -> Self {
        Self { name, sink, progress: DashMap::new() }
    }

    fn with<T>(&self, tenant: TenantUid, act: impl FnOnce(&mut Progress) -> T) -> T {
        act(&mut self.progress.entry(tenant).or_default())
    }

    /// Returns whether the pause after a failure still lasts.
    fn pauses(&self, tenant: TenantUid) -> bool {
        self.with(tenant, |progress| progress.not_before.is_some_and(|at| Instant::now() < at))
    }

    /// Returns the progress of the stream over all tenants, as this replica knows it.
    pub fn status(&self) -> StreamStatus {
        let empty = StreamStatus { name: self.name.as_str(), behind: 0, failures: 0 };
        self.progress.iter().fold(empty, |sum, progress| StreamStatus {
            behind: sum.behind + progress.behind,
            failures: sum.failures + progress.failures,
            ..sum
        })
    }

    /// Notes a failed delivery, and returns the pause before the next one.
    fn failed(&self, tenant: TenantUid) -> Duration {
        self.with(tenant, |progress| {
            progress.failures += 1;
            progress.in_a_row = progress.in_a_row.saturating_add(1);
            let after = pause(progress.in_a_row);
            progress.not_before = Some(Instant::now() + after);
            after
        })
    }

    fn took(&self, tenant: TenantUid, behind: u64, entries: usize, bytes: usize) {
        self.with(tenant, |progress| {
            progress.behind = behind;
            progress.in_a_row = 0;
            progress.not_before = None;
            let fits = entries * DELIVERY_BYTES / bytes.max(1);
            progress.page = u32::try_from(fits).unwrap_or(u32::MAX).clamp(FIRST_PAGE, LARGEST_PAGE);
        });
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self { behind: 0, failures: 0, in_a_row: 0, not_before: None, page: FIRST_PAGE }
    }
}

impl Jobs {
    /// Sends what the stream with this index has not taken yet of each tenant's log, each at its
    /// own pace. `holder` names this replica.
    pub(super) fn stream_entries(
        self: &Arc<Self>,
        turns: &mut Turns<TenantUid>,
        index: usize,
        holder: Uuid,
        stop: &CancellationToken,
    ) {
        turns.start(self.tenants.served().into_iter().map(|served| {
            let (jobs, stop) = (self.clone(), stop.clone());
            let tenant = served.tenant.clone();
            (tenant.uid, move |turn| async move {
                jobs.stream_log(&jobs.streams[index], &tenant, holder, &turn, &stop).await;
            })
        }));
    }

    /// Sends the entries of one log, until nothing is left, the sink fails, another replica holds
    /// the stream, the turn is over, or `stop` is cancelled.
    async fn stream_log(
        &self,
        stream: &Stream,
        tenant: &Tenant,
        holder: Uuid,
        turn: &Turn,
        stop: &CancellationToken,
    ) {
        if stream.pauses(tenant.uid) {
            return;
        }
        // Write nothing to the database as long as there is nothing to send.
        let Ok((_, 1..)) = self.look(stream, tenant.uid).await else { return };
        let lease = StreamStep::Lease { lease: LEASE };
        if self.stream_step(stream, tenant.uid, holder, lease).await.is_err() {
            return;
        }
        // While this replica holds the lease, no other advances the stream.
        let Ok((Some(row), _)) = self.look(stream, tenant.uid).await else { return };
        let mut next = row.next;
        while !stop.is_cancelled() && !turn.is_over() {
            match self.stream_page(stream, tenant, holder, next, stop).await {
                Ok(to) => next = to,
                Err(PassEnded) => return,
            }
        }
    }

    /// Reads how far the stream is, and how many entries it still has to take.
    async fn look(&self, stream: &Stream, tenant: TenantUid) -> Result<(Option<StreamRow>, u64), PassEnded> {
        let rows = self.store.streams(tenant).await.map_err(|_| PassEnded)?;
        let end = self.store.log_size(tenant).await.map_err(|_| PassEnded)?;
        let row = rows.into_iter().find(|row| row.name == stream.name);
        let behind = end.saturating_sub(row.map_or(0, |row| row.next));
        stream.with(tenant, |progress| progress.behind = behind);
        Ok((row, behind))
    }

    /// Sends one page, and returns where the next one begins.
    async fn stream_page(
        &self,
        stream: &Stream,
        tenant: &Tenant,
        holder: Uuid,
        next: u64,
        stop: &CancellationToken,
    ) -> Result<u64, PassEnded> {
        let page = stream.with(tenant.uid, |progress| progress.page);
        let page = match self.store.entries_from(tenant.uid, next, page).await {
            Ok(page) => page,
            // The database is out of reach, and logs that itself.
            Err(ReadError::Unavailable | ReadError::Busy) => return Err(PassEnded),
            // The entry does not have a format that this release reads: another replica may run a
            // later release.
            Err(ReadError::Rejected | ReadError::Malformed) => {
                self.stream_failed(stream, tenant.uid, holder, next, "an entry cannot be read").await;
                return Err(PassEnded);
            }
        };
        // Read after the entries: the log that holds the last of them was opened before.
        let logs = self.logs(tenant.uid).await?;
        let (events, sent) = self.events(tenant, &page, &logs);
        let (Some(first), Some(last)) = (sent.first(), sent.last()) else {
            stream.with(tenant.uid, |progress| progress.behind = 0);
            return Err(PassEnded);
        };
        let (entries, bytes) = (sent.len(), events.iter().map(String::len).sum());
        let id = format!("{}-{entries}", first.row.id);
        let delivery = StreamedEntries { id: &id, tenant: &tenant.name, at: last.row.at, events: &events };
        let delivered = tokio::select! {
            delivered = self.deliver(&stream.sink, delivery) => delivered,
            // The next replica sends it again, because it is unknown whether it arrived.
            () = stop.cancelled() => return Err(PassEnded),
        };
        if let Err(problem) = delivered {
            self.stream_failed(stream, tenant.uid, holder, next, &problem).await;
            return Err(PassEnded);
        }
        let to = last.seq + 1;
        if stream.with(tenant.uid, |progress| progress.in_a_row > 0) {
            info!(stream = stream.name.as_str(), position = to, "entries are streamed again");
        }
        let advance = StreamStep::Advance { from: next, to, lease: LEASE };
        self.stream_step(stream, tenant.uid, holder, advance).await?;
        let behind = stream.with(tenant.uid, |progress| progress.behind).saturating_sub(to - next);
        stream.took(tenant.uid, behind, entries, bytes);
        Ok(to)
    }

    /// Releases the stream to the next replica, and pauses.
    async fn stream_failed(
        &self,
        stream: &Stream,
        tenant: TenantUid,
        holder: Uuid,
        next: u64,
        problem: &str,
    ) {
        let after = stream.failed(tenant);
        let (name, retry_in) = (stream.name.as_str(), after.as_secs());
        warn!(stream = name, position = next, problem, retry_in, "entries could not be streamed");
        let _ = self.stream_step(stream, tenant, holder, StreamStep::Fail).await;
    }

    /// Returns the tenant's logs, each with its number and its first position, the current one
    /// last.
    async fn logs(&self, tenant: TenantUid) -> Result<Vec<LogHead>, PassEnded> {
        // Read the current log first: if it ends meanwhile, both reads have it.
        let current = self.store.log_head(tenant).await.map_err(|_| PassEnded)?;
        let mut logs = self.store.ended_logs(tenant).await.map_err(|_| PassEnded)?;
        logs.extend(current);
        logs.sort_by_key(|head| head.log);
        Ok(logs)
    }

    /// Returns the events of as many of the entries as fit into one delivery.
    fn events<'p>(
        &self,
        tenant: &Tenant,
        page: &'p [PlacedEntry],
        logs: &[LogHead],
    ) -> (Vec<String>, &'p [PlacedEntry]) {
        let (mut events, mut bytes) = (Vec::new(), 0);
        for (count, placed) in page.iter().enumerate() {
            if bytes > DELIVERY_BYTES {
                return (events, &page[..count]);
            }
            let event = ocsf_event(tenant, log_of(placed.seq, logs), placed).to_string();
            bytes += event.len();
            events.push(event);
        }
        (events, page)
    }

    async fn deliver(&self, sink: &Sink, delivery: StreamedEntries<'_>) -> Result<(), String> {
        let webhook = match sink {
            Sink::File(file) => {
                let lines = delivery.events.iter().flat_map(|event| [event.as_str(), "\n"]).collect();
                return file.append(lines).await;
            }
            Sink::Webhook(webhook) => webhook,
        };
        match webhook.stream(&delivery, self.clock.now()).await {
            Delivery::Taken => Ok(()),
            // A stream does not stop on this status, because that would leave a gap in what the
            // sink has of the log.
            Delivery::Gone => Err("410".to_owned()),
            Delivery::Status(status) => Err(status.to_string()),
            Delivery::Unreachable => Err("unreachable".to_owned()),
            Delivery::Timeout => Err("timeout".to_owned()),
        }
    }

    /// Commits the step. Returns an error if it was not applied, or is not known to have been.
    async fn stream_step(
        &self,
        stream: &Stream,
        tenant: TenantUid,
        holder: Uuid,
        step: StreamStep,
    ) -> Result<(), PassEnded> {
        let changes = vec![Change::Stream { name: stream.name, holder, step }];
        match self.store.commit(&Batch::of_changes(tenant, changes)).await {
            Ok(committed) if committed.applied == [1] => Ok(()),
            Ok(_) | Err(_) => Err(PassEnded),
        }
    }
}

/// Returns the number of the log that holds the entry at a position: the last log that began at or
/// before it.
fn log_of(position: u64, logs: &[LogHead]) -> u32 {
    logs.iter().rfind(|head| head.first <= position).map_or(1, |head| head.log)
}

/// Returns the pause after this many failures in a row; they count from 1.
fn pause(failures: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::Frontier;

    const TENANT: TenantUid = TenantUid([7; 16]);

    #[test]
    fn a_pause_doubles_up_to_a_minute() {
        let seconds = |failures| pause(failures).as_secs();
        assert_eq!([1, 2, 6, 7, 1_000].map(seconds), [1, 2, 32, 60, 60]);
    }

    #[test]
    fn an_entry_is_in_the_last_log_begun_at_its_position() {
        let head = |log, first| LogHead { log, first, frontier: Frontier::default() };
        // Log 2 was opened and ended without an entry; log 4 was lost with the database that had
        // it.
        let logs = [head(1, 0), head(2, 5), head(3, 5), head(5, 8)];
        assert_eq!([0, 4, 5, 7, 8, 99].map(|position| log_of(position, &logs)), [1, 1, 3, 3, 5, 5]);
    }

    #[test]
    fn a_page_is_as_large_as_its_entries_let_it_be() {
        let stream = Stream::to_file(PathBuf::from("/nowhere"));
        for (entries, bytes, page) in [(16, 16 * 1_000, 1_024), (16, 16 << 20, 16), (100, 1 << 20, 100)] {
            stream.took(TENANT, 0, entries, bytes);
            assert_eq!(stream.with(TENANT, |progress| progress.page), page);
        }
    }
}
