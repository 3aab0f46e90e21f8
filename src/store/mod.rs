//! Every SQL statement. Handles wrapped DEKs and packed entries; never a plaintext, never a plain DEK. There is **one
//! write method**, [`Store::commit`], with a closed [`Change`] enum, so that a dry run is a list of changes that is
//! shown and not committed; and a few small read traits. PostgreSQL and SQLite stand behind it, and run one conformance
//! suite.

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

/// A row of `np_byok_wrapped_deks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DekRow {
    /// Which DEK.
    pub id: DekId,
    /// The record that it protects; `None` where the deployment does not require one, and after the record's erasure.
    pub record_id: Option<Arc<str>>,
    /// As the KMS returned it.
    pub wrapped: Wrapped,
    /// When it was made.
    pub created_at: Timestamp,
    /// What binds the wrapped bytes to the DEK; `None` where the row is not sealed. `audit::RowMacs` makes both.
    pub mac: Option<[u8; 32]>,
    /// What binds the record to the DEK, where there is one. It goes with the record's id when that is erased.
    pub record_mac: Option<[u8; 32]>,
}

/// A row of `np_byok_audit`, before it has a place in the log. What `items` holds is packed by `audit`; the store does
/// not look inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRow {
    /// Its id.
    pub id: EntryId,
    /// When the call was made durable, by the server's clock.
    pub at: Timestamp,
    /// What was asked for.
    pub operation: Operation,
    /// How it ended.
    pub outcome: Outcome,
    /// How the caller was recognised.
    pub means: Means,
    /// The caller's role.
    pub role: Arc<str>,
    /// The caller.
    pub user: Option<Salted>,
    /// Our request id.
    pub request: Salted,
    /// What an operation on the log itself did.
    pub detail: Option<Arc<str>>,
    /// How many items the call had.
    pub item_count: u32,
    /// Record ids with their salts, as a JSON array with one element an item, in order: `["<record id>","<salt, base64>"]`,
    /// or `null` where there is none or it was erased. Read back it is the same JSON; white space may differ.
    pub records: String,
    /// The packed items.
    pub items: Vec<u8>,
    /// SHA-256 of all of it that never changes, but its time; `audit` says how. Zeros for an entry from before the log was a
    /// tree.
    pub digest: [u8; 32],
}

impl EntryRow {
    /// Its leaf in the tenant's Merkle tree: the hash of its time in microseconds since 1970 (8 bytes, big-endian) and its
    /// digest.
    pub fn leaf(&self) -> Hash {
        leaf_of(self.at, &self.digest)
    }
}

/// The leaf of an entry of that time and digest.
pub fn leaf_of(at: Timestamp, digest: &[u8; 32]) -> Hash {
    let mut data = [0; 40];
    data[..8].copy_from_slice(&at.0.to_be_bytes());
    data[8..].copy_from_slice(digest);
    Hash::of_leaf(&data)
}

/// Where a tenant's log ends. Entries are counted from 0 for as long as there is the tenant; the tree has those of the
/// current log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// Which of the tenant's logs, from 1: a database that was restored goes on in another one.
    pub log: u32,
    /// Its first entry's place.
    pub first: u64,
    /// Its tree.
    pub frontier: Frontier,
}

impl LogHead {
    /// The place of the next entry: how many the tenant has had.
    pub fn end(&self) -> u64 {
        self.first + self.frontier.size()
    }

    /// As it is once these are appended.
    #[must_use]
    pub fn extended(&self, entries: &[EntryRow]) -> Self {
        let mut head = self.clone();
        entries.iter().for_each(|entry| head.frontier.append(entry.leaf()));
        head
    }
}

/// One change of what is stored. Each is all or nothing and says in [`Committed::applied`] how many rows it touched.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Adds a tenant and its empty log; touches nothing when one of that name is there.
    CreateTenant(Tenant),
    /// Adds a wrapped DEK.
    InsertDek(DekRow),
    /// Puts other wrapped bytes in the place of those that were read; touches nothing when the row changed meanwhile.
    Rewrap {
        /// Which DEK.
        dek_id: DekId,
        /// What was read.
        from: Wrapped,
        /// What to hold instead.
        to: Wrapped,
        /// The MAC of what it holds then, where the row was sealed as it was read.
        mac: Option<[u8; 32]>,
    },
    /// Gives rows the MACs that they have here; leaves out each that is not the same in all else any more. Says how many were
    /// sealed.
    SealDeks(Vec<DekRow>),
    /// Writes down an incident that is no change of a posture; does nothing more when it is there.
    NoteIncident(Incident),
    /// Adds a rotation job; touches nothing while the tenant has one that is live.
    StartJob(Job),
    /// Takes, or keeps, the lease of a running job for so long from now by the database's clock; touches nothing while
    /// another holder has it.
    LeaseJob {
        /// Which job.
        job: JobId,
        /// Who works on it.
        holder: Uuid,
        /// For how long.
        lease: Duration,
    },
    /// Commits a job's place, progress and state; touches nothing when `holder` has lost the lease, or the job was paused or
    /// ended meanwhile.
    AdvanceJob {
        /// The job as it stands now.
        job: Job,
        /// Who works on it.
        holder: Uuid,
        /// The last DEK that was dealt with.
        after: Option<DekId>,
    },
    /// Puts a job that is live into the state that the command leads to, and takes it from whoever works on it, whose next
    /// place is not kept then. Touches nothing where the job has ended, unless it is in that state; changes nothing where it is.
    CommandJob {
        /// Which job.
        job: JobId,
        /// What is to become of it.
        command: JobCommand,
        /// When.
        at: Timestamp,
    },
    /// Adds a key version to those that are watched; changes nothing when it is there and is not retired.
    Watch {
        /// What is known of it.
        proof: Proof,
        /// What probes are to unwrap.
        canary: Canary,
    },
    /// Says that a key version's DEKs are in memory, for so long from now by the database's clock; touches nothing when it
    /// is retired.
    Need {
        /// Which.
        key_version: KeyVersion,
        /// For how long.
        lasting: Duration,
    },
    /// Takes all key versions but this one out of those that are watched, as nothing is wrapped under them any more. Their
    /// epochs are raised, so that nothing is answered that began under them; until one is watched anew, no read has it.
    Retire {
        /// The one that stays.
        all_but: KeyVersion,
    },
    /// Puts a proof's next form in the place of that of revision `from`, with the incident that it makes; touches nothing
    /// when another was first.
    Prove {
        /// The revision that was read.
        from: u64,
        /// What to hold instead.
        to: Proof,
        /// Where its posture is another.
        incident: Option<Incident>,
    },
    /// Keeps a signed head; touches nothing where one of that size is there.
    AddCheckpoint {
        /// Of which of the tenant's logs.
        log: u32,
        /// How many leaves it speaks of.
        size: u64,
        /// The signed note.
        note: Arc<str>,
    },
    /// Takes the next attempt to publish a checkpoint at a place, or says how it went; touches nothing when none is due, or
    /// it is another's.
    Publish {
        /// The place's name.
        place: Arc<str>,
        /// Who makes it.
        holder: Uuid,
        /// That it begins, or how it went.
        step: Publishing,
    },
    /// Ends the tenant's log and opens another one, before the batch's entries are appended: they are its first. Touches
    /// nothing, and fails a batch with entries as one that comes too late, when the head is not this one any more.
    OpenLog {
        /// The head of the log that ends.
        from: LogHead,
        /// The number of the one that is opened.
        log: u32,
    },
    /// Keeps all of the tenant's entries whatever their age, or no longer; touches nothing where it is so. The owner's.
    Hold {
        /// Whether they are kept.
        on: bool,
    },
    /// Sets a personal value to null in the entries at these places, and in none of a tenant on hold. The owner's.
    Erase {
        /// What.
        personal: Personal,
        /// Where.
        places: Range<u64>,
        /// Whether the index of chunks forgets the value too: with the last places of a chunk.
        in_index: bool,
    },
    /// Takes a record's id out of the rows of its DEKs, and puts its HMAC there; out of none of a tenant on hold. The owner's.
    EraseFromDeks {
        /// The record's id.
        record_id: Arc<str>,
        /// What stays of it: its HMAC under a salt that is kept nowhere.
        hmac: [u8; 32],
    },
    /// Notes that entries were exported. The owner's.
    NoteExport {
        /// Which.
        places: Range<u64>,
    },
    /// Adds tiles of one log, sorted by [`TileId`]; those that are there stay. Says how many were added.
    AddTiles {
        /// Of which of the tenant's logs.
        log: u32,
        /// Full ones.
        tiles: Vec<Tile>,
    },
    /// Names the values that come in chunks, sorted; those that are named stay. Comes before the chunks themselves.
    AddChunkValues(Vec<ChunkValue>),
    /// Adds chunks in their order, and with them their values are taken to be all there; those that are there stay. Says how
    /// many were added.
    AddChunks(Vec<Chunk>),
    /// Takes the next attempt to announce an incident, or says how it went; touches nothing when it is another's.
    Announce {
        /// Which incident.
        incident: IncidentId,
        /// Which attempt, counted from 1.
        attempt: u32,
        /// Who makes it.
        holder: Uuid,
        /// That it begins, or how it went.
        step: Attempt,
    },
    /// Takes or keeps a stream of the log, or says how far it has come; touches nothing when it is another's.
    Stream {
        /// Which.
        name: StreamName,
        /// Who sends it.
        holder: Uuid,
        /// What became of it.
        step: StreamStep,
    },
}

/// What is committed at once, for one tenant: entries, changes, and the fence that both stand under.
///
/// Committing the identical batch again never applies it twice: with entries, because the log has moved on and its place
/// `base` holds the first of them; without, because each change is so made that doing it again does nothing more.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Whose.
    pub tenant: TenantUid,
    /// The size of the tenant's log that `entries` follow on; the commit is a compare-and-swap on it. Not looked at when
    /// there are no entries.
    pub base: u64,
    /// In their order in the log.
    pub entries: Vec<EntryRow>,
    /// Applied in order, in the same transaction.
    pub changes: Vec<Change>,
    /// What must hold of the keys in use when the entries are appended. Not looked at when there are no entries.
    pub fence: Vec<Fence>,
}

impl Batch {
    /// Changes that no entry goes with.
    pub fn of_changes(tenant: TenantUid, changes: Vec<Change>) -> Self {
        Self { tenant, base: 0, entries: Vec::new(), changes, fence: Vec::new() }
    }
}

/// What a commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// How many rows each change touched, in order. After a retry of a batch whose outcome was unknown, what the rows
    /// show now.
    pub applied: Vec<u64>,
    /// What was found of the keys of the fence; `None` where there was none, and after a retry of a batch whose outcome
    /// was unknown: then the fence was passed, but nobody knows when.
    pub passed: Option<Passed>,
}

/// Why a batch was not committed, as far as is known. It speaks of this try alone: after an earlier
/// [`CommitError::Unknown`], only [`Committed`], [`CommitError::Moved`] or
/// [`CommitError::Fenced`] settles what became of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitError {
    /// Another replica has appended: the log's size is this now. Nothing was done.
    Moved {
        /// To base the next try on.
        size: u64,
    },
    /// Something that the fence asks for does not hold. Nothing was done.
    Fenced,
    /// The connection was lost after the statement went out. Commit the identical batch again: it is never applied twice.
    Unknown,
    /// The database is out of reach; nothing was done.
    Unavailable,
    /// The log has the size that it had when this process saw it last, and another content: the database went back in time.
    /// Nothing was done.
    Rewound,
    /// The database refused the batch (a constraint, a missing table or right, a NUL in a text, an unknown tenant);
    /// nothing was done, and a retry will not help.
    Rejected,
}

/// Why a read failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The database is out of reach.
    Unavailable,
    /// The database was not asked: so many calls wait for it that this one could not be answered in time.
    Busy,
    /// The database refused the query: a table, a column or a right is missing. Says nothing about what it holds.
    Rejected,
    /// A row is damaged, or not of the form that we write.
    Malformed,
}

/// Where a page of the audit log ends and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryFilter {
    /// At or after.
    pub from: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
    /// Only this operation.
    pub operation: Option<Operation>,
    /// Only this outcome.
    pub outcome: Option<Outcome>,
    /// Only this caller.
    pub user: Option<String>,
    /// Only calls with an item of this record.
    pub record_id: Option<String>,
    /// What else the log may call that record: an id that is too long to be kept is recorded as its hash.
    pub record_hash: Option<String>,
}

/// An entry with its place in the tenant's log, counted from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedEntry {
    /// Its place.
    pub seq: u64,
    /// The entry.
    pub row: EntryRow,
}

/// Entries, newest first, and where to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Those that match.
    pub entries: Vec<PlacedEntry>,
    /// Everything from this place on was looked at, and below it there may be more; `None` when all was looked at.
    pub next: Option<u64>,
}

/// Reads of tenants and their logs' heads.
#[async_trait]
pub trait TenantReads {
    /// The tenant of that name.
    async fn tenant(&self, name: &str) -> Result<Option<Tenant>, ReadError>;

    /// All tenants, by name.
    async fn tenants(&self) -> Result<Vec<Tenant>, ReadError>;

    /// Where the tenant's log ends; `None` for a tenant that has none.
    async fn log_head(&self, tenant: TenantUid) -> Result<Option<LogHead>, ReadError>;

    /// The size of the tenant's log; 0 for a tenant that has none.
    async fn log_size(&self, tenant: TenantUid) -> Result<u64, ReadError>;
}

/// Reads of wrapped DEKs.
#[async_trait]
pub trait DekReads {
    /// The rows with these ids, in any order; unknown ids are left out.
    async fn deks(&self, tenant: TenantUid, ids: &[DekId]) -> Result<Vec<DekRow>, ReadError>;

    /// The newest DEK of each of these records, in any order; records without one are left out.
    async fn deks_of_records(
        &self,
        tenant: TenantUid,
        records: &[Arc<str>],
    ) -> Result<Vec<DekRow>, ReadError>;

    /// Up to `limit` rows with ids above `after`, in order of id.
    async fn deks_after(
        &self,
        tenant: TenantUid,
        after: Option<DekId>,
        limit: u32,
    ) -> Result<Vec<DekRow>, ReadError>;

    /// Up to `limit` rows without a MAC with ids above `after`, in order of id. Those whose wrapped bytes are longer than any
    /// provider makes them, 64 KiB, are left out.
    async fn unsealed_deks(
        &self,
        tenant: TenantUid,
        after: Option<DekId>,
        limit: u32,
    ) -> Result<Vec<DekRow>, ReadError>;

    /// How many DEKs are wrapped under another version than this.
    async fn deks_not_under(&self, tenant: TenantUid, version: &KeyVersion) -> Result<u64, ReadError>;
}

/// Reads of rotation jobs.
#[async_trait]
pub trait JobReads {
    /// One job, with the last DEK that was dealt with.
    async fn job(&self, tenant: TenantUid, id: JobId) -> Result<Option<(Job, Option<DekId>)>, ReadError>;

    /// The job that is live, or else the newest one.
    async fn latest_job(&self, tenant: TenantUid) -> Result<Option<Job>, ReadError>;

    /// Every tenant's running jobs.
    async fn running_jobs(&self) -> Result<Vec<(Tenant, JobId)>, ReadError>;
}

/// Reads of the audit log.
#[async_trait]
pub trait AuditReads: Sync {
    /// Up to `limit` (1 or more) entries below `before` (all when `None`) that match, newest first. How much is read for it is
    /// bounded: a page may have fewer, or none, with more to come.
    async fn entries(
        &self,
        tenant: TenantUid,
        filter: &EntryFilter,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Page, ReadError>;

    /// The latest `limit` (1 or more) entries that match, newest first, however many pages that takes; fewer where there are
    /// no more.
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

    /// Up to `limit` entries from this place on, oldest first; fewer where they are large, and none only where none are left.
    /// All entries of a place come together, where `limit` does not part them. A place that is missing is left out.
    async fn entries_from(
        &self,
        tenant: TenantUid,
        from: u64,
        limit: u32,
    ) -> Result<Vec<PlacedEntry>, ReadError>;

    /// How many bytes the entries at these places take up in the database, oldest first, each with its place. What is missing
    /// is left out.
    async fn sizes(&self, tenant: TenantUid, places: Range<u64>) -> Result<Vec<(u64, u64)>, ReadError>;

    /// The places of the entries from this time on and before that, each where it is given: from the lowest to the highest.
    /// `None` when there is no entry of that time.
    async fn places(
        &self,
        tenant: TenantUid,
        from: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> Result<Option<Range<u64>>, ReadError>;

    /// The leaves at these places of the log, oldest first, each with its place. What is missing is left out.
    async fn leaves(&self, tenant: TenantUid, places: Range<u64>) -> Result<Vec<(u64, Hash)>, ReadError>;
}

/// A signed head, as it was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRow {
    /// How many leaves it speaks of.
    pub size: u64,
    /// The signed note.
    pub note: Arc<str>,
    /// When, by the database's clock.
    pub made_at: Timestamp,
}

/// Reads of signed heads.
#[async_trait]
pub trait CheckpointReads {
    /// The one of the largest size in one of the tenant's logs.
    async fn latest_checkpoint(
        &self,
        tenant: TenantUid,
        log: u32,
    ) -> Result<Option<CheckpointRow>, ReadError>;

    /// Up to `limit` of one log, of at least this size, by size.
    async fn checkpoints_from(
        &self,
        tenant: TenantUid,
        log: u32,
        size: u64,
        limit: u32,
    ) -> Result<Vec<CheckpointRow>, ReadError>;
}

/// All that is read to verify a log and to prove parts of it. Nothing can be written through it.
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
    /// See [`CommitError`]; only after [`CommitError::Unknown`] may the batch have been committed.
    async fn commit(&self, batch: &Batch) -> Result<Committed, CommitError>;

    /// Waits for its turn at the tenant's head, sets the batch's base to the size that is there, and commits as
    /// [`Self::commit`] does. For a log that others append to all the time: a compare-and-swap would never win. `base` is
    /// set before anything is committed, so the identical batch can be committed again after an unknown outcome.
    ///
    /// # Errors
    /// As of [`Self::commit`], but never [`CommitError::Moved`] where the database lets writers queue.
    async fn commit_in_turn(&self, batch: &mut Batch) -> Result<Committed, CommitError> {
        batch.base = self.log_size(batch.tenant).await.map_err(|_| CommitError::Unavailable)?;
        self.commit(batch).await
    }

    /// Whether the database answers.
    async fn ping(&self) -> Result<(), ReadError>;
}

/// What the database's own rules do not keep the serving role from. All `false` is the whole protection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exposure {
    /// It owns the audit table, its schema or the database, and so can drop them or turn the triggers off.
    pub owns_audit: bool,
    /// It is a superuser.
    pub superuser: bool,
    /// It holds the right to update, delete or truncate entries (which the triggers still refuse).
    pub may_change_entries: bool,
    /// A trigger that refuses changes of entries is missing or off.
    pub unguarded: bool,
    /// The server does not flush what it commits (`fsync` or `full_page_writes` is off).
    pub volatile: bool,
    /// A role that owns neither the tables nor their schema may make objects in it: what it makes there may be found in the
    /// place of PostgreSQL's own by statements of other roles.
    pub schema_is_open: bool,
    /// A function of ours looks for what it calls elsewhere than in `pg_catalog`.
    pub open_search_path: bool,
}

impl Exposure {
    /// Whether anything is left unprotected.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// A database as its keeper sees it: what `serve`, `migrate`, `doctor` and health need beside [`Store`].
#[async_trait]
pub trait Database: Store + Keeping {
    /// Brings the schema to what this binary was built with; does nothing when it is there. Several processes may do so
    /// at once. Goes through the migration URL where one is set, and then grants the serving role what it needs.
    ///
    /// # Errors
    /// See [`MigrateError`]; a retry helps after [`MigrateError::Unavailable`] alone.
    async fn migrate(&self) -> Result<MigrationReport, MigrateError>;

    /// Builds the indexes that no migration makes and that are not there yet; how many. It may take long, and others read and
    /// write meanwhile. Goes through the migration URL where one is set.
    ///
    /// # Errors
    /// See [`ReadError`]; `Rejected` for a role that does not own the tables. What is missing makes the server slower: where
    /// that takes too long, rows are sealed later.
    async fn build_indexes(&self) -> Result<u32, ReadError>;

    /// How many migrations this binary has for it.
    fn level(&self) -> u32;

    /// What stands of the schema, with nothing changed; [`MigrationReport::usable`] says whether it can be served.
    ///
    /// # Errors
    /// See [`ReadError`].
    async fn schema(&self) -> Result<MigrationReport, ReadError>;

    /// What the serving role is not kept from.
    ///
    /// # Errors
    /// See [`ReadError`].
    async fn exposure(&self) -> Result<Exposure, ReadError>;

    /// Reaches the same database by other URLs from now on: the serving role's, and the owner's. Connections that were made
    /// by those before are closed as soon as they are idle, and none of them is used for another statement. False where
    /// that takes a new start, and then nothing has changed. To be called within the runtime.
    ///
    /// # Errors
    /// [`OpenError::Url`].
    fn take_urls(&self, settings: &config::Store) -> Result<bool, OpenError>;

    /// What the database needs done every day: the partitions of the coming months.
    ///
    /// # Errors
    /// See [`ReadError`].
    async fn upkeep(&self) -> Result<(), ReadError>;
}
