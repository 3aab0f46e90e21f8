//! The database as its operator sees it: its schema, its rights, its URLs and its maintenance.

use async_trait::async_trait;

use crate::config;

use super::tenancy::TenancyReads;
use super::{MigrateError, MigrationReport, OpenError, ReadError, RetentionStore, Store};

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
pub trait Database: Store + RetentionStore + TenancyReads {
    /// Brings the schema to the level of this binary. Does nothing if it is already there. Several
    /// processes may do so at once. Uses the migration URL if one is set, and then grants the
    /// serving role what it needs.
    ///
    /// # Errors
    /// See [`MigrateError`]. A retry helps only after [`MigrateError::Unavailable`].
    async fn migrate(&self) -> Result<MigrationReport, MigrateError>;

    /// Does the same as [`Database::migrate`], and then takes away what only servers of the
    /// previous release needed. None of them may run any more, and none can be started again.
    ///
    /// # Errors
    /// See [`MigrateError`]. A retry helps only after [`MigrateError::Unavailable`].
    async fn finish_rollout(&self) -> Result<MigrationReport, MigrateError>;

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
    fn switch_urls(&self, settings: &config::Store) -> Result<bool, OpenError>;

    /// Does the daily maintenance of the database: creates the partitions of the coming months.
    ///
    /// # Errors
    /// See [`ReadError`].
    async fn upkeep(&self) -> Result<(), ReadError>;
}
