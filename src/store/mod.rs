//! The store: every SQL statement of byok. It handles wrapped DEKs and packed entries, never a
//! plaintext and never a plain DEK. It has **one write method**, [`Commits::commit`], which takes a
//! closed [`Change`] enum, so that a dry run is a list of changes that is reported and not
//! committed. It has a few small read traits, one for each kind of rows. PostgreSQL and SQLite both
//! implement these and run the same conformance suite.
//!
//! Each user of the store takes only what it needs:
//!
//! | user | trait |
//! |---|---|
//! | the committer | [`Commits`] |
//! | the keyring | [`KeyringStore`], and [`LogReads`] for sealing rows |
//! | requests, in `app` | [`RequestReads`] |
//! | what verifies a log or proves parts of it | [`LogReads`] |
//! | the background jobs, the worker that derives tiles and filters among them | [`Store`] |
//! | the command line, and what only the owner of the tables may do | [`Database`] |

mod announcement;
mod byte_limit;
mod candidates;
mod change;
mod commit;
mod database;
mod derived;
mod entry;
mod failure;
mod fence;
mod filter;
mod group_filter;
mod migration;
mod open;
mod outgoing;
pub mod postgres;
mod publication;
mod reads;
mod replay;
mod retention;
mod row;
mod search;
pub mod sqlite;
mod statements;
mod stream;
mod tenancy;

use std::sync::Arc;

use async_trait::async_trait;

use crate::model::{DekId, Timestamp, Wrapped};

pub use announcement::{AnnouncementOutcome, AnnouncementStep, DueAnnouncement};
pub use change::Change;
pub use commit::{Batch, CommitError, Commits, Committed};
pub use database::{Database, Exposure};
pub use derived::{
    DerivedReads, EntryValues, FilterLevel, FilterRow, TILE_LEVELS, Tile, TileId, UnderivedLog, WIDTH,
};
pub use entry::{EntryFilter, EntryRow, LogHead, Page, PlacedEntry, leaf_of};
pub use fence::{Fence, FenceReading, Gate, Requirement, Snapshot, Watched};
pub use filter::{Filter, FilterBuilder};
pub use group_filter::GroupFilterBuilder;
pub use migration::{MigrateError, MigrationReport};
pub use open::{OpenError, open};
pub use outgoing::OutgoingReads;
pub use postgres::Postgres;
pub use publication::{Publication, PublicationStep};
pub use reads::{AuditReads, CheckpointReads, DekReads, EntrySearch, JobReads, ReadError, TenantReads};
pub use retention::{PersonalValue, Prunable, PruneError, Retention, RetentionStore};
pub use sqlite::Sqlite;
pub use stream::{StreamName, StreamRow, StreamStep};
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

/// What the keyring needs: DEKs, the key versions to watch, and commits of their proofs.
#[async_trait]
pub trait KeyringStore: Commits + DekReads {
    /// Returns the key versions of all tenants that are to be probed: those that some replica needs
    /// and those that are not active, except retired ones.
    async fn watched(&self) -> Result<Snapshot<Watched>, ReadError>;
}

/// What requests read, apart from what the keyring reads for them: entries, and rotation jobs.
#[async_trait]
pub trait RequestReads: EntrySearch + JobReads + Send + Sync {
    /// Returns `Ok` if the database answers.
    async fn ping(&self) -> Result<(), ReadError>;
}

/// All reads that are needed to verify a log and to prove parts of it. Nothing can be written
/// through this trait.
pub trait LogReads:
    TenantReads + DekReads + EntrySearch + AuditReads + CheckpointReads + DerivedReads + Send + Sync
{
}

impl<R> LogReads for R where
    R: TenantReads
        + DekReads
        + EntrySearch
        + AuditReads
        + CheckpointReads
        + DerivedReads
        + Send
        + Sync
        + ?Sized
{
}

/// A database, as the background jobs use it.
pub trait Store: LogReads + KeyringStore + RequestReads + OutgoingReads {}

impl<S> Store for S where S: LogReads + KeyringStore + RequestReads + OutgoingReads + ?Sized {}
