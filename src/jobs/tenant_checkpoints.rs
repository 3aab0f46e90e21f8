//! The checkpoints of one tenant's logs. They are made here, and the log is checked here against
//! everything that was published of it. If it does not hold that, the database was rewritten or
//! went back in time. Then no call of this tenant is recorded in that log, and so none is answered,
//! until `byok audit restored` opens another log that names it. Other tenants notice nothing.
//!
//! Before a head is signed, a proof from the leaves of the entries has shown that it extends the
//! last kept checkpoint. Several replicas may sign the same head: the signature is deterministic,
//! and so is the row.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tracing::{error, info, warn};

use crate::audit::{
    Checkpoint, CheckpointKey, SignedCheckpoint, Tree, TreeError, digest_of, origin_of, pruned_leaves,
};
use crate::merkle::{Hash, verify_consistency};
use crate::model::{Operation, Tenant};
use crate::store::{Batch, Change, EntryFilter, LogHead, PlacedEntry, ReadError};

use super::checkpoints::Signing;
use super::publication::Published;

/// The number of entries of restores that are read, newest first.
const RESTORES: u32 = 256;
/// The number of entries about prunes that are read, newest first. Each repeats what the entries
/// before it say.
const PRUNES: u32 = 256;
/// The time between two checkpoints that nobody asked for and that are not published anywhere.
const KEEP_INTERVAL: Duration = Duration::from_secs(10);
/// The time between two identical lines in the server's log.
const REPEAT_INTERVAL: Duration = Duration::from_secs(3_600);

/// A signed head of one of the tenant's logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SignedHead {
    pub(super) log: u32,
    pub(super) size: u64,
    pub(super) root: Hash,
}

impl SignedHead {
    pub(super) fn of(head: &LogHead) -> Self {
        Self { log: head.log, size: head.frontier.size(), root: head.frontier.root() }
    }
}

/// A checkpoint as callers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CurrentCheckpoint {
    /// The signed note (c2sp.org/tlog-checkpoint).
    pub note: String,
    /// The name of the log.
    pub origin: String,
    /// The number of its leaves.
    pub size: u64,
    /// Its root, in base64.
    pub root: String,
    /// The public keys that verify the note, the current one first, in the format of
    /// c2sp.org/signed-note.
    pub keys: Vec<String>,
}

/// The reason why there is no checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointError {
    /// The log is behind a published checkpoint.
    Behind,
    /// No signing key is configured.
    Unsigned,
    /// The database failed.
    Store(ReadError),
}

impl From<ReadError> for CheckpointError {
    fn from(error: ReadError) -> Self {
        Self::Store(error)
    }
}

/// The state of what is known about published heads.
#[derive(Default)]
struct Known {
    /// The last head that this process signed. It extends everything that this process had known of
    /// before.
    signed: Option<SignedHead>,
    /// The published heads that the log does not hold, or was not shown to hold yet.
    unproven: Vec<SignedHead>,
    /// The published heads of earlier logs that the ended log does not hold and that no entry names
    /// as lost.
    ended: Vec<SignedHead>,
    /// The logs of which a head signed by one of our keys existed before this process signed one.
    signed_before: BTreeSet<u32>,
    /// When this process last kept a checkpoint.
    kept_at: Option<Instant>,
}

impl Known {
    /// Notes that a head with a signature of ours was found, unless the signature may be this
    /// process's own.
    fn note_signed(&mut self, head: &SignedHead) {
        if self.signed.as_ref().is_none_or(|signed| signed.log < head.log) {
            self.signed_before.insert(head.log);
        }
    }
}

/// A problem that is checked every second, and logged once an hour.
#[derive(Default)]
pub(super) struct HourlyWarning(std::sync::Mutex<Option<Instant>>);

impl HourlyWarning {
    pub(super) fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| last.elapsed() >= REPEAT_INTERVAL);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }

    /// Notes that the problem is over. If it comes back, it is logged again at once.
    pub(super) fn is_over(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Whether the log holds everything that is known to have been published.
    pub holds: bool,
    /// The kinds of the destinations that could not be read.
    pub unread: Vec<&'static str>,
}

/// The checkpoints of a tenant's logs.
pub struct TenantCheckpoints {
    pub(super) tenant: Arc<Tenant>,
    /// What the checkpoints of all tenants share.
    pub(super) signing: Arc<Signing>,
    /// What is known of each destination, in their order.
    pub(super) published: Vec<Published>,
    known: Mutex<Known>,
    checked: AtomicBool,
    behind: AtomicBool,
    /// Since when the tenant has not been known to be served.
    unknown_since: std::sync::Mutex<Option<Instant>>,
    missing: HourlyWarning,
    pub(super) refused: HourlyWarning,
}

impl TenantCheckpoints {
    pub(super) fn new(tenant: Arc<Tenant>, signing: Arc<Signing>) -> Self {
        Self {
            tenant,
            published: signing.destinations.iter().map(|_| Published::default()).collect(),
            signing,
            known: Mutex::default(),
            checked: AtomicBool::new(false),
            behind: AtomicBool::new(false),
            unknown_since: std::sync::Mutex::default(),
            missing: HourlyWarning::default(),
            refused: HourlyWarning::default(),
        }
    }

    /// Checks the log against the last kept checkpoint, and against the last checkpoint at each
    /// destination that can be read. The publication job tries again to read a destination that
    /// cannot be read now.
    ///
    /// # Errors
    /// The errors of the database.
    pub async fn check(&self) -> Result<Checked, ReadError> {
        let log = self.signing.store.log_head(self.tenant.uid).await?.ok_or(ReadError::Malformed)?.log;
        let mut unread = Vec::new();
        for at in 0..self.published.len() {
            if self.read_current(at, log).await.is_err() || self.read_earlier(at, log).await.is_err() {
                unread.push(self.signing.destinations[at].kind());
            }
        }
        self.hold(&mut *self.known.lock().await).await?;
        self.checked.store(true, Ordering::SeqCst);
        Ok(Checked { holds: !self.is_behind(), unread })
    }

    /// Notes whether the tenant is known now, and returns whether it has not been for this long.
    pub(super) fn is_unknown_for(&self, long: Duration, is_known: bool) -> bool {
        let mut since = self.unknown_since.lock().unwrap_or_else(PoisonError::into_inner);
        if is_known {
            *since = None;
            return false;
        }
        since.get_or_insert_with(Instant::now).elapsed() >= long
    }

    pub(super) fn is_checked(&self) -> bool {
        self.checked.load(Ordering::SeqCst)
    }

    /// Returns whether the log was found behind a published checkpoint. If so, nothing may be
    /// appended.
    pub fn is_behind(&self) -> bool {
        self.behind.load(Ordering::SeqCst)
    }

    pub(super) fn origin(&self, log: u32) -> String {
        origin_of(&self.signing.deployment, &self.tenant.name, log)
    }

    /// Returns the keys that verify the notes of that log, the current one first.
    pub(super) fn keys_of(&self, log: u32) -> Vec<CheckpointKey> {
        let name = self.origin(log);
        let keys = self.signing.keys().map(|keys| keys.parsed()).unwrap_or_default();
        keys.iter().map(|key| CheckpointKey { name: name.clone(), key: key.verifying_key() }).collect()
    }

    /// Reads a note, and returns its head if the note is of that log and one of our keys has signed
    /// it.
    pub(super) fn read(&self, note: &str, log: u32) -> Option<SignedHead> {
        let note = SignedCheckpoint::parse(note).ok()?;
        let signed = self.keys_of(log).iter().any(|key| note.is_signed_by(key));
        let Checkpoint { size, root, .. } = note.checkpoint;
        signed.then_some(SignedHead { log, size, root })
    }

    /// Returns the signed checkpoint of this head.
    pub(super) fn sign(&self, head: &SignedHead) -> Option<String> {
        let checkpoint = Checkpoint { origin: self.origin(head.log), size: head.size, root: head.root };
        self.signing.keys().map(|keys| checkpoint.sign(&keys.parsed()))
    }

    /// Adds a published head for the next check.
    pub(super) async fn learn(&self, head: SignedHead) {
        let mut known = self.known.lock().await;
        known.note_signed(&head);
        if !known.unproven.contains(&head) {
            known.unproven.push(head);
        }
    }

    /// Does the same for a head of a log before the current one.
    pub(super) async fn learn_ended(&self, head: SignedHead) {
        let mut known = self.known.lock().await;
        known.note_signed(&head);
        if !known.ended.contains(&head) {
            known.ended.push(head);
        }
    }

    /// Returns every known head that the log does not hold.
    pub(super) async fn missing_heads(&self) -> Vec<SignedHead> {
        let known = self.known.lock().await;
        known.unproven.iter().chain(&known.ended).cloned().collect()
    }

    /// Returns a checkpoint of the log as it is now, with the keys that verify it.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub async fn current(&self) -> Result<CurrentCheckpoint, CheckpointError> {
        let head = self.renew().await?;
        let note = self.sign(&head).ok_or(CheckpointError::Unsigned)?;
        Ok(CurrentCheckpoint {
            note,
            origin: self.origin(head.log),
            size: head.size,
            root: head.root.to_string(),
            keys: self.keys_of(head.log).iter().map(ToString::to_string).collect(),
        })
    }

    /// Makes a checkpoint of the log as it is now, and keeps it if the log has moved since the last
    /// one.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub(super) async fn renew(&self) -> Result<SignedHead, CheckpointError> {
        let mut known = self.known.lock().await;
        let now = self.signing.store.log_head(self.tenant.uid).await?.ok_or(ReadError::Malformed)?;
        let now = SignedHead::of(&now);
        if known.unproven.is_empty() && known.ended.is_empty() && known.signed.as_ref() == Some(&now) {
            return Ok(now);
        }
        let (head, kept) = self.hold(&mut known).await?;
        if self.is_behind() {
            return Err(CheckpointError::Behind);
        }
        let note = self.sign(&head).ok_or(CheckpointError::Unsigned)?;
        // Nothing was appended to an empty log, so there is nothing to keep.
        if kept.is_none_or(|kept| kept != head) && head.size > 0 {
            let change = Change::AddCheckpoint { log: head.log, size: head.size, note: note.into() };
            let batch = Batch::of_changes(self.tenant.uid, vec![change]);
            self.signing.store.commit(&batch).await.map_err(|_| ReadError::Unavailable)?;
            self.signing.made.fetch_add(1, Ordering::Relaxed);
            known.kept_at = Some(Instant::now());
        }
        if let Some(before) = known.signed.as_ref().filter(|signed| signed.log < head.log) {
            warn!(
                before = before.log,
                size = before.size,
                root = %before.root,
                log = head.log,
                "another audit log was opened, as the entry of a restore says"
            );
        }
        known.signed = Some(head.clone());
        Ok(head)
    }

    /// Does the same, but keeps no checkpoint soon after the last one. Otherwise a log that
    /// constantly grows would fill the table of checkpoints.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub(super) async fn renew_in_time(&self) -> Result<(), CheckpointError> {
        let mut known = self.known.lock().await;
        if known.kept_at.is_none_or(|kept_at| kept_at.elapsed() >= KEEP_INTERVAL) {
            drop(known);
            return self.renew().await.map(drop);
        }
        self.hold(&mut known).await?;
        if self.is_behind() { Err(CheckpointError::Behind) } else { Ok(()) }
    }

    /// Checks the log against everything that is known to have been published, and returns its head
    /// and the last kept checkpoint.
    async fn hold(&self, known: &mut Known) -> Result<(SignedHead, Option<SignedHead>), ReadError> {
        let log = self.signing.store.log_head(self.tenant.uid).await?.ok_or(ReadError::Malformed)?.log;
        // Read this before the tree: another replica may keep the next checkpoint meanwhile, and
        // the tree must hold the one that is read here.
        let kept = self.signing.store.latest_checkpoint(self.tenant.uid, log).await?.map(|row| {
            if let Some(signed) = self.read(&row.note, log) {
                known.note_signed(&signed);
            }
            // The signer does not matter: a note that somebody else put there stops the server too.
            let note = SignedCheckpoint::parse(&row.note).ok().map(|note| note.checkpoint);
            let root = note.filter(|note| note.size == row.size).map_or(Hash([0; 32]), |note| note.root);
            SignedHead { log, size: row.size, root }
        });
        let tree = Tree::open(&*self.signing.store, self.tenant.uid).await?.ok_or(ReadError::Malformed)?;
        let mut missing_heads: Vec<SignedHead> = Vec::new();
        for head in known.unproven.iter().chain(&known.signed).chain(&kept) {
            let held = if head.log < tree.head.log {
                self.begins_with_a_restore(&tree.head).await?
            } else {
                self.holds(&tree, head).await?
            };
            if !held && !missing_heads.contains(head) {
                missing_heads.push(head.clone());
            }
        }
        known.ended = self.unexplained_heads(known, &tree).await?;
        let (now, behind) =
            (SignedHead::of(&tree.head), !missing_heads.is_empty() || !known.ended.is_empty());
        if behind != self.behind.swap(behind, Ordering::SeqCst) {
            match missing_heads.first().or(known.ended.first()) {
                None => {
                    self.missing.is_over();
                    info!(log = now.log, size = now.size, "the audit log holds all that was published");
                }
                Some(head) => error!(
                    published_log = head.log,
                    published_size = head.size,
                    log = now.log,
                    size = now.size,
                    "the audit log is shorter than what was published of it, or differs: nothing is served until `byok audit restored`"
                ),
            }
        }
        known.unproven = missing_heads;
        Ok((now, kept))
    }

    /// Returns whether the log extends a signed head of it.
    async fn holds(&self, tree: &Tree<'_>, signed: &SignedHead) -> Result<bool, ReadError> {
        let now = SignedHead::of(&tree.head);
        if signed.log != now.log || signed.size > now.size {
            return Ok(false);
        }
        match tree.consistency(signed.size, now.size).await {
            Ok(proof) => Ok(verify_consistency((signed.size, signed.root), (now.size, now.root), &proof)),
            Err(TreeError::Store(error)) => Err(error),
            Err(TreeError::Missing { seq }) => {
                if self.missing.is_due() {
                    error!(seq, "an entry of the audit log is missing");
                }
                Ok(false)
            }
        }
    }

    /// Returns whether the log begins with the entry of a restore, which means that the logs before
    /// it have ended. What was lost of them is checked against the destinations. The operator's
    /// command cannot name what only this process has signed.
    async fn begins_with_a_restore(&self, log: &LogHead) -> Result<bool, ReadError> {
        let tenant = self.tenant.uid;
        let first = match self.signing.store.entries_from(tenant, log.first, 1).await {
            Err(ReadError::Malformed) => Vec::new(),
            first => first?,
        };
        Ok(first.iter().any(|placed| {
            placed.seq == log.first
                && placed.row.operation == Operation::Restore
                && digest_of(tenant, &placed.row) == Some(placed.row.digest)
        }))
    }

    /// Returns the published heads of ended logs that neither that log holds nor an entry of a
    /// restore names. Without this check, somebody who rewrites the database would only have to
    /// claim that another log was opened.
    async fn unexplained_heads(&self, known: &Known, tree: &Tree<'_>) -> Result<Vec<SignedHead>, ReadError> {
        let mut unexplained_heads = Vec::new();
        if known.ended.is_empty() {
            return Ok(unexplained_heads);
        }
        let tenant = self.tenant.uid;
        let ended = self.signing.store.ended_logs(tenant).await?;
        let restores = self.latest(Operation::Restore, RESTORES).await?;
        for head in &known.ended {
            let described = format!("/{} {} {}", head.log, head.size, head.root);
            let names = |placed: &PlacedEntry| {
                placed.row.detail.as_deref().is_some_and(|detail| detail.ends_with(&described))
                    && digest_of(tenant, &placed.row) == Some(placed.row.digest)
            };
            let held = match ended.iter().find(|ended| ended.log == head.log) {
                Some(ended) => {
                    self.holds(&Tree::ended(&*self.signing.store, tenant, ended.clone()), head).await?
                }
                None => head.log >= tree.head.log && self.holds(tree, head).await?,
            };
            let after = ended.iter().find(|ended| ended.log > head.log).unwrap_or(&tree.head);
            if !held && !restores.iter().any(names) && !self.is_opening_pruned(known, after).await? {
                unexplained_heads.push(head.clone());
            }
        }
        Ok(unexplained_heads)
    }

    /// Returns the latest entries of this operation, newest first.
    async fn latest(&self, operation: Operation, limit: u32) -> Result<Vec<PlacedEntry>, ReadError> {
        let filter = EntryFilter { operation: Some(operation), ..EntryFilter::default() };
        self.signing.store.latest_entries(self.tenant.uid, &filter, limit).await
    }

    /// Returns whether pruning removed the first entries of this log, and with them the entries
    /// that named lost heads of the log before. Two things must show it: an entry that says so, and
    /// a signature of the log from the time when those entries still existed. The entry alone
    /// proves nothing, since writing one takes no secret; nor does a signature that this process
    /// has made.
    async fn is_opening_pruned(&self, known: &Known, log: &LogHead) -> Result<bool, ReadError> {
        let tenant = self.tenant.uid;
        let mut is_signed = known.signed_before.contains(&log.log);
        if !is_signed && known.signed.is_none() {
            let kept = self.signing.store.latest_checkpoint(tenant, log.log).await?;
            is_signed = kept.is_some_and(|kept| self.read(&kept.note, log.log).is_some());
        }
        if !is_signed || !self.signing.store.leaves(tenant, log.first..log.first + 1).await?.is_empty() {
            return Ok(false);
        }
        let prunes = self.latest(Operation::Prune, PRUNES).await?;
        let mut pruned = prunes.iter().filter_map(|placed| pruned_leaves(tenant, &placed.row));
        Ok(pruned.any(|(of, leaves)| of == log.log && leaves.contains(&0)))
    }
}
