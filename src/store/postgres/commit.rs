//! The one write of the store: attempts to commit a batch, and what an attempt means that did not
//! succeed.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use async_trait::async_trait;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Connection, Error, Transaction};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use crate::model::{Proof, TenantUid};

use super::super::failure::Failure;
use super::super::replay::replay_outcome;
use super::super::row::{Columns, head, number, required, signed};
use super::super::{
    Batch, Change, CommitError, Commits, Committed, LogHead, ReadError, Snapshot, TenancyReads as _,
    TenantRow,
};
use super::append::append;
use super::primary::of_primary;
use super::writers::Writer;
use super::{BEGIN, EXCHANGE, Postgres, changes, reads, tenants, timestamptz};

reads! {
    HEAD = "SELECT size, log::int8, first, frontier FROM np_byok_heads WHERE tenant = $1";

    /// Takes the lock of the head's row, for which writers queue, and returns the head under that
    /// lock.
    TURN = "SELECT size, log::int8, first, frontier FROM np_byok_lock_head($1)";

    /// What the log shows about a batch that was not appended: its size, its frontier, and the
    /// entry at the batch's base.
    PLACE = "
        SELECT h.size, h.frontier, (SELECT a.id FROM np_byok_audit a WHERE a.tenant = $1 AND a.seq = $2 AND a.at = $3)
        FROM np_byok_heads h WHERE h.tenant = $1";
}

/// The result of an attempt, and the head of the log after it.
pub(super) struct Done {
    pub(super) committed: Committed,
    pub(super) head: Option<LogHead>,
}

pub(super) type PgQuery = Query<'static, sqlx::Postgres, PgArguments>;

/// Why an attempt ended.
pub(super) enum AttemptError {
    /// The log is not at the batch's base, or a requirement of the fence is not met.
    NotAppended,
    /// The tenant has no log to append to.
    NoLog,
    /// A DEK id is taken by another DEK.
    DekIdTaken,
    /// The driver's error. No transaction is open any more, unless the connection is lost.
    Driver(Error),
    /// The driver's error at the end of the transaction.
    Commit(Error),
}

impl From<Error> for AttemptError {
    fn from(error: Error) -> Self {
        Self::Driver(error)
    }
}

#[async_trait]
impl Commits for Postgres {
    async fn commit(&self, batch: &Batch) -> Result<Committed, CommitError> {
        self.commit_batch(batch).await
    }

    async fn commit_in_turn(&self, batch: &mut Batch) -> Result<Committed, CommitError> {
        self.commit_batch_in_turn(batch).await
    }

    async fn log_size(&self, tenant: TenantUid) -> Result<u64, ReadError> {
        let query = sqlx::query(tenants::LOG_SIZE).bind(tenant.0);
        Ok(self.first(query, |row| number(row, 0)).await?.unwrap_or(0))
    }

    async fn proofs(&self, tenant: TenantUid) -> Result<Snapshot<Proof>, ReadError> {
        self.proofs_of(tenant).await
    }

    async fn gate_row(&self, tenant: TenantUid) -> Result<Option<TenantRow>, ReadError> {
        self.tenant_with(tenant).await
    }
}

impl Postgres {
    async fn commit_batch(&self, batch: &Batch) -> Result<Committed, CommitError> {
        let mut writer = self.writers.take().await.map_err(|error| {
            Failure::of(&error);
            CommitError::Unavailable
        })?;
        // Until the statement that commits is sent, a broken connection means that nothing was
        // done.
        let mut commit_sent = false;
        let known = self.known_head(batch);
        let attempt =
            attempt(&mut writer.connection, batch, known.as_ref(), self.pgbouncer, &mut commit_sent);
        let ended = timeout(EXCHANGE, attempt).await;
        if matches!(ended, Ok(Err(AttemptError::NotAppended))) {
            writer.keep();
            self.heads().remove(&batch.tenant);
            return self.explain_not_appended(batch, known.as_ref()).await;
        }
        self.conclude(batch.tenant, writer, ended, commit_sent)
    }

    /// Takes the row lock of the head, for which writers queue, and appends at the size that the
    /// head then has.
    async fn commit_batch_in_turn(&self, batch: &mut Batch) -> Result<Committed, CommitError> {
        let mut writer = self.writers.take().await.map_err(|error| {
            Failure::of(&error);
            CommitError::Unavailable
        })?;
        let mut commit_sent = false;
        let ended = timeout(
            EXCHANGE,
            attempt_in_turn(&mut writer.connection, batch, self.pgbouncer, &mut commit_sent),
        )
        .await;
        self.conclude(batch.tenant, writer, ended, commit_sent)
    }

    /// Returns the head at which this process left the log, if the batch is based on it.
    fn known_head(&self, batch: &Batch) -> Option<LogHead> {
        self.heads().get(&batch.tenant).filter(|head| head.end() == batch.base).cloned()
    }

    fn heads(&self) -> MutexGuard<'_, HashMap<TenantUid, LogHead>> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn conclude(
        &self,
        tenant: TenantUid,
        writer: Writer<'_>,
        ended: Result<Result<Done, AttemptError>, Elapsed>,
        commit_sent: bool,
    ) -> Result<Committed, CommitError> {
        let (failure, is_usable) = match ended {
            Ok(Ok(Done { committed, head })) => {
                writer.keep();
                if let Some(head) = head {
                    self.heads().insert(tenant, head);
                }
                return Ok(committed);
            }
            // Under the lock the head does not move, so the fence is the cause.
            Ok(Err(AttemptError::NotAppended)) => {
                writer.keep();
                return Err(CommitError::Fenced);
            }
            Ok(Err(AttemptError::NoLog | AttemptError::DekIdTaken)) => {
                writer.keep();
                return Err(CommitError::Rejected);
            }
            Ok(Err(AttemptError::Driver(error))) => (Failure::of(&error), is_of_data(&error)),
            Ok(Err(AttemptError::Commit(error))) => (Failure::of(&error), false),
            Err(_) => (Failure::Lost, false),
        };
        // A tenant whose log is damaged must not cost the others a new connection at each of its
        // calls.
        if is_usable {
            writer.keep();
        } else {
            drop(writer);
        }
        match failure {
            Failure::Refused | Failure::Malformed => Err(CommitError::Rejected),
            Failure::Temporary | Failure::TimedOut | Failure::Busy => Err(CommitError::Unavailable),
            Failure::Standby => {
                self.distrust_open_connections();
                Err(CommitError::Unavailable)
            }
            Failure::Lost => {
                self.writers.close_idle();
                Err(if commit_sent { CommitError::Unknown } else { CommitError::Unavailable })
            }
        }
    }

    /// Determines why nothing was appended: another replica was first, this very batch was appended
    /// before, or a requirement of the fence is not met.
    async fn explain_not_appended(
        &self,
        batch: &Batch,
        known: Option<&LogHead>,
    ) -> Result<Committed, CommitError> {
        let Some(first) = batch.entries.first() else { return Err(CommitError::Rejected) };
        let place = || {
            let place =
                sqlx::query(PLACE).bind(batch.tenant.0).bind(signed(batch.base)).bind(timestamptz(first.at));
            self.first(place, |row| Ok((required(row.number(0)?)?, required(row.bytes(1)?)?, row.uuid(2)?)))
        };
        let mut found = place().await;
        if matches!(found, Ok(Some((size, ..))) if size == signed(batch.base)) && batch.is_conditional() {
            // A fence that does not hold makes the statement fail without waiting. This very batch
            // may still be in progress on a lost connection, past its fence and not yet finished.
            // It holds the lock of the head until then.
            let turn = self.first(sqlx::query(TURN).bind(batch.tenant.0), |_| Ok(())).await;
            found = if turn.is_ok() { place().await } else { return Err(CommitError::Unknown) };
        }
        match found {
            Ok(Some((.., Some(id)))) if id == first.id.0 => Ok(Committed {
                applied: replay_outcome(self, batch.tenant, &batch.changes).await?,
                reading: None,
            }),
            Ok(Some((size, frontier, _)))
                if size == signed(batch.base)
                    && known.is_some_and(|known| known.frontier.to_bytes() != frontier) =>
            {
                Err(CommitError::Rewound)
            }
            Ok(Some((size, ..))) if size == signed(batch.base) && batch.is_conditional() => {
                Err(CommitError::Fenced)
            }
            Ok(Some((size, ..))) => Err(CommitError::Moved { size: u64::try_from(size).unwrap_or(0) }),
            // A tenant without a head has no log to append to.
            Ok(None) => Err(CommitError::Rejected),
            // This attempt did nothing, but an earlier one may have.
            Err(_) => Err(CommitError::Unknown),
        }
    }
}

async fn attempt(
    connection: &mut PgConnection,
    batch: &Batch,
    known: Option<&LogHead>,
    pgbouncer: bool,
    commit_sent: &mut bool,
) -> Result<Done, AttemptError> {
    let one_statement = batch.changes.iter().all(|change| matches!(change, Change::InsertDek(_)));
    if one_statement && !batch.entries.is_empty() && !pgbouncer {
        let head = head_of(connection, batch, known, true).await?;
        *commit_sent = true;
        let (reading, head) = append(connection, batch, &batch.changes, &head, true).await?;
        let committed = Committed { applied: vec![1; batch.changes.len()], reading };
        return Ok(Done { committed, head: Some(head) });
    }

    let transaction = connection.begin_with(BEGIN).await?;
    apply_and_commit(transaction, batch, known, pgbouncer, commit_sent).await
}

async fn attempt_in_turn(
    connection: &mut PgConnection,
    batch: &mut Batch,
    pgbouncer: bool,
    commit_sent: &mut bool,
) -> Result<Done, AttemptError> {
    let mut transaction = connection.begin_with(BEGIN).await?;
    match turn_of(&mut transaction, batch.tenant, !pgbouncer).await {
        Ok(head) => {
            batch.base = head.end();
            apply_and_commit(transaction, batch, Some(&head), pgbouncer, commit_sent).await
        }
        Err(ended) => Err(roll_back(transaction, ended).await),
    }
}

/// Waits for the lock of the head's row, and returns the head.
async fn turn_of(
    connection: &mut PgConnection,
    tenant: TenantUid,
    persistent: bool,
) -> Result<LogHead, AttemptError> {
    let turn = sqlx::query(TURN).persistent(persistent).bind(tenant.0);
    let row = first(turn.fetch_all(connection).await?)?.ok_or(AttemptError::NoLog)?;
    Ok(head(&row)?)
}

/// Applies the batch and commits it.
async fn apply_and_commit(
    mut transaction: Transaction<'_, sqlx::Postgres>,
    batch: &Batch,
    known: Option<&LogHead>,
    pgbouncer: bool,
    commit_sent: &mut bool,
) -> Result<Done, AttemptError> {
    match changes::apply(&mut transaction, batch, known, !pgbouncer).await {
        Ok(done) => {
            *commit_sent = true;
            transaction.commit().await.map_err(AttemptError::Commit)?;
            Ok(done)
        }
        Err(ended) => Err(roll_back(transaction, ended).await),
    }
}

/// Ends the transaction of an attempt that has failed. If that fails too, the connection is lost.
async fn roll_back(transaction: Transaction<'_, sqlx::Postgres>, ended: AttemptError) -> AttemptError {
    match transaction.rollback().await {
        Ok(()) => ended,
        Err(lost) => AttemptError::Driver(lost),
    }
}

/// Returns whether an error is about the data and not about the session: the server has answered,
/// and the connection serves the next commit as well as a new one would. By SQLSTATE: data
/// exceptions, constraints, rollbacks, locks, and the statement's time limit (PostgreSQL manual,
/// appendix A).
fn is_of_data(error: &Error) -> bool {
    match error {
        Error::Decode(_) | Error::ColumnDecode { .. } => true,
        Error::Database(error) => error.code().is_some_and(|code| {
            *code == *"57014" || ["22", "23", "40", "55"].iter().any(|class| code.starts_with(class))
        }),
        _ => false,
    }
}

/// Returns the head that the batch is appended to.
pub(super) async fn head_of(
    connection: &mut PgConnection,
    batch: &Batch,
    known: Option<&LogHead>,
    persistent: bool,
) -> Result<LogHead, AttemptError> {
    if let Some(known) = known {
        return Ok(known.clone());
    }
    let query = sqlx::query(HEAD).persistent(persistent).bind(batch.tenant.0);
    let row = first(query.fetch_all(connection).await?)?.ok_or(AttemptError::NotAppended)?;
    let head = head(&row)?;
    if head.end() == batch.base { Ok(head) } else { Err(AttemptError::NotAppended) }
}

/// Returns the row that a read returned, if any.
fn first(rows: Vec<PgRow>) -> Result<Option<PgRow>, Error> {
    Ok(of_primary(rows)?.into_iter().next())
}
