//! The one write method of the store. A commit is one immediate transaction.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use sqlx::{Error, Row, Sqlite as Engine, SqliteConnection};

use crate::model::{Proof, Tenant, TenantUid};

use super::super::failure::Failure;
use super::super::replay::replay_outcome;
use super::super::row::{Columns, head, number, required, signed};
use super::super::{
    Batch, Change, CommitError, Commits, Committed, DekRow, EntryRow, FenceReading, PersonalValue, ReadError,
    Snapshot,
};
use super::{
    Sqlite, SqliteQuery, announcements, checkpoints, derived, jobs, proofs, publications, retention,
    statements, streams, tenants,
};

pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";

statements! {
    HEAD = "SELECT size, log, first, frontier FROM np_byok_heads WHERE tenant = ?1";
    MOVE_HEAD = "UPDATE np_byok_heads SET size = ?2, frontier = ?3 WHERE tenant = ?1";

    INSERT_ENTRY = "
        INSERT INTO np_byok_audit (tenant, seq, at, id, operation, outcome, means, role, user_id, user_salt, user_hmac,
            request_id, request_salt, request_hmac, item_count, records, items, detail, digest)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)";

    /// What the log shows about a batch that was not appended: its size, and the entry at the batch's base.
    PLACE = "
        SELECT h.size, (SELECT a.id FROM np_byok_audit a WHERE a.tenant = ?1 AND a.seq = ?2)
        FROM np_byok_heads h WHERE h.tenant = ?1";

    /// Touches one row if the DEK is stored, now or already; none if its id holds a different one.
    INSERT_DEK = "
        INSERT INTO np_byok_wrapped_deks
            (tenant, id, record_id, wrapped, key_name, key_version, wrap_scheme, created_at, mac, record_mac)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
        ON CONFLICT (tenant, id) DO UPDATE SET wrapped = wrapped
            WHERE wrapped = excluded.wrapped AND record_id IS excluded.record_id";

    /// A row that already has the new content counts as touched, so that a retry reports what the first attempt did, and keeps a
    /// MAC that it was given since. A row that was sealed between read and write loses its MAC, unless it was sealed when it was read.
    REWRAP = "
        UPDATE np_byok_wrapped_deks SET wrapped = ?7, key_name = ?8, key_version = ?9, wrap_scheme = ?10,
            mac = CASE WHEN (wrapped, key_name, key_version, wrap_scheme) = (?7, ?8, ?9, ?10) THEN mac ELSE ?11 END,
            rewrapped_at = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000
        WHERE tenant = ?1 AND id = ?2 AND (
            (wrapped, key_name, key_version, wrap_scheme) = (?3, ?4, ?5, ?6)
            OR (wrapped, key_name, key_version, wrap_scheme) = (?7, ?8, ?9, ?10))";

    /// A row that already has the MACs counts as touched.
    SEAL = "
        UPDATE np_byok_wrapped_deks SET mac = ?8, record_mac = ?9
        WHERE tenant = ?1 AND id = ?2 AND record_id IS ?3
            AND (wrapped, key_name, key_version, wrap_scheme) = (?4, ?5, ?6, ?7)";
}

/// Why an attempt ended.
enum AttemptError {
    /// The log is not at the batch's base, or the fence does not hold.
    NotAppended,
    /// A DEK id is taken by another DEK.
    DekIdTaken,
    /// The driver's error.
    Driver(Error),
}

impl From<Error> for AttemptError {
    fn from(error: Error) -> Self {
        Self::Driver(error)
    }
}

#[async_trait]
impl Commits for Sqlite {
    async fn commit(&self, batch: &Batch) -> Result<Committed, CommitError> {
        let committed = self.commit_batch(batch).await;
        match committed {
            // A batch without entries does not clear the flag: it is smaller, and may fit into the
            // files as they are.
            Ok(_) if !batch.entries.is_empty() => self.cannot_write.store(false, Ordering::Relaxed),
            Ok(_) => {}
            Err(CommitError::Unavailable | CommitError::Unknown) => {
                self.cannot_write.store(true, Ordering::Relaxed);
            }
            Err(_) => {}
        }
        committed
    }

    async fn log_size(&self, tenant: TenantUid) -> Result<u64, ReadError> {
        let query = sqlx::query(tenants::LOG_SIZE).bind(tenant.0.as_slice());
        Ok(self.first(query, |row| number(row, 0)).await?.unwrap_or(0))
    }

    async fn proofs(&self, tenant: TenantUid) -> Result<Snapshot<Proof>, ReadError> {
        self.proofs_of(tenant).await
    }
}

impl Sqlite {
    async fn commit_batch(&self, batch: &Batch) -> Result<Committed, CommitError> {
        // PostgreSQL accepts no NUL in a text, and SQLite's functions stop at one, so SQLite
        // refuses it as PostgreSQL does.
        if holds_nul(batch) {
            tracing::error!("a batch with a NUL in a text was refused");
            return Err(CommitError::Rejected);
        }
        // Before COMMIT, every failure is rolled back.
        let nothing_done = |error: Error| match Failure::of(&error) {
            Failure::Refused | Failure::Malformed => CommitError::Rejected,
            Failure::Temporary | Failure::TimedOut | Failure::Standby | Failure::Busy | Failure::Lost => {
                CommitError::Unavailable
            }
        };
        let mut transaction = self.writer.begin_with(BEGIN).await.map_err(nothing_done)?;
        match apply(&mut transaction, batch).await {
            Ok(committed) => match transaction.commit().await {
                Ok(()) => Ok(committed),
                Err(error) => {
                    Failure::of(&error);
                    self.after_failed_commit(batch).await
                }
            },
            Err(ended) => {
                // Waits for the rollback, which a drop would only queue: the next step must not
                // find the transaction open.
                let rolled_back = transaction.rollback().await;
                match ended {
                    AttemptError::NotAppended => {
                        rolled_back.map_err(nothing_done)?;
                        self.explain_not_appended(batch).await
                    }
                    AttemptError::DekIdTaken => Err(CommitError::Rejected),
                    AttemptError::Driver(error) => Err(nothing_done(error)),
                }
            }
        }
    }

    /// Handles a failed `COMMIT`. The batch was or will be rolled back, unless the log shows that
    /// it was committed.
    async fn after_failed_commit(&self, batch: &Batch) -> Result<Committed, CommitError> {
        if batch.entries.is_empty() {
            return Err(CommitError::Unknown);
        }
        match self.explain_not_appended(batch).await {
            Ok(committed) => Ok(committed),
            Err(CommitError::Moved { .. } | CommitError::Fenced) => Err(CommitError::Unavailable),
            Err(_) => Err(CommitError::Unknown),
        }
    }

    /// Determines why nothing was appended: another process was first, this very batch was appended
    /// before, or the fence does not hold.
    async fn explain_not_appended(&self, batch: &Batch) -> Result<Committed, CommitError> {
        let Some(first) = batch.entries.first() else { return Err(CommitError::Rejected) };
        let tenant = batch.tenant.0.as_slice();
        let place = sqlx::query(PLACE).bind(tenant).bind(signed(batch.base));
        match self.first(place, |row| Ok((required(row.number(0)?)?, row.uuid(1)?))).await {
            Ok(Some((_, Some(id)))) if id == first.id.0 => Ok(Committed {
                applied: replay_outcome(self, batch.tenant, &batch.changes).await?,
                reading: None,
            }),
            Ok(Some((size, _))) if size == signed(batch.base) && !batch.fence.is_empty() => {
                Err(CommitError::Fenced)
            }
            Ok(Some((size, _))) => Err(CommitError::Moved { size: u64::try_from(size).unwrap_or(0) }),
            // A tenant without a head has no log to append to.
            Ok(None) => Err(CommitError::Rejected),
            // This attempt did nothing, but an earlier one may have.
            Err(_) => Err(CommitError::Unknown),
        }
    }
}

/// Applies the changes in their order, and appends the entries as soon as the tenant that they
/// belong to exists.
async fn apply(connection: &mut SqliteConnection, batch: &Batch) -> Result<Committed, AttemptError> {
    let mut applied = Vec::with_capacity(batch.changes.len());
    let mut rest = batch.changes.as_slice();
    loop {
        match rest {
            [Change::CreateTenant(tenant), after @ ..] => {
                applied.push(create_tenant(connection, tenant).await?);
                rest = after;
            }
            [Change::OpenLog { from, log }, after @ ..] if !batch.entries.is_empty() => {
                if publications::open_log(connection, &batch.tenant, from, *log).await? == 0 {
                    return Err(AttemptError::NotAppended);
                }
                applied.push(1);
                rest = after;
            }
            _ => break,
        }
    }
    let reading = append(connection, batch).await?;
    for change in rest {
        applied.push(apply_change(connection, batch.tenant, change).await?);
    }
    Ok(Committed { applied, reading })
}

async fn append(
    connection: &mut SqliteConnection,
    batch: &Batch,
) -> Result<Option<FenceReading>, AttemptError> {
    if batch.entries.is_empty() {
        return Ok(None);
    }
    let reading = match batch.fence.as_slice() {
        [] => None,
        fence => {
            Some(proofs::pass(connection, &batch.tenant, fence).await?.ok_or(AttemptError::NotAppended)?)
        }
    };
    let tenant = batch.tenant.0.as_slice();
    let row = sqlx::query(HEAD).bind(tenant).fetch_optional(&mut *connection).await?;
    let before = head(&row.ok_or(AttemptError::NotAppended)?)?;
    if before.end() != batch.base {
        return Err(AttemptError::NotAppended);
    }
    let after = before.extended(&batch.entries);
    let swap = sqlx::query(MOVE_HEAD).bind(tenant).bind(signed(after.end())).bind(after.frontier.to_bytes());
    swap.execute(&mut *connection).await?;
    for (seq, entry) in (batch.base..).zip(&batch.entries) {
        insert_entry(tenant, seq, entry).execute(&mut *connection).await?;
    }
    Ok(reading)
}

async fn apply_change(
    connection: &mut SqliteConnection,
    tenant: TenantUid,
    change: &Change,
) -> Result<u64, AttemptError> {
    let query = match change {
        Change::CreateTenant(tenant) => return Ok(create_tenant(connection, tenant).await?),
        Change::InsertDek(row) => {
            let touched = insert_dek(&tenant, row).execute(connection).await?.rows_affected();
            return if touched == 1 { Ok(touched) } else { Err(AttemptError::DekIdTaken) };
        }
        Change::Rewrap { dek_id, from, to, mac } => {
            let query = sqlx::query(REWRAP).bind(tenant.0.as_slice()).bind(dek_id.0);
            let query = [from, to].into_iter().fold(query, |query, wrapped| {
                query
                    .bind(wrapped.bytes.as_slice())
                    .bind(&*wrapped.key_version.key)
                    .bind(&*wrapped.key_version.version)
                    .bind(wrapped.scheme)
            });
            query.bind(mac.as_ref().map(<[u8; 32]>::as_slice))
        }
        Change::SealDeks(rows) => {
            let mut sealed = 0;
            for row in rows {
                sealed += seal(&tenant, row).execute(&mut *connection).await?.rows_affected();
            }
            return Ok(sealed);
        }
        Change::RecordIncident(incident) => proofs::incident(&tenant, incident),
        Change::StartJob(job) => {
            jobs::start(&tenant, job).execute(&mut *connection).await?;
            let stands = jobs::exists(&tenant, job.id).fetch_one(connection).await?;
            return Ok(u64::from(stands.try_get::<bool, _>(0)?));
        }
        Change::LeaseJob { job, holder, lease } => jobs::lease(&tenant, *job, *holder, *lease),
        Change::AdvanceJob { job, holder, after } => jobs::advance(&tenant, job, *holder, *after),
        Change::CommandJob { job, command, at } => jobs::command(&tenant, *job, *command, *at),
        Change::Watch { proof, canary } => proofs::watch(&tenant, proof, canary),
        Change::ExtendWatch { key_version, lasting } => proofs::extend_watch(&tenant, key_version, *lasting),
        Change::Retire { all_but } => proofs::retire(&tenant, all_but),
        Change::UpdateProof { from, to, incident } => {
            let touched =
                proofs::update_proof(&tenant, *from, to).execute(&mut *connection).await?.rows_affected();
            if let (Some(incident), 1) = (incident, touched) {
                proofs::incident(&tenant, incident).execute(connection).await?;
            }
            return Ok(touched);
        }
        Change::AddCheckpoint { log, size, note } => checkpoints::add(&tenant, *log, *size, note),
        Change::Publish { place, holder, step } => publications::publish(&tenant, place, *holder, *step),
        Change::OpenLog { from, log } => {
            return Ok(publications::open_log(connection, &tenant, from, *log).await?);
        }
        Change::Hold { on } => retention::hold(&tenant, *on),
        Change::Erase { personal, places, in_index } => {
            if *in_index {
                retention::erase_from_index(&tenant, personal, places).execute(&mut *connection).await?;
            }
            retention::erase(&tenant, personal, places)
        }
        Change::EraseFromDeks { record_id, hmac } => retention::erase_from_deks(&tenant, record_id, hmac),
        Change::RecordExport { places } => retention::note_export(&tenant, places),
        Change::AddTiles { log, tiles } => {
            return Ok(derived::add_tiles(connection, tenant, *log, tiles).await?);
        }
        Change::AddChunkValues(values) => return Ok(derived::add_values(connection, tenant, values).await?),
        Change::AddChunks(chunks) => return Ok(derived::add_chunks(connection, tenant, chunks).await?),
        Change::Announce { incident, attempt, holder, step } => {
            announcements::announce(&tenant, *incident, *attempt, *holder, *step)
        }
        Change::Stream { name, holder, step } => streams::step(&tenant, *name, *holder, *step),
    };
    Ok(query.execute(connection).await?.rows_affected())
}

async fn create_tenant(connection: &mut SqliteConnection, tenant: &Tenant) -> Result<u64, Error> {
    tenants::create(tenant).execute(&mut *connection).await?;
    tenants::create_head(tenant).execute(&mut *connection).await?;
    let stands = tenants::exists(tenant).fetch_one(connection).await?;
    Ok(u64::from(stands.try_get::<bool, _>(0)?))
}

fn insert_entry<'q>(tenant: &'q [u8], seq: u64, entry: &'q EntryRow) -> SqliteQuery<'q> {
    let user = entry.user.as_ref();
    sqlx::query::<Engine>(INSERT_ENTRY)
        .bind(tenant)
        .bind(signed(seq))
        .bind(entry.at.0)
        .bind(entry.id.0)
        .bind(entry.operation.as_str())
        .bind(entry.outcome.as_str())
        .bind(entry.means.as_str())
        .bind(&*entry.role)
        .bind(user.and_then(|user| user.value.as_deref()))
        .bind(user.and_then(|user| user.salt.as_ref().map(<[u8; 16]>::as_slice)))
        .bind(user.map(|user| user.hmac.as_slice()))
        .bind(entry.request.value.as_deref())
        .bind(entry.request.salt.as_ref().map(<[u8; 16]>::as_slice))
        .bind(entry.request.hmac.as_slice())
        .bind(entry.item_count)
        .bind(entry.records.as_str())
        .bind(entry.items.as_slice())
        .bind(entry.detail.as_deref())
        .bind(entry.digest.as_slice())
}

fn insert_dek<'q>(tenant: &'q TenantUid, row: &'q DekRow) -> SqliteQuery<'q> {
    sqlx::query::<Engine>(INSERT_DEK)
        .bind(tenant.0.as_slice())
        .bind(row.id.0)
        .bind(row.record_id.as_deref())
        .bind(row.wrapped.bytes.as_slice())
        .bind(&*row.wrapped.key_version.key)
        .bind(&*row.wrapped.key_version.version)
        .bind(row.wrapped.scheme)
        .bind(row.created_at.0)
        .bind(row.mac.as_ref().map(<[u8; 32]>::as_slice))
        .bind(row.record_mac.as_ref().map(<[u8; 32]>::as_slice))
}

fn seal<'q>(tenant: &'q TenantUid, row: &'q DekRow) -> SqliteQuery<'q> {
    sqlx::query(SEAL)
        .bind(tenant.0.as_slice())
        .bind(row.id.0)
        .bind(row.record_id.as_deref())
        .bind(row.wrapped.bytes.as_slice())
        .bind(&*row.wrapped.key_version.key)
        .bind(&*row.wrapped.key_version.version)
        .bind(row.wrapped.scheme)
        .bind(row.mac.as_ref().map(<[u8; 32]>::as_slice))
        .bind(row.record_mac.as_ref().map(<[u8; 32]>::as_slice))
}

fn holds_nul(batch: &Batch) -> bool {
    let in_text = |text: &str| text.contains('\0');
    let in_entry = |entry: &EntryRow| {
        let values = [entry.user.as_ref(), Some(&entry.request)].into_iter().flatten();
        values.filter_map(|salted| salted.value.as_deref()).chain([&*entry.role]).any(in_text)
            || in_text(&entry.records)
            || escapes_nul(&entry.records)
    };
    let in_change = |change: &Change| match change {
        Change::CreateTenant(tenant) => in_text(&tenant.name),
        Change::InsertDek(row) => row.record_id.as_deref().is_some_and(in_text),
        Change::Erase { personal: PersonalValue::User(text) | PersonalValue::Record(text), .. } => {
            in_text(text)
        }
        Change::EraseFromDeks { record_id, .. } => in_text(record_id),
        // Names that come from the KMS or from byok.
        Change::Rewrap { .. }
        | Change::SealDeks(_)
        | Change::RecordIncident(_)
        | Change::StartJob(_)
        | Change::LeaseJob { .. }
        | Change::AdvanceJob { .. }
        | Change::CommandJob { .. }
        | Change::Watch { .. }
        | Change::ExtendWatch { .. }
        | Change::Retire { .. }
        | Change::UpdateProof { .. }
        | Change::AddCheckpoint { .. }
        | Change::Publish { .. }
        | Change::OpenLog { .. }
        | Change::Hold { .. }
        | Change::RecordExport { .. }
        | Change::AddTiles { .. }
        | Change::AddChunkValues(_)
        | Change::AddChunks(_)
        | Change::Announce { .. }
        | Change::Stream { .. } => false,
    };
    batch.entries.iter().any(in_entry) || batch.changes.iter().any(in_change)
}

/// Returns whether a JSON text contains `\u0000`, and not only an escaped backslash before `u0000`.
fn escapes_nul(json: &str) -> bool {
    json.match_indices("\\u0000")
        .any(|(at, _)| json[..at].bytes().rev().take_while(|byte| *byte == b'\\').count().is_multiple_of(2))
}

#[cfg(test)]
mod tests {
    use super::escapes_nul;

    #[test]
    fn an_escaped_nul_is_told_from_an_escaped_backslash() {
        assert!(escapes_nul(r#"["a\u0000"]"#));
        assert!(escapes_nul(r#"["a\\\u0000"]"#));
        assert!(!escapes_nul(r#"["a\\u0000"]"#));
    }
}
