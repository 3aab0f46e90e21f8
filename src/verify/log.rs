//! Verifies a tenant's log in its database: every entry of the current log or of an ended one, its
//! head, every kept checkpoint, and, for the current log, the rows of DEKs. The server may keep
//! running meanwhile. Verification only reads.

use std::ops::Range;
use std::time::Duration;

use super::deks::Deks;
use super::finding::{Against, Finding};
use super::pages::{Pages, Row};
use super::reconciled_deks::reconcile_deks;
use super::report::{Claim, Report};
use super::tiles::Tiles;
use super::withheld::Withheld;
use super::{Subject, Trust, Walk};
use crate::audit::{SignedCheckpoint, Tree, TreeError, origin_of};
use crate::merkle::Frontier;
use crate::model::{Operation, Tenant};
use crate::store::{CheckpointRow, LogHead, LogReads, ReadError};

/// The number of checkpoints that are read at once.
const CHECKPOINTS: u32 = 256;

/// Verifies a tenant's log: the current one, or the one that ended with the head `ended`. From time
/// to time, `progress` receives the number of entries that were checked and the total.
///
/// # Errors
/// The errors of the database: it is out of reach, or refuses to be read. Anything wrong with what
/// it holds is a finding instead, so the schema must be one that this binary reads
/// ([`crate::store::MigrationReport::usable`]).
pub async fn verify_log(
    store: &dyn LogReads,
    tenant: &Tenant,
    ended: Option<LogHead>,
    trust: Trust,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Report, ReadError> {
    let has_ended = ended.is_some();
    let head = match (ended, store.log_head(tenant.uid).await) {
        (Some(ended), _) => ended,
        (None, Ok(Some(head))) => head,
        (None, Ok(None) | Err(ReadError::Malformed)) => return Ok(no_head(tenant)),
        (None, Err(error)) => return Err(error),
    };
    let pinned = trust.pinned.clone();
    let mut log = Log { has_ended, ..Log::of(store, tenant, head, trust).await? };
    if !has_ended {
        log.deks = Deks::read(store, tenant.uid, None, log.head.first == 0).await?;
    }
    log.withheld = Some(Withheld::new());
    log.tiles = Some(Tiles::new(store, tenant.uid, log.head.log));
    let origin = log.walk.origin().to_owned();
    log.entries(progress).await?;
    log.after().await?;
    if let Some(pinned) = &pinned {
        log.pinned_is_kept(pinned).await?;
    }
    let Log { mut walk, deks, head, withheld, tiles, .. } = log;
    if let Some(tiles) = tiles {
        tiles.finish(&head, &mut walk.report).await?;
    }
    walk.withheld = withheld.map_or(0, |withheld| withheld.count);
    let mut report = walk.finish(|size, has| Finding::Shorter { has, against: Against::Pinned(size) });
    let partial = if has_ended {
        Some("rows are checked only against the current log: verify that one".to_owned())
    } else {
        reconcile_deks(store, tenant, &head, deks, &mut report).await?
    };
    report.claim(
        Claim::Deks,
        "every DEK's row has the key version and the wrapped bytes that the log last gave it".to_owned(),
        partial,
    );
    let earlier = earlier(store, tenant, &head).await?;
    let ended = if has_ended { ", which has ended" } else { "" };
    report.subject = format!(
        "log {origin}{ended}: {} entries at places {} to before {}, root {}{earlier}",
        head.frontier.size(),
        head.first,
        head.end(),
        head.frontier.root()
    );
    Ok(report)
}

/// Describes the logs before this one, and how to verify them.
async fn earlier(store: &dyn LogReads, tenant: &Tenant, head: &LogHead) -> Result<String, ReadError> {
    if head.first == 0 {
        return Ok(String::new());
    }
    let ended = match store.ended_logs(tenant.uid).await {
        Ok(ended) => ended,
        Err(ReadError::Malformed) => Vec::new(),
        Err(error) => return Err(error),
    };
    let before: Vec<String> = ended
        .iter()
        .filter(|ended| ended.log < head.log)
        .map(|ended| format!("--log {}", ended.log))
        .collect();
    let how = if before.is_empty() { "none of them is kept".to_owned() } else { before.join(", ") };
    Ok(format!("; the {} entries before are in earlier logs, which were not verified: {how}", head.first))
}

fn no_head(tenant: &Tenant) -> Report {
    let mut report = Report::of(format!("log of {}: no head", tenant.name));
    report.find(Finding::Head);
    report.claim(Claim::Tree, String::new(), None);
    report
}

/// Returns the origin that the log's checkpoints must have: the one that the auditor knows, or else
/// the one in the last checkpoint, if it fits.
async fn origin(
    store: &dyn LogReads,
    tenant: &Tenant,
    head: &LogHead,
    trust: &Trust,
) -> Result<String, ReadError> {
    let own = origin_of("", &tenant.name, head.log);
    let known = trust.keys.iter().map(|key| key.name.clone());
    let mut known = trust.pinned.iter().map(|pinned| pinned.checkpoint.origin.clone()).chain(known);
    if let Some(origin) = known.find(|origin| origin.ends_with(&own)) {
        return Ok(origin);
    }
    let latest = store.latest_checkpoint(tenant.uid, head.log).await?;
    let latest = latest.and_then(|row| SignedCheckpoint::parse(&row.note).ok());
    let origin = latest.map(|latest| latest.checkpoint.origin).filter(|origin| origin.ends_with(&own));
    Ok(origin.unwrap_or(own))
}

pub(super) struct Log<'s> {
    pub(super) store: &'s dyn LogReads,
    pub(super) tenant: &'s Tenant,
    pub(super) head: LogHead,
    pub(super) walk: Walk,
    checkpoints: Checkpoints,
    pub(super) deks: Deks,
    /// Set if the walk checks which answers were withheld.
    pub(super) withheld: Option<Withheld>,
    /// Set if the walk checks the tiles of the tree against the entries.
    tiles: Option<Tiles<'s>>,
    /// The number of entries after which the walk pauses, and the length of the pause.
    pub(super) pace: Option<(u64, Duration)>,
    pub(super) has_ended: bool,
}

/// The log's checkpoints by size, read a page at a time.
struct Checkpoints {
    page: std::vec::IntoIter<CheckpointRow>,
    next: Option<CheckpointRow>,
    from: u64,
    ended: bool,
}

impl Checkpoints {
    fn new() -> Self {
        Self { page: Vec::new().into_iter(), next: None, from: 0, ended: false }
    }

    /// Returns the size of the next checkpoint without consuming it.
    async fn peek(
        &mut self,
        store: &dyn LogReads,
        tenant: &Tenant,
        log: u32,
    ) -> Result<Option<u64>, ReadError> {
        if self.next.is_none() {
            self.next = self.page.next();
        }
        if self.next.is_none() && !self.ended {
            let rows = store.checkpoints_from(tenant.uid, log, self.from, CHECKPOINTS).await?;
            self.ended = rows.len() < CHECKPOINTS as usize;
            self.from = rows.last().map_or(self.from, |row| row.size + 1);
            self.page = rows.into_iter();
            self.next = self.page.next();
        }
        Ok(self.next.as_ref().map(|row| row.size))
    }
}

impl<'s> Log<'s> {
    /// Returns a tenant's log before its first entry is checked: as the current log, with no rows
    /// of DEKs to check, and without pauses.
    pub(super) async fn of(
        store: &'s dyn LogReads,
        tenant: &'s Tenant,
        head: LogHead,
        trust: Trust,
    ) -> Result<Self, ReadError> {
        let origin = origin(store, tenant, &head, &trust).await?;
        let subject = Subject { tenant: tenant.uid, origin, log: head.log, first: head.first };
        Ok(Self {
            store,
            tenant,
            walk: Walk::start(subject, trust, Frontier::default()),
            checkpoints: Checkpoints::new(),
            deks: Deks::none(),
            withheld: None,
            tiles: None,
            pace: None,
            has_ended: false,
            head,
        })
    }
}

impl Log<'_> {
    pub(super) async fn entries(
        &mut self,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<(), ReadError> {
        let (first, end) = (self.head.first, self.head.end());
        let mut pages = Pages::new(self.store, self.tenant.uid, first..end);
        while let Some(row) = pages.next().await? {
            let position = row.position();
            if position > self.walk.position() {
                self.gap(position).await?;
            }
            self.checkpoints().await?;
            if let Some(tiles) = &mut self.tiles {
                tiles.leaf(position - first, row.leaf()).await?;
            }
            match row {
                Row::Entry(entry) if self.walk.entry(&entry) => {
                    let seals = entry.operation == Operation::Seal.as_str();
                    self.walk.report.all_were_sealed |= seals;
                    self.deks.observe(&entry);
                    let found = self.withheld.as_mut().and_then(|withheld| withheld.entry(&entry));
                    found.into_iter().for_each(|found| self.walk.report.find(found));
                }
                Row::Entry(_) => self.unknown(),
                Row::Unreadable { position, leaf } => {
                    self.unknown();
                    self.walk.unreadable(position, leaf);
                }
            }
            if position.is_multiple_of(256) {
                progress(position - first, end - first);
            }
            if let Some((stride, pause)) = self.pace
                && position.is_multiple_of(stride)
            {
                tokio::time::sleep(pause).await;
            }
        }
        if self.walk.position() < end && self.has_ended {
            // All of these entries may be pruned. The entry that says so is in a later log.
            self.gap(end).await?;
        } else if self.walk.position() < end {
            let range = self.walk.position()..end;
            self.walk.report.find(Finding::CutOff { range });
            self.deks.gap();
            self.walk.continues_unseen();
        }
        Ok(())
    }

    /// Notes that the content of some entry is not known.
    fn unknown(&mut self) {
        self.deks.gap();
        self.withheld.iter_mut().for_each(Withheld::gap);
    }

    /// Handles missing entries up to this position, which were pruned or removed. The walk
    /// continues with what is kept of their hashes.
    async fn gap(&mut self, position: u64) -> Result<(), ReadError> {
        self.unknown();
        let tree = Tree::ended(self.store, self.tenant.uid, self.head.clone());
        let end = position - self.head.first;
        while self.walk.size() < end {
            self.checkpoints().await?;
            let part: Range<u64> =
                self.walk.size()..self.walk.pinned_ahead().map_or(end, |pinned| pinned.min(end));
            match tree.cover(part.clone()).await {
                Ok(roots) if self.walk.roots(part.end - part.start, &roots, true).is_ok() => {}
                Ok(_) | Err(TreeError::Missing { .. } | TreeError::Store(ReadError::Malformed)) => {
                    self.walk.missing_until(position);
                }
                Err(TreeError::Store(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Checks the checkpoints of the size that the walk has reached. Those within a pruned range
    /// are skipped.
    async fn checkpoints(&mut self) -> Result<(), ReadError> {
        while let Some(size) = self.checkpoints.peek(self.store, self.tenant, self.head.log).await?
            && size <= self.walk.size()
        {
            if let Some(row) = self.checkpoints.next.take()
                && size == self.walk.size()
            {
                self.walk.checkpoint(&row.note);
            }
        }
        Ok(())
    }

    /// Checks what follows the last entry: the head, and anything that should not exist.
    pub(super) async fn after(&mut self) -> Result<(), ReadError> {
        let size = self.head.frontier.size();
        if self.walk.size() == size {
            self.checkpoints().await?;
            self.walk.head(&self.head.frontier);
        }
        // After the end of an ended log, the next one begins.
        let beyond = if self.has_ended { Vec::new() } else { self.beyond().await? };
        let mut longest = size;
        while let Some(size) = self.checkpoints.peek(self.store, self.tenant, self.head.log).await? {
            longest = longest.max(size);
            self.checkpoints.next = None;
        }
        let Some(now) = self.store.log_head(self.tenant.uid).await? else { return Ok(()) };
        for position in beyond.into_iter().filter(|position| *position >= now.end()) {
            self.walk.report.find(Finding::BeyondHead { position });
        }
        let has = if self.has_ended { size } else { now.frontier.size() };
        if longest > has {
            self.walk.report.find(Finding::Shorter { has, against: Against::Checkpoint(longest) });
        }
        if self.has_ended {
            self.restore().await?;
        }
        self.later(now.end()).await
    }

    async fn pinned_is_kept(&mut self, pinned: &SignedCheckpoint) -> Result<(), ReadError> {
        let size = pinned.checkpoint.size;
        let kept = self.store.checkpoints_from(self.tenant.uid, self.head.log, size, 1).await?;
        if !kept.iter().any(|row| row.size == size) {
            self.walk.report.find(Finding::MissingCheckpoint { size: Some(size) });
        }
        Ok(())
    }
}
