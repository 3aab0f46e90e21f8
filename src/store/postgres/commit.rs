//! The one write method of the store.

use std::collections::{HashMap, HashSet};
use std::sync::{MutexGuard, PoisonError};

use async_trait::async_trait;
use sqlx::postgres::{PgArguments, PgBindIterExt, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Connection, Error, Row, Transaction};
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use uuid::Uuid;

use crate::merkle::Frontier;
use crate::model::{DekId, Proof, Salted, TenantUid, Timestamp};

use super::super::failure::Failure;
use super::super::replay::replay_outcome;
use super::super::row::{Columns, head, number, required, signed};
use super::super::{
    Batch, Change, CommitError, Commits, Committed, DekRow, EntryRow, FenceReading, LogHead, ReadError,
    Snapshot,
};
use super::primary::of_primary;
use super::timestamptz::Timestamptz;
use super::writers::Writer;
use super::{
    BEGIN, EXCHANGE, Postgres, announcements, checkpoints, derived, jobs, proofs, publications, reads,
    retention, statements, streams, tenants, timestamptz,
};

statements! {
    /// Compares and swaps the head, and inserts everything else only if that succeeds: one statement, one round trip, one flush.
    APPEND = "
        WITH durable AS MATERIALIZED (
            SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit')
                WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
        ), head AS (
            UPDATE np_byok_heads h SET size = size + $3, frontier = $32
            FROM durable WHERE h.tenant = $1 AND h.size = $2 AND h.frontier = $31
                -- The fence: each key in use meets its requirement when the statement begins. After a wait for the head's
                -- row, this is checked again only if that row was written, so what counts is the age returned below.
                AND NOT EXISTS (
                    SELECT FROM unnest($26::text[], $27::text[], $28::int8[], $29::int8[], $30::int8[])
                        AS f(key_name, key_version, epoch, revision, within)
                    LEFT JOIN np_byok_proofs p
                        ON p.tenant = h.tenant AND p.key_name = f.key_name AND p.key_version = f.key_version
                    WHERE (
                        (f.epoch IS NULL OR (p.posture = 'active' AND p.epoch = f.epoch))
                        AND (f.revision IS NULL OR p.revision = f.revision)
                        AND (f.within IS NULL OR p.proven_at
                            BETWEEN clock_timestamp() - f.within * interval '1 microsecond' AND clock_timestamp())
                    ) IS NOT TRUE)
            RETURNING size
        ), entries AS (
            INSERT INTO np_byok_audit (tenant, seq, at, id, operation, outcome, means, role, user_id, user_salt,
                user_hmac, request_id, request_salt, request_hmac, item_count, records, items, detail, digest)
            SELECT $1, $2 + e.place - 1, e.at, e.id, e.operation, e.outcome, e.means, e.role, e.user_id, e.user_salt,
                e.user_hmac, e.request_id, e.request_salt, e.request_hmac, e.item_count, e.records::jsonb, e.items,
                e.detail, e.digest
            FROM head, unnest($4::timestamptz[], $5::uuid[], $6::text[], $7::text[], $8::text[], $9::text[],
                $10::text[], $11::bytea[], $12::bytea[], $13::text[], $14::bytea[], $15::bytea[], $16::int4[],
                $17::text[], $18::bytea[], $33::text[], $34::bytea[]) WITH ORDINALITY
                AS e(at, id, operation, outcome, means, role, user_id, user_salt, user_hmac, request_id, request_salt,
                request_hmac, item_count, records, items, detail, digest, place)
        ), deks AS (
            INSERT INTO np_byok_wrapped_deks
                (tenant, id, record_id, wrapped, key_name, key_version, wrap_scheme, created_at, mac, record_mac)
            SELECT $1, d.* FROM head, unnest($19::uuid[], $20::text[], $21::bytea[], $22::text[], $23::text[],
                $24::int2[], $25::timestamptz[], $35::bytea[], $36::bytea[]) AS d(id, record_id, wrapped, key_name,
                key_version, wrap_scheme, created_at, mac, record_mac)
        )
        SELECT clock_timestamp(), ARRAY(
            SELECT p.proven_at FROM unnest($26::text[], $27::text[]) WITH ORDINALITY AS f(key_name, key_version, place)
            JOIN np_byok_proofs p USING (key_name, key_version) WHERE p.tenant = $1 ORDER BY f.place)
        FROM head";

    /// Returns the ids whose rows now hold what was to be inserted. Leaves out an id that holds a different DEK.
    INSERT_DEKS = "
        INSERT INTO np_byok_wrapped_deks AS o
            (tenant, id, record_id, wrapped, key_name, key_version, wrap_scheme, created_at, mac, record_mac)
        SELECT $1, d.* FROM unnest($2::uuid[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::int2[],
            $8::timestamptz[], $9::bytea[], $10::bytea[]) AS d(id, record_id, wrapped, key_name, key_version,
            wrap_scheme, created_at, mac, record_mac)
        ON CONFLICT (tenant, id) DO UPDATE SET wrapped = o.wrapped
            WHERE o.wrapped = EXCLUDED.wrapped AND o.record_id IS NOT DISTINCT FROM EXCLUDED.record_id
        RETURNING o.id";

    /// A row that already has the new content counts as touched, so that a retry reports what the first attempt did, and keeps a
    /// MAC that it was given since. A row that was sealed between read and write loses its MAC, unless it was sealed when it was read.
    REWRAP = "
        UPDATE np_byok_wrapped_deks d SET wrapped = r.wrapped, key_name = r.key_name, key_version = r.key_version,
            wrap_scheme = r.wrap_scheme, rewrapped_at = now(), mac = CASE
                WHEN (d.wrapped, d.key_name, d.key_version, d.wrap_scheme)
                    = (r.wrapped, r.key_name, r.key_version, r.wrap_scheme) THEN d.mac
                ELSE r.mac END
        FROM unnest($2::uuid[], $3::bytea[], $4::text[], $5::text[], $6::int2[], $7::bytea[], $8::text[], $9::text[],
            $10::int2[], $11::bytea[]) AS r(id, from_wrapped, from_name, from_version, from_scheme, wrapped, key_name,
            key_version, wrap_scheme, mac)
        WHERE d.tenant = $1 AND d.id = r.id AND (
            (d.wrapped, d.key_name, d.key_version, d.wrap_scheme)
                = (r.from_wrapped, r.from_name, r.from_version, r.from_scheme)
            OR (d.wrapped, d.key_name, d.key_version, d.wrap_scheme)
                = (r.wrapped, r.key_name, r.key_version, r.wrap_scheme))
        RETURNING d.id";

    /// A row that already has the MACs counts as touched.
    SEAL = "
        WITH sealed AS (
            UPDATE np_byok_wrapped_deks d SET mac = r.mac, record_mac = r.record_mac
            FROM unnest($2::uuid[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::int2[], $8::bytea[],
                $9::bytea[]) AS r(id, record_id, wrapped, key_name, key_version, wrap_scheme, mac, record_mac)
            WHERE d.tenant = $1 AND d.id = r.id AND d.record_id IS NOT DISTINCT FROM r.record_id
                AND (d.wrapped, d.key_name, d.key_version, d.wrap_scheme)
                    = (r.wrapped, r.key_name, r.key_version, r.wrap_scheme)
            RETURNING d.id)
        SELECT count(*) FROM sealed";
}

reads! {
    HEAD = "SELECT size, log::int8, first, frontier FROM np_byok_heads WHERE tenant = $1";

    /// Takes the lock of the head's row, for which writers queue, and returns the head under that lock.
    TURN = "SELECT size, log::int8, first, frontier FROM np_byok_heads WHERE tenant = $1 FOR UPDATE";

    /// What the log shows about a batch that was not appended: its size, its frontier, and the entry at the batch's base.
    PLACE = "
        SELECT h.size, h.frontier, (SELECT a.id FROM np_byok_audit a WHERE a.tenant = $1 AND a.seq = $2 AND a.at = $3)
        FROM np_byok_heads h WHERE h.tenant = $1";
}

/// The result of an attempt, and the head of the log after it.
struct Done {
    committed: Committed,
    head: Option<LogHead>,
}

pub(super) type PgQuery = Query<'static, sqlx::Postgres, PgArguments>;

/// Why an attempt ended.
enum AttemptError {
    /// The log is not at the batch's base, or the fence does not hold.
    NotAppended,
    /// The tenant has no log to append to.
    NoLog,
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
        let failure = match ended {
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
            Ok(Err(AttemptError::NoLog)) => {
                writer.keep();
                return Err(CommitError::Rejected);
            }
            Ok(Err(AttemptError::DekIdTaken)) => return Err(CommitError::Rejected),
            Ok(Err(AttemptError::Driver(error))) => Failure::of(&error),
            Err(_) => Failure::Lost,
        };
        drop(writer);
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
    /// before, or the fence does not hold.
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
        if matches!(found, Ok(Some((size, ..))) if size == signed(batch.base)) && !batch.fence.is_empty() {
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
            Ok(Some((size, ..))) if size == signed(batch.base) && !batch.fence.is_empty() => {
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
    let turn = sqlx::query(TURN).persistent(!pgbouncer).bind(batch.tenant.0);
    let Some(row) = first(turn.fetch_all(&mut *transaction).await?)? else {
        transaction.rollback().await?;
        return Err(AttemptError::NoLog);
    };
    let head = head(&row)?;
    batch.base = head.end();
    apply_and_commit(transaction, batch, Some(&head), pgbouncer, commit_sent).await
}

/// Applies the batch and commits it.
async fn apply_and_commit(
    mut transaction: Transaction<'_, sqlx::Postgres>,
    batch: &Batch,
    known: Option<&LogHead>,
    pgbouncer: bool,
    commit_sent: &mut bool,
) -> Result<Done, AttemptError> {
    match apply(&mut transaction, batch, known, !pgbouncer).await {
        Ok(done) => {
            *commit_sent = true;
            transaction.commit().await?;
            Ok(done)
        }
        Err(ended) => {
            if !matches!(ended, AttemptError::Driver(_)) {
                transaction.rollback().await?;
            }
            Err(ended)
        }
    }
}

/// Applies the changes in their order, and appends the entries as soon as the tenant that they
/// belong to exists. Consecutive changes of one kind are one statement.
async fn apply(
    connection: &mut PgConnection,
    batch: &Batch,
    known: Option<&LogHead>,
    persistent: bool,
) -> Result<Done, AttemptError> {
    let (mut reading, mut head) = (None, None);
    let mut applied = Vec::with_capacity(batch.changes.len());
    let mut rest = batch.changes.as_slice();
    let mut opened = None;
    loop {
        match rest {
            [Change::CreateTenant(tenant), after @ ..] => {
                applied.push(touched(connection, tenants::create(tenant), persistent).await?);
                rest = after;
            }
            [Change::OpenLog { from, log }, after @ ..] if !batch.entries.is_empty() => {
                let query = publications::open_log(batch.tenant, from, *log);
                if touched(connection, query, persistent).await? == 0 {
                    return Err(AttemptError::NotAppended);
                }
                applied.push(1);
                opened = Some(LogHead { log: *log, first: from.end(), frontier: Frontier::default() });
                rest = after;
            }
            _ => break,
        }
    }
    let known = opened.as_ref().or(known);
    if !batch.entries.is_empty() {
        let (first, after) = rest.split_at(run_of(rest, |change| matches!(change, Change::InsertDek(_))));
        let before = head_of(connection, batch, known, persistent).await?;
        let (found, after_it) = append(connection, batch, first, &before, persistent).await?;
        (reading, head) = (found, Some(after_it));
        applied.resize(applied.len() + first.len(), 1);
        rest = after;
    }
    while let Some(change) = rest.first() {
        let length = match change {
            Change::InsertDek(_) => {
                let run = run_of(rest, |change| matches!(change, Change::InsertDek(_)));
                insert_deks(connection, batch.tenant, &rest[..run], persistent).await?;
                applied.resize(applied.len() + run, 1);
                run
            }
            Change::Rewrap { .. } => {
                let run = run_of_rewraps(rest);
                applied.extend(rewrap(connection, batch.tenant, &rest[..run], persistent).await?);
                run
            }
            Change::SealDeks(rows) => {
                applied.push(touched(connection, seal(batch.tenant, rows), persistent).await?);
                1
            }
            Change::RecordIncident(incident) => {
                applied
                    .push(touched(connection, proofs::incident(batch.tenant, incident), persistent).await?);
                1
            }
            Change::CreateTenant(tenant) => {
                applied.push(touched(connection, tenants::create(tenant), persistent).await?);
                1
            }
            Change::StartJob(job) => {
                applied.push(touched(connection, jobs::start(batch.tenant, job), persistent).await?);
                1
            }
            Change::LeaseJob { job, holder, lease } => {
                let query = jobs::lease(batch.tenant, *job, *holder, *lease);
                applied.push(touched(connection, query, persistent).await?);
                1
            }
            Change::AdvanceJob { job, holder, after } => {
                let query = jobs::advance(batch.tenant, job, *holder, *after);
                applied.push(touched(connection, query, persistent).await?);
                1
            }
            Change::CommandJob { job, command, at } => {
                let query = jobs::command(batch.tenant, *job, *command, *at);
                applied.push(touched(connection, query, persistent).await?);
                1
            }
            Change::Watch { proof, canary } => {
                let query = proofs::watch(batch.tenant, proof, canary);
                applied.push(touched(connection, query, persistent).await?);
                1
            }
            Change::ExtendWatch { key_version, lasting } => {
                let query = proofs::extend_watch(batch.tenant, key_version, *lasting);
                applied.push(touched(connection, query, persistent).await?);
                1
            }
            Change::Retire { all_but } => {
                applied.push(touched(connection, proofs::retire(batch.tenant, all_but), persistent).await?);
                1
            }
            Change::UpdateProof { from, to, incident } => {
                let query = proofs::update_proof(batch.tenant, *from, to, incident.as_ref());
                applied.push(touched(connection, query, persistent).await?);
                1
            }
            Change::AddCheckpoint { log, size, note } => {
                let query = checkpoints::add(batch.tenant, *log, *size, note);
                applied.push(touched(connection, query, persistent).await?);
                1
            }
            Change::Publish { place, holder, step } => {
                let query = publications::publish(batch.tenant, place, *holder, *step);
                applied.push(touched(connection, query, persistent).await?);
                1
            }
            Change::OpenLog { from, log } => {
                let query = publications::open_log(batch.tenant, from, *log);
                applied.push(touched(connection, query, persistent).await?);
                1
            }
            Change::Hold { on } => {
                applied.push(touched(connection, retention::hold(batch.tenant, *on), persistent).await?);
                1
            }
            Change::Erase { personal, places, in_index } => {
                sqlx::query(retention::BLOCK_NEW_HOLDS).persistent(false).execute(&mut *connection).await?;
                let query = retention::erase(batch.tenant, personal, places, *in_index);
                applied.push(touched(connection, query, persistent).await?);
                1
            }
            Change::EraseFromDeks { record_id, hmac } => {
                sqlx::query(retention::BLOCK_NEW_HOLDS).persistent(false).execute(&mut *connection).await?;
                let query = retention::erase_from_deks(batch.tenant, record_id, hmac);
                applied.push(touched(connection, query, persistent).await?);
                1
            }
            Change::RecordExport { places } => {
                applied.push(
                    touched(connection, retention::note_export(batch.tenant, places), persistent).await?,
                );
                1
            }
            Change::AddTiles { log, tiles } => {
                let query = derived::add_tiles(batch.tenant, *log, tiles);
                applied.push(touched(connection, query, persistent).await?);
                1
            }
            Change::AddChunkValues(values) => {
                let query = derived::add_values(batch.tenant, values);
                applied.push(touched(connection, query, persistent).await?);
                1
            }
            Change::AddChunks(chunks) => {
                let query = derived::add_chunks(batch.tenant, chunks);
                applied.push(touched(connection, query, persistent).await?);
                if let Some(above) = derived::add_chunks_above(batch.tenant, chunks) {
                    touched(connection, above, persistent).await?;
                }
                1
            }
            Change::Announce { incident, attempt, holder, step } => {
                let query = announcements::announce(batch.tenant, *incident, *attempt, *holder, *step);
                applied.push(touched(connection, query, persistent).await?);
                1
            }
            Change::Stream { name, holder, step } => {
                let query = streams::step(batch.tenant, *name, *holder, *step);
                applied.push(touched(connection, query, persistent).await?);
                1
            }
        };
        rest = &rest[length..];
    }
    Ok(Done { committed: Committed { applied, reading }, head })
}

/// Returns the head that the batch is appended to.
async fn head_of(
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

/// Returns the count that a statement returned.
async fn touched(connection: &mut PgConnection, query: PgQuery, persistent: bool) -> Result<u64, Error> {
    let count: i64 = query.persistent(persistent).fetch_one(connection).await?.try_get(0)?;
    Ok(u64::try_from(count).unwrap_or(0))
}

async fn append(
    connection: &mut PgConnection,
    batch: &Batch,
    deks: &[Change],
    head: &LogHead,
    persistent: bool,
) -> Result<(Option<FenceReading>, LogHead), AttemptError> {
    let extended = head.extended(&batch.entries);
    let query = append_query(batch, deks, [head, &extended]).persistent(persistent);
    let row = query.fetch_optional(connection).await?.ok_or(AttemptError::NotAppended)?;
    if batch.fence.is_empty() {
        return Ok((None, extended));
    }
    let proven_at: Vec<Timestamptz> = row.try_get(1)?;
    let proven_at = proven_at.into_iter().map(Timestamp::from).collect();
    Ok((Some(FenceReading { now: required(row.timestamp(0)?)?, proven_at }), extended))
}

fn append_query(batch: &Batch, deks: &[Change], heads: [&LogHead; 2]) -> PgQuery {
    let query = sqlx::query(APPEND)
        .bind(batch.tenant.0)
        .bind(signed(batch.base))
        .bind(i64::try_from(batch.entries.len()).unwrap_or(i64::MAX));
    let query = proofs::bind_fence(bind_deks(bind_entries(query, &batch.entries), deks), &batch.fence);
    let query = heads
        .into_iter()
        .fold(query, |query, head| query.bind(head.frontier.to_bytes()))
        .bind(batch.entries.iter().map(|entry| entry.detail.as_deref()).bind_iter())
        .bind(batch.entries.iter().map(|entry| entry.digest).bind_iter());
    bind_macs(query, deks)
}

fn bind_entries(query: PgQuery, entries: &[EntryRow]) -> PgQuery {
    fn user(entry: &EntryRow) -> Option<&Salted> {
        entry.user.as_ref()
    }
    query
        .bind(entries.iter().map(|entry| timestamptz(entry.at)).bind_iter())
        .bind(entries.iter().map(|entry| entry.id.0).bind_iter())
        .bind(entries.iter().map(|entry| entry.operation.as_str()).bind_iter())
        .bind(entries.iter().map(|entry| entry.outcome.as_str()).bind_iter())
        .bind(entries.iter().map(|entry| entry.means.as_str()).bind_iter())
        .bind(entries.iter().map(|entry| &*entry.role).bind_iter())
        .bind(entries.iter().map(|entry| user(entry).and_then(|user| user.value.as_deref())).bind_iter())
        .bind(entries.iter().map(|entry| user(entry).and_then(|user| user.salt)).bind_iter())
        .bind(entries.iter().map(|entry| user(entry).map(|user| user.hmac)).bind_iter())
        .bind(entries.iter().map(|entry| entry.request.value.as_deref()).bind_iter())
        .bind(entries.iter().map(|entry| entry.request.salt).bind_iter())
        .bind(entries.iter().map(|entry| entry.request.hmac).bind_iter())
        .bind(entries.iter().map(|entry| i32::try_from(entry.item_count).unwrap_or(i32::MAX)).bind_iter())
        .bind(entries.iter().map(|entry| entry.records.as_str()).bind_iter())
        .bind(entries.iter().map(|entry| entry.items.as_slice()).bind_iter())
}

async fn insert_deks(
    connection: &mut PgConnection,
    tenant: TenantUid,
    run: &[Change],
    persistent: bool,
) -> Result<(), AttemptError> {
    let query =
        bind_macs(bind_deks(sqlx::query(INSERT_DEKS).bind(tenant.0), run), run).persistent(persistent);
    let there = query.fetch_all(connection).await?;
    if there.len() == run.len() { Ok(()) } else { Err(AttemptError::DekIdTaken) }
}

fn bind_deks(query: PgQuery, changes: &[Change]) -> PgQuery {
    query
        .bind(deks(changes).map(|dek| dek.id.0).bind_iter())
        .bind(deks(changes).map(|dek| dek.record_id.as_deref()).bind_iter())
        .bind(deks(changes).map(|dek| dek.wrapped.bytes.as_slice()).bind_iter())
        .bind(deks(changes).map(|dek| &*dek.wrapped.key_version.key).bind_iter())
        .bind(deks(changes).map(|dek| &*dek.wrapped.key_version.version).bind_iter())
        .bind(deks(changes).map(|dek| dek.wrapped.scheme).bind_iter())
        .bind(deks(changes).map(|dek| timestamptz(dek.created_at)).bind_iter())
}

fn bind_macs(query: PgQuery, changes: &[Change]) -> PgQuery {
    query
        .bind(deks(changes).map(|dek| dek.mac).bind_iter())
        .bind(deks(changes).map(|dek| dek.record_mac).bind_iter())
}

fn seal(tenant: TenantUid, rows: &[DekRow]) -> PgQuery {
    sqlx::query(SEAL)
        .bind(tenant.0)
        .bind(rows.iter().map(|row| row.id.0).bind_iter())
        .bind(rows.iter().map(|row| row.record_id.as_deref()).bind_iter())
        .bind(rows.iter().map(|row| row.wrapped.bytes.as_slice()).bind_iter())
        .bind(rows.iter().map(|row| &*row.wrapped.key_version.key).bind_iter())
        .bind(rows.iter().map(|row| &*row.wrapped.key_version.version).bind_iter())
        .bind(rows.iter().map(|row| row.wrapped.scheme).bind_iter())
        .bind(rows.iter().map(|row| row.mac).bind_iter())
        .bind(rows.iter().map(|row| row.record_mac).bind_iter())
}

fn deks(changes: &[Change]) -> impl Iterator<Item = &DekRow> {
    changes.iter().filter_map(|change| if let Change::InsertDek(row) = change { Some(row) } else { None })
}

async fn rewrap(
    connection: &mut PgConnection,
    tenant: TenantUid,
    run: &[Change],
    persistent: bool,
) -> Result<Vec<u64>, Error> {
    let wraps = || {
        run.iter().filter_map(|change| match change {
            Change::Rewrap { dek_id, from, to, mac } => Some((dek_id, from, to, mac)),
            _ => None,
        })
    };
    let query = sqlx::query(REWRAP)
        .bind(tenant.0)
        .bind(wraps().map(|(id, ..)| id.0).bind_iter())
        .bind(wraps().map(|(_, from, ..)| from.bytes.as_slice()).bind_iter())
        .bind(wraps().map(|(_, from, ..)| &*from.key_version.key).bind_iter())
        .bind(wraps().map(|(_, from, ..)| &*from.key_version.version).bind_iter())
        .bind(wraps().map(|(_, from, ..)| from.scheme).bind_iter())
        .bind(wraps().map(|(.., to, _)| to.bytes.as_slice()).bind_iter())
        .bind(wraps().map(|(.., to, _)| &*to.key_version.key).bind_iter())
        .bind(wraps().map(|(.., to, _)| &*to.key_version.version).bind_iter())
        .bind(wraps().map(|(.., to, _)| to.scheme).bind_iter())
        .bind(wraps().map(|(.., mac)| *mac).bind_iter())
        .persistent(persistent);
    let rows = query.fetch_all(connection).await?;
    let touched: HashSet<Uuid> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    Ok(wraps().map(|(id, ..)| u64::from(touched.contains(&id.0))).collect())
}

/// Returns how many leading rewraps can be one statement: up to the first DEK that occurs twice,
/// because one statement updates a row once.
fn run_of_rewraps(changes: &[Change]) -> usize {
    let mut seen: HashSet<DekId> = HashSet::new();
    run_of(changes, |change| matches!(change, Change::Rewrap { dek_id, .. } if seen.insert(*dek_id)))
}

fn run_of(changes: &[Change], mut of_kind: impl FnMut(&Change) -> bool) -> usize {
    changes.iter().take_while(|change| of_kind(change)).count()
}
