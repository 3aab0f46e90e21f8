//! The store: every SQL statement of byok. It handles wrapped DEKs and packed entries, never a
//! plaintext and never a plain DEK. It has **one write method**, [`Store::commit`], which takes a
//! closed [`Change`] enum, so that a dry run is a list of changes that is shown and not committed.
//! It has a few small read traits. PostgreSQL and SQLite both implement these and run the same
//! conformance suite.

mod announcement;
mod derived;
mod failure;
mod fence;
mod keeping;
mod migration;
mod open;
mod portion;
pub mod postgres;
mod publication;
mod row;
mod search;
mod shown;
pub mod sqlite;
mod statements;
mod stream;
mod tenancy;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::config;
use crate::merkle::{Frontier, Hash};
use crate::model::{
    Canary, DekId, EntryId, Incident, IncidentId, Job, JobCommand, JobId, KeyVersion, Means, Operation,
    Outcome, Proof, Salted, Tenant, TenantUid, Timestamp, Wrapped,
};

pub use announcement::{AnnouncementOutcome, AnnouncementReads, Attempt, Unannounced};
pub use derived::{Behind, Chunk, ChunkValue, DerivedReads, Outline, TILE_LEVELS, Tile, TileId, WIDTH};
pub use fence::{Fence, Must, Passed, ProofReads, Seen, Watched};
pub use keeping::{Keeping, Personal, Prunable, PruneError, Retention};
pub use migration::{MigrateError, MigrationReport};
pub use open::{OpenError, open};
pub use postgres::Postgres;
pub use publication::{Publication, PublicationReads, Publishing};
pub use sqlite::Sqlite;
pub use stream::{StreamName, StreamReads, StreamRow, StreamStep};
pub use tenancy::{KeyRow, KeyState, Stage, TenancyReads, TenantRow};

/// A row of `np_byok_wrapped_deks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DekRow {
    /// The DEK's id.
    pub id: DekId,
    /// The record that the DEK protects. `None` if the deployment does not require one, and after
    /// the record's erasure.
    pub record_id: Option<Arc<str>>,
    /// The wrapped DEK, as the KMS returned it.
    pub wrapped: Wrapped,
    /// The time when the DEK was made.
    pub created_at: Timestamp,
    /// The MAC that binds the wrapped bytes to the DEK. `None` if the row is not sealed.
    /// `audit::RowMacs` makes both MACs.
    pub mac: Option<[u8; 32]>,
    /// The MAC that binds the record to the DEK, if there is one. It is removed together with the
    /// record's id when that is erased.
    pub record_mac: Option<[u8; 32]>,
}

/// A row of `np_byok_audit`, before it has a position in the log. `audit` packs the content of
/// `items`; the store does not look inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRow {
    /// The entry's id.
    pub id: EntryId,
    /// The time when the call was made durable, by the server's clock.
    pub at: Timestamp,
    /// The operation that was requested.
    pub operation: Operation,
    /// The outcome of the call.
    pub outcome: Outcome,
    /// How the caller was authenticated.
    pub means: Means,
    /// The caller's role.
    pub role: Arc<str>,
    /// The calling user.
    pub user: Option<Salted>,
    /// The id of the request.
    pub request: Salted,
    /// What an operation on the log itself did.
    pub detail: Option<Arc<str>>,
    /// The number of items in the call.
    pub item_count: u32,
    /// The record ids with their salts, as a JSON array with one element per item, in order:
    /// `["<record id>","<salt, base64>"]`, or `null` if there is no record id or it was erased. A
    /// read returns the same JSON, but white space may differ.
    pub records: String,
    /// The packed items.
    pub items: Vec<u8>,
    /// SHA-256 of everything in the entry that never changes, except its time; `audit` defines how.
    /// All zeros for an entry that was written before the log was a tree.
    pub digest: [u8; 32],
}

impl EntryRow {
    /// Returns the entry's leaf in the tenant's Merkle tree: the hash of its time in microseconds
    /// since 1970 (8 bytes, big-endian) and its digest.
    pub fn leaf(&self) -> Hash {
        leaf_of(self.at, &self.digest)
    }
}

/// Returns the leaf of an entry with that time and digest.
pub fn leaf_of(at: Timestamp, digest: &[u8; 32]) -> Hash {
    let mut data = [0; 40];
    data[..8].copy_from_slice(&at.0.to_be_bytes());
    data[8..].copy_from_slice(digest);
    Hash::of_leaf(&data)
}

/// The end of a tenant's log. Entries are counted from 0 over the whole life of the tenant; the
/// tree holds those of the current log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// The number of this log among the tenant's logs, from 1. A restored database continues in
    /// another log.
    pub log: u32,
    /// The position of the log's first entry.
    pub first: u64,
    /// The frontier of the log's tree.
    pub frontier: Frontier,
}

impl LogHead {
    /// Returns the position of the next entry, which is also the number of entries that the tenant
    /// has had.
    pub fn end(&self) -> u64 {
        self.first + self.frontier.size()
    }

    /// Returns the head after these entries are appended.
    #[must_use]
    pub fn extended(&self, entries: &[EntryRow]) -> Self {
        let mut head = self.clone();
        entries.iter().for_each(|entry| head.frontier.append(entry.leaf()));
        head
    }
}

/// One change of the stored data. Each change is applied whole or not at all, and reports in
/// [`Committed::applied`] how many rows it touched.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Adds a tenant and its empty log. Touches nothing if a tenant of that name exists.
    CreateTenant(Tenant),
    /// Adds a wrapped DEK.
    InsertDek(DekRow),
    /// Replaces the wrapped bytes that were read with others. Touches nothing if the row has
    /// changed since.
    Rewrap {
        /// The DEK whose row is changed.
        dek_id: DekId,
        /// The wrapped DEK that was read.
        from: Wrapped,
        /// The wrapped DEK to store instead.
        to: Wrapped,
        /// The MAC of the new content, if the row was sealed when it was read.
        mac: Option<[u8; 32]>,
    },
    /// Gives rows the MACs that they have here. Leaves out each row that differs by now in anything
    /// else. Reports how many were sealed.
    SealDeks(Vec<DekRow>),
    /// Records an incident that is not a change of posture. Does nothing if that incident is
    /// already recorded.
    NoteIncident(Incident),
    /// Adds a rotation job. Touches nothing while the tenant has a live job.
    StartJob(Job),
    /// Takes or renews the lease of a running job, for `lease` from now by the database's clock.
    /// Touches nothing while another holder has the lease.
    LeaseJob {
        /// The job to lease.
        job: JobId,
        /// The worker that takes the lease.
        holder: Uuid,
        /// The duration of the lease.
        lease: Duration,
    },
    /// Commits a job's position, progress and state. Touches nothing if `holder` has lost the
    /// lease, or if the job was paused or has ended since.
    AdvanceJob {
        /// The job in its current state.
        job: Job,
        /// The worker that holds the lease.
        holder: Uuid,
        /// The last DEK that was processed.
        after: Option<DekId>,
    },
    /// Puts a live job into the state that the command leads to, and takes the job from its current
    /// worker, whose next position is then not stored. Touches nothing if the job has ended, unless
    /// it ended in that state. Changes nothing if the job is already in that state.
    CommandJob {
        /// The job that gets the command.
        job: JobId,
        /// The command for the job.
        command: JobCommand,
        /// The time of the command.
        at: Timestamp,
    },
    /// Adds a key version to the watched ones. Changes nothing if it is already there and is not
    /// retired.
    Watch {
        /// The proof of the key version.
        proof: Proof,
        /// The canary that probes unwrap.
        canary: Canary,
    },
    /// Reports that DEKs of a key version are in memory, for `lasting` from now by the database's
    /// clock. Touches nothing if the key version is retired.
    Need {
        /// The key version in use.
        key_version: KeyVersion,
        /// How long the key version is needed.
        lasting: Duration,
    },
    /// Stops watching every key version except this one, because nothing is wrapped under the
    /// others any more. Raises their epochs, so that no call that began under them is answered. No
    /// read returns a retired key version until it is watched again.
    Retire {
        /// The key version that stays watched.
        all_but: KeyVersion,
    },
    /// Replaces the proof of revision `from` with its next form, and adds the incident that this
    /// makes. Touches nothing if another writer was first.
    Prove {
        /// The revision of the proof that was read.
        from: u64,
        /// The proof to store instead.
        to: Proof,
        /// The incident, if the posture changes.
        incident: Option<Incident>,
    },
    /// Stores a signed head. Touches nothing if one of that size exists.
    AddCheckpoint {
        /// The number of the tenant's log.
        log: u32,
        /// The number of leaves that the head covers.
        size: u64,
        /// The signed note.
        note: Arc<str>,
    },
    /// Takes the next attempt to publish a checkpoint at a destination, or reports the result of an
    /// attempt. Touches nothing if none is due, or if another holder has it.
    Publish {
        /// The destination's name.
        place: Arc<str>,
        /// The replica that makes the attempt.
        holder: Uuid,
        /// The start of the attempt, or its result.
        step: Publishing,
    },
    /// Ends the tenant's log and opens another one before the batch's entries are appended, so that
    /// they are its first. If the current head is no longer `from`, it touches nothing, and a batch
    /// with entries fails like one that comes too late.
    OpenLog {
        /// The head of the log that ends.
        from: LogHead,
        /// The number of the new log.
        log: u32,
    },
    /// Places a hold on all of the tenant's entries, so that they are kept at any age, or lifts the
    /// hold. Touches nothing if that is already the case. Only the owner may do this.
    Hold {
        /// Whether the hold is on.
        on: bool,
    },
    /// Sets a personal value to null in the entries at these positions. Erases nothing for a tenant
    /// on hold. Only the owner may do this.
    Erase {
        /// The personal value.
        personal: Personal,
        /// The positions of the entries.
        places: Range<u64>,
        /// Whether the value is also removed from the index of chunks. Set with the last positions
        /// of a chunk.
        in_index: bool,
    },
    /// Replaces a record's id with its HMAC in the rows of its DEKs. Erases nothing for a tenant on
    /// hold. Only the owner may do this.
    EraseFromDeks {
        /// The record's id.
        record_id: Arc<str>,
        /// The HMAC that replaces the id, under a salt that is stored nowhere.
        hmac: [u8; 32],
    },
    /// Records that entries were exported. Only the owner may do this.
    NoteExport {
        /// The positions of the exported entries.
        places: Range<u64>,
    },
    /// Adds tiles of one log, sorted by [`TileId`]. Existing tiles stay. Reports how many were
    /// added.
    AddTiles {
        /// The number of the tenant's log.
        log: u32,
        /// The tiles, all of them full.
        tiles: Vec<Tile>,
    },
    /// Adds the values that occur in chunks, sorted. Existing ones stay. Must come before the
    /// chunks themselves.
    AddChunkValues(Vec<ChunkValue>),
    /// Adds chunks in their order. From then on, all values of these chunks count as present.
    /// Existing chunks stay. Reports how many were added.
    AddChunks(Vec<Chunk>),
    /// Takes the next attempt to announce an incident, or reports the result of an attempt. Touches
    /// nothing if another holder has it.
    Announce {
        /// The incident to announce.
        incident: IncidentId,
        /// The number of the attempt, counted from 1.
        attempt: u32,
        /// The replica that makes the attempt.
        holder: Uuid,
        /// The start of the attempt, or its result.
        step: Attempt,
    },
    /// Takes or renews the lease of a stream of the log, or reports how far it has come. Touches
    /// nothing if another holder has it.
    Stream {
        /// The stream's name.
        name: StreamName,
        /// The replica that sends the stream.
        holder: Uuid,
        /// The step to record.
        step: StreamStep,
    },
}

/// Everything that is committed together for one tenant: entries, changes, and the fence that
/// applies to both.
///
/// Committing the identical batch again never applies it twice. With entries, the log has moved on,
/// and position `base` holds the first of them. Without entries, each change is defined so that
/// repeating it does nothing more.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The tenant that owns this batch.
    pub tenant: TenantUid,
    /// The size of the tenant's log that `entries` are appended to. The commit is a
    /// compare-and-swap on it. Ignored if there are no entries.
    pub base: u64,
    /// The entries, in their order in the log.
    pub entries: Vec<EntryRow>,
    /// The changes, applied in order in the same transaction.
    pub changes: Vec<Change>,
    /// The conditions on the keys in use when the entries are appended. Ignored if there are no
    /// entries.
    pub fence: Vec<Fence>,
}

impl Batch {
    /// Returns a batch of changes without entries.
    pub fn of_changes(tenant: TenantUid, changes: Vec<Change>) -> Self {
        Self { tenant, base: 0, entries: Vec::new(), changes, fence: Vec::new() }
    }
}

/// What a commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The number of rows that each change touched, in order. After a retry of a batch whose
    /// outcome was unknown, what the rows show now.
    pub applied: Vec<u64>,
    /// What the commit found of the keys in the fence. `None` if there was no fence, and after a
    /// retry of a batch whose outcome was unknown: in that case the fence was passed, but it is not
    /// known when.
    pub passed: Option<Passed>,
}

/// Why a batch was not committed, as far as is known. The error describes this attempt only: after
/// an earlier [`CommitError::Unknown`], only [`Committed`], [`CommitError::Moved`] or
/// [`CommitError::Fenced`] settles the outcome of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitError {
    /// Another replica has appended to the log. Nothing was done.
    Moved {
        /// The current size of the log, as the base of the next attempt.
        size: u64,
    },
    /// A condition of the fence does not hold. Nothing was done.
    Fenced,
    /// The connection was lost after the statement was sent. Commit the identical batch again: it
    /// is never applied twice.
    Unknown,
    /// The database is unreachable. Nothing was done.
    Unavailable,
    /// The log has the size that this process last saw, but different content: the database went
    /// back in time. Nothing was done.
    Rewound,
    /// The database refused the batch (a constraint, a missing table or right, a NUL in a text, an
    /// unknown tenant). Nothing was done, and a retry will not help.
    Rejected,
}

/// Why a read failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The database is unreachable.
    Unavailable,
    /// The database was not asked: too many calls are waiting for it to answer this one in time.
    Busy,
    /// The database refused the query: a table, a column or a right is missing. This says nothing
    /// about what the database holds.
    Rejected,
    /// A row is damaged, or does not have the form that byok writes.
    Malformed,
}

/// The conditions that entries of a page of the audit log must meet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryFilter {
    /// Only entries at or after this time.
    pub from: Option<Timestamp>,
    /// Only entries before this time.
    pub until: Option<Timestamp>,
    /// Only this operation.
    pub operation: Option<Operation>,
    /// Only this outcome.
    pub outcome: Option<Outcome>,
    /// Only this caller.
    pub user: Option<String>,
    /// Only calls with an item of this record.
    pub record_id: Option<String>,
    /// The other name that the log may have for that record: an id that is too long to store is
    /// recorded as its hash.
    pub record_hash: Option<String>,
}

/// An entry with its position in the tenant's log, counted from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedEntry {
    /// The entry's position.
    pub seq: u64,
    /// The entry.
    pub row: EntryRow,
}

/// A page of entries, newest first, and the position to continue from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The matching entries.
    pub entries: Vec<PlacedEntry>,
    /// The position down to which everything was searched; there may be more below it. `None` if
    /// everything was searched.
    pub next: Option<u64>,
}

/// Reads of tenants and of the heads of their logs.
#[async_trait]
pub trait TenantReads {
    /// Returns the tenant of that name.
    async fn tenant(&self, name: &str) -> Result<Option<Tenant>, ReadError>;

    /// Returns all tenants, ordered by name.
    async fn tenants(&self) -> Result<Vec<Tenant>, ReadError>;

    /// Returns the head of the tenant's log, or `None` for a tenant without a log.
    async fn log_head(&self, tenant: TenantUid) -> Result<Option<LogHead>, ReadError>;

    /// Returns the size of the tenant's log, or 0 for a tenant without a log.
    async fn log_size(&self, tenant: TenantUid) -> Result<u64, ReadError>;
}

/// Reads of wrapped DEKs.
#[async_trait]
pub trait DekReads {
    /// Returns the rows with these ids, in any order. Unknown ids are left out.
    async fn deks(&self, tenant: TenantUid, ids: &[DekId]) -> Result<Vec<DekRow>, ReadError>;

    /// Returns the newest DEK of each of these records, in any order. Records without a DEK are
    /// left out.
    async fn deks_of_records(
        &self,
        tenant: TenantUid,
        records: &[Arc<str>],
    ) -> Result<Vec<DekRow>, ReadError>;

    /// Returns up to `limit` rows with ids above `after`, ordered by id.
    async fn deks_after(
        &self,
        tenant: TenantUid,
        after: Option<DekId>,
        limit: u32,
    ) -> Result<Vec<DekRow>, ReadError>;

    /// Returns up to `limit` rows without a MAC with ids above `after`, ordered by id. Leaves out
    /// rows whose wrapped bytes are longer than 64 KiB, which is more than any provider makes.
    async fn unsealed_deks(
        &self,
        tenant: TenantUid,
        after: Option<DekId>,
        limit: u32,
    ) -> Result<Vec<DekRow>, ReadError>;

    /// Returns how many DEKs are wrapped under a version other than this one.
    async fn deks_not_under(&self, tenant: TenantUid, version: &KeyVersion) -> Result<u64, ReadError>;
}

/// Reads of rotation jobs.
#[async_trait]
pub trait JobReads {
    /// Returns one job and the last DEK that was processed.
    async fn job(&self, tenant: TenantUid, id: JobId) -> Result<Option<(Job, Option<DekId>)>, ReadError>;

    /// Returns the live job, or else the newest one.
    async fn latest_job(&self, tenant: TenantUid) -> Result<Option<Job>, ReadError>;

    /// Returns the running jobs of all tenants.
    async fn running_jobs(&self) -> Result<Vec<(Tenant, JobId)>, ReadError>;
}

/// Reads of the audit log.
#[async_trait]
pub trait AuditReads: Sync {
    /// Returns up to `limit` (1 or more) matching entries below `before` (all when `None`), newest
    /// first. The amount that one call reads is bounded: a page may have fewer entries, or none,
    /// with more to come.
    async fn entries(
        &self,
        tenant: TenantUid,
        filter: &EntryFilter,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Page, ReadError>;

    /// Returns the latest `limit` (1 or more) matching entries, newest first, reading as many pages
    /// as that takes. Returns fewer if there are no more.
    async fn latest_entries(
        &self,
        tenant: TenantUid,
        filter: &EntryFilter,
        limit: u32,
    ) -> Result<Vec<PlacedEntry>, ReadError> {
        let (mut found, mut before) = (Vec::new(), None);
        loop {
            let page = self.entries(tenant, filter, before, limit).await?;
            found.extend(page.entries);
            before = page.next;
            if before.is_none() || found.len() >= limit as usize {
                return Ok(found);
            }
        }
    }

    /// Returns up to `limit` entries from this position on, oldest first. Returns fewer if they are
    /// large, and none only if none are left. All entries at one position come together, unless
    /// `limit` separates them. Missing positions are left out.
    async fn entries_from(
        &self,
        tenant: TenantUid,
        from: u64,
        limit: u32,
    ) -> Result<Vec<PlacedEntry>, ReadError>;

    /// Returns the number of bytes that the entries at these positions take up in the database,
    /// oldest first, each with its position. Missing entries are left out.
    async fn sizes(&self, tenant: TenantUid, places: Range<u64>) -> Result<Vec<(u64, u64)>, ReadError>;

    /// Returns the positions of the entries from time `from` on and before time `until`, if given,
    /// from the lowest to the highest. Returns `None` if there is no entry in that time.
    async fn places(
        &self,
        tenant: TenantUid,
        from: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> Result<Option<Range<u64>>, ReadError>;

    /// Returns the leaves at these positions of the log, oldest first, each with its position.
    /// Missing leaves are left out.
    async fn leaves(&self, tenant: TenantUid, places: Range<u64>) -> Result<Vec<(u64, Hash)>, ReadError>;
}

/// A signed head, as it was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRow {
    /// The number of leaves that the head covers.
    pub size: u64,
    /// The signed note.
    pub note: Arc<str>,
    /// The time when the row was stored, by the database's clock.
    pub made_at: Timestamp,
}

/// Reads of signed heads.
#[async_trait]
pub trait CheckpointReads {
    /// Returns the checkpoint of the largest size in one of the tenant's logs.
    async fn latest_checkpoint(
        &self,
        tenant: TenantUid,
        log: u32,
    ) -> Result<Option<CheckpointRow>, ReadError>;

    /// Returns up to `limit` checkpoints of one log, of at least this size, ordered by size.
    async fn checkpoints_from(
        &self,
        tenant: TenantUid,
        log: u32,
        size: u64,
        limit: u32,
    ) -> Result<Vec<CheckpointRow>, ReadError>;
}

/// All reads that are needed to verify a log and to prove parts of it. Nothing can be written
/// through this trait.
pub trait LogReads:
    TenantReads + DekReads + AuditReads + CheckpointReads + PublicationReads + DerivedReads + Send + Sync
{
}

impl<R> LogReads for R where
    R: TenantReads
        + DekReads
        + AuditReads
        + CheckpointReads
        + PublicationReads
        + DerivedReads
        + Send
        + Sync
        + ?Sized
{
}

/// A database.
#[async_trait]
pub trait Store:
    LogReads
    + TenantReads
    + DekReads
    + JobReads
    + AuditReads
    + CheckpointReads
    + PublicationReads
    + DerivedReads
    + ProofReads
    + AnnouncementReads
    + StreamReads
    + Send
    + Sync
{
    /// Commits a batch durably, whole or not at all.
    ///
    /// # Errors
    /// See [`CommitError`]. Only after [`CommitError::Unknown`] may the batch have been committed.
    async fn commit(&self, batch: &Batch) -> Result<Committed, CommitError>;

    /// Waits for a turn at the tenant's head, sets the batch's base to the size found there, and
    /// commits as [`Self::commit`] does. This is for a log that others append to all the time,
    /// where a compare-and-swap would never win. `base` is set before anything is committed, so the
    /// identical batch can be committed again after an unknown outcome.
    ///
    /// # Errors
    /// As for [`Self::commit`], but never [`CommitError::Moved`] on a database that lets writers
    /// queue.
    async fn commit_in_turn(&self, batch: &mut Batch) -> Result<Committed, CommitError> {
        batch.base = self.log_size(batch.tenant).await.map_err(|_| CommitError::Unavailable)?;
        self.commit(batch).await
    }

    /// Returns `Ok` if the database answers.
    async fn ping(&self) -> Result<(), ReadError>;
}

/// The ways in which the database's own rules fail to restrict the serving role. All `false` means
/// full protection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exposure {
    /// The serving role owns the audit table, its schema or the database, and so can drop them or
    /// turn the triggers off.
    pub owns_audit: bool,
    /// The serving role is a superuser.
    pub superuser: bool,
    /// The serving role holds the right to update, delete or truncate entries (which the triggers
    /// still refuse).
    pub may_change_entries: bool,
    /// A trigger that refuses changes of entries is missing or off.
    pub unguarded: bool,
    /// The server does not flush what it commits (`fsync` or `full_page_writes` is off).
    pub volatile: bool,
    /// A role that owns neither the tables nor their schema may create objects in it. Statements of
    /// other roles may find those objects instead of PostgreSQL's own.
    pub schema_is_open: bool,
    /// One of byok's functions looks up what it calls outside `pg_catalog`.
    pub open_search_path: bool,
}

impl Exposure {
    /// Returns whether anything is left unprotected.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// A database as its operator sees it: what `serve`, `migrate`, `doctor` and health need in
/// addition to [`Store`].
#[async_trait]
pub trait Database: Store + Keeping + TenancyReads {
    /// Brings the schema to the level of this binary. Does nothing if it is already there. Several
    /// processes may do so at once. Uses the migration URL if one is set, and then grants the
    /// serving role what it needs.
    ///
    /// # Errors
    /// See [`MigrateError`]. A retry helps only after [`MigrateError::Unavailable`].
    async fn migrate(&self) -> Result<MigrationReport, MigrateError>;

    /// Builds the missing indexes that no migration makes, and returns how many. This may take
    /// long; others read and write meanwhile. Uses the migration URL if one is set.
    ///
    /// # Errors
    /// See [`ReadError`]. `Rejected` for a role that does not own the tables. Missing indexes make
    /// the server slower: if that takes too long, rows are sealed later.
    async fn build_indexes(&self) -> Result<u32, ReadError>;

    /// Returns how many migrations this binary has for the database.
    fn level(&self) -> u32;

    /// Returns the state of the schema without changing anything. [`MigrationReport::usable`] tells
    /// whether this binary can serve it.
    ///
    /// # Errors
    /// See [`ReadError`].
    async fn schema(&self) -> Result<MigrationReport, ReadError>;

    /// Returns what the serving role could do that it should not.
    ///
    /// # Errors
    /// See [`ReadError`].
    async fn exposure(&self) -> Result<Exposure, ReadError>;

    /// Switches to other URLs for the same database: the serving role's and the owner's.
    /// Connections that were made with the previous URLs are closed as soon as they are idle, and
    /// none of them is used for another statement. Returns false if the switch requires a restart;
    /// in that case nothing has changed. Must be called within the runtime.
    ///
    /// # Errors
    /// [`OpenError::Url`].
    fn take_urls(&self, settings: &config::Store) -> Result<bool, OpenError>;

    /// Does the daily maintenance of the database: creates the partitions of the coming months.
    ///
    /// # Errors
    /// See [`ReadError`].
    async fn upkeep(&self) -> Result<(), ReadError>;
}
