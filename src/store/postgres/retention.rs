//! Holds, erasures, and the removal of old entries. Only the owner of the tables may do any of
//! this, except for reading a hold.

use std::ops::Range;

use async_trait::async_trait;
use sqlx::postgres::{PgBindIterExt, PgConnection};
use sqlx::{AssertSqlSafe, Connection, Error, Row};
use tokio::time::timeout;

use crate::model::{Tenant, TenantUid};

use super::super::derived::{Searchable, index_value};
use super::super::failure::Failure;
use super::super::row::{number, signed, tenant};
use super::super::{PersonalValue, Prunable, PruneError, ReadError, Retention, RetentionStore};
use super::commit::PgQuery;
use super::migrate::LOCK;
use super::primary::of_primary;
use super::{Postgres, reads, statements, timestamptz};

// These statements run as the tables' owner. Functions owner arguments PostgreSQL has to convert
// are named with their schema, so that no function of another role matches better.
statements! {
    HOLD = "
        WITH held AS (INSERT INTO np_byok_holds (tenant) VALUES ($1) ON CONFLICT DO NOTHING RETURNING 1)
        SELECT count(*) FROM held";
    RELEASE = "
        WITH released AS (DELETE FROM np_byok_holds WHERE tenant = $1 RETURNING 1) SELECT count(*) FROM released";
    RECORD_EXPORT = "
        WITH noted AS (INSERT INTO np_byok_exports (tenant, first, past) VALUES ($1, $2, $3)
            ON CONFLICT DO NOTHING RETURNING 1)
        SELECT count(*) FROM noted";
    /// Keeps the value, in the index of the release before this one, where a later entry of a chunk
    /// has it: one may be added during the erasure.
    ERASE_USER = "
        WITH unnamed AS (
            DELETE FROM np_byok_chunk_values v
            WHERE $6 AND tenant = $1 AND value = $5 AND chunk <= ($3 - 1) / 256
                AND NOT EXISTS (SELECT FROM np_byok_audit a
                    WHERE a.tenant = $1 AND a.seq >= $3 AND a.seq < (v.chunk + 1) * 256 AND a.user_id = $4)
                AND NOT EXISTS (SELECT FROM np_byok_holds WHERE tenant = $1)),
        erased AS (
            UPDATE np_byok_audit SET user_id = NULL, user_salt = NULL, request_id = NULL, request_salt = NULL
            WHERE tenant = $1 AND seq >= $2 AND seq < $3 AND user_id = $4
                AND NOT EXISTS (SELECT FROM np_byok_holds WHERE tenant = $1) RETURNING 1)
        SELECT count(*) FROM erased";
    ERASE_RECORD = "
        WITH unnamed AS (
            DELETE FROM np_byok_chunk_values v
            WHERE $6 AND tenant = $1 AND value = $5 AND chunk <= ($3 - 1) / 256
                AND NOT EXISTS (SELECT FROM np_byok_audit a
                    WHERE a.tenant = $1 AND a.seq >= $3 AND a.seq < (v.chunk + 1) * 256
                        AND pg_catalog.jsonb_path_exists(a.records, 'strict $[*] ? (@[0] == $record)',
                            pg_catalog.jsonb_build_object('record', $4::text)))
                AND NOT EXISTS (SELECT FROM np_byok_holds WHERE tenant = $1)),
        erased AS (
            UPDATE np_byok_audit SET records = (
                SELECT pg_catalog.jsonb_agg(CASE WHEN element ->> 0 = $4 THEN 'null'::jsonb ELSE element END ORDER BY place)
                FROM pg_catalog.jsonb_array_elements(records) WITH ORDINALITY AS e(element, place))
            WHERE tenant = $1 AND seq >= $2 AND seq < $3
                AND pg_catalog.jsonb_path_exists(records, 'strict $[*] ? (@[0] == $record)', pg_catalog.jsonb_build_object('record', $4::text))
                AND NOT EXISTS (SELECT FROM np_byok_holds WHERE tenant = $1) RETURNING 1)
        SELECT count(*) FROM erased";
    ERASE_FROM_DEKS = "
        WITH erased AS (
            UPDATE np_byok_wrapped_deks SET record_id = NULL, record_mac = NULL, record_hmac = $3
            WHERE tenant = $1 AND hashtextextended(record_id, 0::int8) = hashtextextended($2, 0::int8) AND record_id = $2
                AND NOT EXISTS (SELECT FROM np_byok_holds WHERE tenant = $1) RETURNING 1)
        SELECT count(*) FROM erased";
    /// Takes the filters of the groups away whose entries are erased or dropped. Whoever makes a
    /// filter has the lock of its group's row, or waits for it, from here on.
    FORGET_GROUPS = "
        WITH forgotten AS (
            INSERT INTO np_byok_filters AS f (tenant, level, chunk, erasures)
            SELECT $1, 1, g.chunk, 1 FROM np_byok_heads h
            CROSS JOIN LATERAL pg_catalog.generate_series($2::int8 / 65536, (LEAST($3::int8, h.size) - 1) / 65536) AS g(chunk)
            WHERE h.tenant = $1
            ON CONFLICT (tenant, level, chunk) DO UPDATE SET filter = NULL, erasures = f.erasures + 1 RETURNING 1)
        SELECT count(*) FROM forgotten";
    /// Takes the filters of their chunks away. Comes after [`FORGET_GROUPS`], so that it finds
    /// those that were added until then.
    FORGET_CHUNKS = "
        WITH forgotten AS (
            UPDATE np_byok_filters SET filter = NULL
            WHERE tenant = $1 AND level = 0 AND chunk >= $2 / 256 AND chunk <= ($3 - 1) / 256 AND filter IS NOT NULL
            RETURNING 1)
        SELECT count(*) FROM forgotten";
    /// Deletes the index values of the chunks of which no entry is left without these ranges:
    /// chunks that are within a range, and chunks that have no other entry.
    DELETE_INDEX_VALUES = "
        WITH goes AS (SELECT * FROM unnest($2::int8[], $3::int8[]) AS r(first, past))
        DELETE FROM np_byok_chunk_values WHERE tenant = $1 AND chunk IN (
            SELECT c.chunk FROM goes r CROSS JOIN LATERAL generate_series(r.first / 256, (r.past - 1) / 256) AS c(chunk)
            WHERE (c.chunk * 256 >= r.first AND c.chunk * 256 + 256 <= r.past)
                OR NOT EXISTS (SELECT FROM np_byok_audit a
                    WHERE a.tenant = $1 AND a.seq >= c.chunk * 256 AND a.seq < c.chunk * 256 + 256
                        AND NOT EXISTS (SELECT FROM goes g WHERE a.seq >= g.first AND a.seq < g.past)))";
}

reads! {
    ON_HOLD = "SELECT EXISTS (SELECT FROM np_byok_holds WHERE tenant = $1)";
    /// The partitions of the months that have ended by then, by the names that
    /// `np_byok_make_partitions` gives, and last the partition of entries that belong to no month.
    PARTS = "
        SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'np_byok_audit'::regclass AND c.relname ~ '^np_byok_audit_[0-9]{6}$'
            AND (to_date(pg_catalog.right(c.relname, 6), 'YYYYMM') + interval '1 month') AT TIME ZONE 'UTC' <= $1
        UNION ALL SELECT 'np_byok_audit_default' ORDER BY 1";
}

/// Blocks new holds while values that a hold would keep are erased: what later statements of the
/// transaction read about holds stays true.
const BLOCK_NEW_HOLDS: &str = "LOCK TABLE np_byok_holds IN SHARE MODE";

/// The time limits for waiting for the migrations' lock and for the table's own lock.
const LOCK_TIMEOUTS: &str =
    "SELECT set_config('lock_timeout', '2s', true), set_config('statement_timeout', '0', true)";

/// Executes [`BLOCK_NEW_HOLDS`].
pub(super) async fn block_new_holds(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query(BLOCK_NEW_HOLDS).persistent(false).execute(connection).await.map(drop)
}

pub(super) fn hold(tenant: TenantUid, on: bool) -> PgQuery {
    sqlx::query(if on { HOLD } else { RELEASE }).bind(tenant.0)
}

pub(super) fn record_export(tenant: TenantUid, places: &Range<u64>) -> PgQuery {
    sqlx::query(RECORD_EXPORT).bind(tenant.0).bind(signed(places.start)).bind(signed(places.end))
}

pub(super) fn erase(
    tenant: TenantUid,
    personal: &PersonalValue,
    places: &Range<u64>,
    in_index: bool,
) -> PgQuery {
    let (statement, named) = match personal {
        PersonalValue::User(user) => (ERASE_USER, Searchable::User(user)),
        PersonalValue::Record(record) => (ERASE_RECORD, Searchable::Record(record)),
    };
    let query = sqlx::query(statement).bind(tenant.0).bind(signed(places.start)).bind(signed(places.end));
    query.bind(personal.value().to_owned()).bind(index_value(tenant, named)).bind(in_index)
}

/// Builds the statements that take the filters away that were made of these entries, in their
/// order.
pub(super) fn forget(tenant: TenantUid, places: &Range<u64>) -> [PgQuery; 2] {
    let query = |sql| sqlx::query(sql).bind(tenant.0).bind(signed(places.start)).bind(signed(places.end));
    [query(FORGET_GROUPS), query(FORGET_CHUNKS)]
}

pub(super) fn erase_from_deks(tenant: TenantUid, record_id: &str, hmac: &[u8; 32]) -> PgQuery {
    sqlx::query(ERASE_FROM_DEKS).bind(tenant.0).bind(record_id.to_owned()).bind(*hmac)
}

/// The partition for entries that belong to no month.
const DEFAULT_PARTITION: &str = "np_byok_audit_default";

/// Returns SQL that selects the entries of one part that may be removed. It counts once how far
/// tiles go, not for each entry. `part` is one of byok's own names, from the catalogue, and never
/// anyone else's input.
fn prunable_entries_sql(part: &str) -> String {
    format!(
        "WITH tiled AS MATERIALIZED (
            SELECT l.tenant, l.first, LEAST(l.size, l.first + 256 * count(*)) AS past FROM (
                SELECT tenant, log, first, size FROM np_byok_heads UNION ALL
                SELECT tenant, log, first, size FROM np_byok_logs) AS l
            JOIN np_byok_tiles t ON t.tenant = l.tenant AND t.log = l.log AND t.level = 0
            GROUP BY l.tenant, l.log, l.first, l.size HAVING count(*) = max(t.tile) + 1)
        SELECT a.tenant, a.seq FROM {part} a JOIN tiled USING (tenant)
        WHERE a.at < $2 AND a.seq >= tiled.first AND a.seq < tiled.past
            AND NOT EXISTS (SELECT FROM np_byok_holds k WHERE k.tenant = a.tenant)
            AND (NOT $1 OR EXISTS (SELECT FROM np_byok_exports x
                WHERE x.tenant = a.tenant AND a.seq >= x.first AND a.seq < x.past))"
    )
}

async fn prunable_of_part(
    connection: &mut PgConnection,
    part: &str,
    retention: Retention,
) -> Result<Vec<(Tenant, Vec<Range<u64>>)>, Error> {
    let sql = format!(
        "SELECT t.uid, t.name, min(i.seq), max(i.seq) + 1 FROM (
            SELECT tenant, seq, seq - row_number() OVER (PARTITION BY tenant ORDER BY seq) AS island
            FROM ({}) AS may_go) AS i JOIN np_byok_tenants t ON t.uid = i.tenant
        GROUP BY t.uid, t.name, i.island ORDER BY t.uid, min(i.seq)",
        prunable_entries_sql(part)
    );
    let query =
        sqlx::query(AssertSqlSafe(sql)).bind(retention.exported_only).bind(timestamptz(retention.before));
    let query = query.persistent(false);
    let mut found: Vec<(Tenant, Vec<Range<u64>>)> = Vec::new();
    for row in query.fetch_all(connection).await? {
        let (owner, range) = (tenant(&row)?, number(&row, 2)?..number(&row, 3)?);
        match found.last_mut() {
            Some((last, ranges)) if *last == owner => ranges.push(range),
            _ => found.push((owner, vec![range])),
        }
    }
    Ok(found)
}

impl Postgres {
    /// Returns a connection as the tables' owner.
    async fn owner(&self) -> Result<PgConnection, ReadError> {
        let access = self.access();
        let owner = access.as_owner();
        let connected = timeout(super::ACQUIRE, sqlx::ConnectOptions::connect(owner)).await;
        connected.unwrap_or(Err(Error::PoolTimedOut)).map_err(|error| Failure::of(&error).into())
    }

    async fn drop_entries(&self, retention: Retention, prunable: &Prunable) -> Result<bool, Error> {
        let access = self.access();
        let owner = access.as_owner();
        let mut connection = sqlx::ConnectOptions::connect(owner).await?;
        let mut transaction = connection.begin().await?;
        // Works as [`BLOCK_NEW_HOLDS`] does, and also prevents erasures meanwhile: an erasure would
        // wait for the part while it holds the lock of the whole table.
        let alone = "LOCK TABLE np_byok_holds IN SHARE ROW EXCLUSIVE MODE";
        for sql in [LOCK_TIMEOUTS, LOCK, alone] {
            sqlx::query(sql).persistent(false).execute(&mut *transaction).await?;
        }
        let parts = sqlx::query(PARTS).bind(timestamptz(retention.before)).persistent(false);
        let parts = of_primary(parts.fetch_all(&mut *transaction).await?)?;
        let parts: Result<Vec<String>, _> = parts.iter().map(|row| row.try_get(0)).collect();
        let Some(part) = parts?.into_iter().find(|part| *part == prunable.part) else { return Ok(false) };
        // From here on nothing may be added to the part or erased from it, but it can still be
        // read. Readers lock the whole table before a part: if they waited for this transaction
        // here, it would wait for them below.
        run(&mut transaction, &format!("LOCK TABLE {part} IN SHARE ROW EXCLUSIVE MODE")).await?;
        if prunable_of_part(&mut transaction, &part, retention).await? != prunable.entries {
            return Ok(false);
        }
        let mut going = 0;
        for (tenant, ranges) in &prunable.entries {
            let query = sqlx::query(DELETE_INDEX_VALUES).bind(tenant.uid.0).persistent(false);
            let query = query.bind(ranges.iter().map(|range| signed(range.start)).bind_iter());
            let query = query.bind(ranges.iter().map(|range| signed(range.end)).bind_iter());
            query.execute(&mut *transaction).await?;
            for query in ranges.iter().flat_map(|range| forget(tenant.uid, range)) {
                query.persistent(false).execute(&mut *transaction).await?;
            }
            going += ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        }
        let all = sqlx::query(AssertSqlSafe(format!("SELECT count(*) FROM {part}"))).persistent(false);
        if part != DEFAULT_PARTITION && number::<u64>(&all.fetch_one(&mut *transaction).await?, 0)? == going {
            // Nobody reads or writes the log during this step, so it comes last and is quick.
            run(&mut transaction, &format!("ALTER TABLE np_byok_audit DETACH PARTITION {part}")).await?;
            run(&mut transaction, &format!("DROP TABLE {part}")).await?;
        } else {
            let prunable = format!(
                "SELECT FROM ({}) AS g WHERE g.tenant = m.tenant AND g.seq = m.seq",
                prunable_entries_sql(&part)
            );
            run(&mut transaction, &format!("ALTER TABLE {part} DISABLE TRIGGER USER")).await?;
            with(&mut transaction, &format!("DELETE FROM {part} m WHERE EXISTS ({prunable})"), retention)
                .await?;
            run(&mut transaction, &format!("ALTER TABLE {part} ENABLE TRIGGER USER")).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(drop)
}

async fn with(connection: &mut PgConnection, sql: &str, retention: Retention) -> Result<(), Error> {
    let query = sqlx::query(AssertSqlSafe(sql.to_owned())).persistent(false);
    query
        .bind(retention.exported_only)
        .bind(timestamptz(retention.before))
        .execute(connection)
        .await
        .map(drop)
}

#[async_trait]
impl RetentionStore for Postgres {
    async fn on_hold(&self, tenant: TenantUid) -> Result<bool, ReadError> {
        let held = self.first(sqlx::query(ON_HOLD).bind(tenant.0), |row| row.try_get(0)).await?;
        Ok(held == Some(true))
    }

    async fn prunable(&self, retention: Retention) -> Result<Vec<Prunable>, ReadError> {
        let parts = sqlx::query(PARTS).bind(timestamptz(retention.before));
        let parts: Vec<String> = self.all(parts, |row| row.try_get(0)).await?;
        let mut connection = self.owner().await?;
        let mut found = Vec::new();
        for part in parts {
            let entries = prunable_of_part(&mut connection, &part, retention).await;
            let entries = entries.map_err(|error| ReadError::from(Failure::of(&error)))?;
            if !entries.is_empty() {
                found.push(Prunable { part, entries });
            }
        }
        Ok(found)
    }

    async fn prune(&self, retention: Retention, prunable: &Prunable) -> Result<(), PruneError> {
        match self.drop_entries(retention, prunable).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(PruneError::Changed),
            Err(error) => Err(PruneError::Store(Failure::of(&error).into())),
        }
    }
}
