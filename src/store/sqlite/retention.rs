//! Holds, erasures, and the removal of old entries.

use std::ops::Range;

use async_trait::async_trait;
use sqlx::{Error, Row, SqliteConnection};

use crate::model::{Tenant, TenantUid};

use super::super::derived::{Searchable, index_value};
use super::super::failure::Failure;
use super::super::row::{number, signed, tenant};
use super::super::{PersonalValue, Prunable, PruneError, ReadError, Retention, RetentionStore};
use super::{Sqlite, SqliteQuery, statements};

statements! {
    HOLD = "
        INSERT INTO np_byok_holds (tenant, since) VALUES (?1, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000)
        ON CONFLICT DO NOTHING";
    RELEASE = "DELETE FROM np_byok_holds WHERE tenant = ?1";
    ON_HOLD = "SELECT EXISTS (SELECT 1 FROM np_byok_holds WHERE tenant = ?1)";
    RECORD_EXPORT = "
        INSERT INTO np_byok_exports (tenant, first, past, at)
        VALUES (?1, ?2, ?3, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000) ON CONFLICT DO NOTHING";
    ERASE_USER = "
        UPDATE np_byok_audit SET user_id = NULL, user_salt = NULL, request_id = NULL, request_salt = NULL
        WHERE tenant = ?1 AND seq >= ?2 AND seq < ?3 AND user_id = ?4
            AND NOT EXISTS (SELECT 1 FROM np_byok_holds WHERE tenant = ?1)";
    ERASE_RECORD = "
        UPDATE np_byok_audit SET records = (
            SELECT json_group_array(json(CASE WHEN r.type = 'array' AND r.value ->> '$[0]' <> ?4 THEN r.value ELSE 'null' END))
            FROM json_each(records) AS r)
        WHERE tenant = ?1 AND seq >= ?2 AND seq < ?3
            AND EXISTS (SELECT 1 FROM json_each(records) AS r WHERE r.type = 'array' AND r.value ->> '$[0]' = ?4)
            AND NOT EXISTS (SELECT 1 FROM np_byok_holds WHERE tenant = ?1)";
    ERASE_FROM_DEKS = "
        UPDATE np_byok_wrapped_deks SET record_id = NULL, record_mac = NULL, record_hmac = ?3 WHERE tenant = ?1 AND record_id = ?2
            AND NOT EXISTS (SELECT 1 FROM np_byok_holds WHERE tenant = ?1)";
    RANGES = "
        WITH tiled AS MATERIALIZED (
            SELECT l.tenant, l.first, min(l.size, l.first + 256 * count(*)) AS past FROM (
                SELECT tenant, log, first, size FROM np_byok_heads UNION ALL
                SELECT tenant, log, first, size FROM np_byok_logs) AS l
            JOIN np_byok_tiles t ON t.tenant = l.tenant AND t.log = l.log AND t.level = 0
            GROUP BY l.tenant, l.log, l.first, l.size HAVING count(*) = max(t.tile) + 1),
        may_go AS (
            SELECT a.tenant, a.seq FROM tiled CROSS JOIN np_byok_audit a ON a.tenant = tiled.tenant
            WHERE a.at < ?2 AND a.seq >= tiled.first AND a.seq < tiled.past
                AND NOT EXISTS (SELECT 1 FROM np_byok_holds k WHERE k.tenant = a.tenant)
                AND (NOT ?1 OR EXISTS (SELECT 1 FROM np_byok_exports x
                    WHERE x.tenant = a.tenant AND a.seq >= x.first AND a.seq < x.past)))
        SELECT t.uid, t.name, min(i.seq), max(i.seq) + 1 FROM (
            SELECT tenant, seq, seq - row_number() OVER (PARTITION BY tenant ORDER BY seq) AS island FROM may_go) AS i
        JOIN np_byok_tenants t ON t.uid = i.tenant
        GROUP BY t.uid, t.name, i.island ORDER BY t.uid, min(i.seq)";
    DELETE = "DELETE FROM np_byok_audit WHERE tenant = ?1 AND seq >= ?2 AND seq < ?3";
    /// Removes an erased value from the index of the release before this one, except in chunks
    /// where a later entry has it. Removes nothing for a tenant on hold.
    ERASE_USER_FROM_INDEX = "
        DELETE FROM np_byok_chunk_values WHERE tenant = ?1 AND value = ?2 AND chunk <= (?3 - 1) / 256
            AND NOT EXISTS (SELECT 1 FROM np_byok_audit a WHERE a.tenant = ?1 AND a.seq >= ?3
                AND a.seq < (np_byok_chunk_values.chunk + 1) * 256 AND a.user_id = ?4)
            AND NOT EXISTS (SELECT 1 FROM np_byok_holds WHERE tenant = ?1)";
    ERASE_RECORD_FROM_INDEX = "
        DELETE FROM np_byok_chunk_values WHERE tenant = ?1 AND value = ?2 AND chunk <= (?3 - 1) / 256
            AND NOT EXISTS (SELECT 1 FROM np_byok_audit a, json_each(a.records) AS r WHERE a.tenant = ?1
                AND a.seq >= ?3 AND a.seq < (np_byok_chunk_values.chunk + 1) * 256
                AND r.type = 'array' AND r.value ->> '$[0]' = ?4)
            AND NOT EXISTS (SELECT 1 FROM np_byok_holds WHERE tenant = ?1)";
    /// Takes the filters of the groups away whose entries are erased or dropped, and those of their
    /// chunks.
    FORGET_GROUPS = "
        WITH RECURSIVE groups(chunk, past) AS (
            SELECT ?2 / 65536, (min(?3, size) - 1) / 65536 + 1 FROM np_byok_heads WHERE tenant = ?1
            UNION ALL SELECT chunk + 1, past FROM groups WHERE chunk + 1 < past)
        INSERT INTO np_byok_filters AS f (tenant, level, chunk, erasures)
        SELECT ?1, 1, chunk, 1 FROM groups WHERE chunk < past
        ON CONFLICT (tenant, level, chunk) DO UPDATE SET filter = NULL, erasures = f.erasures + 1";
    FORGET_CHUNKS = "
        UPDATE np_byok_filters SET filter = NULL
        WHERE tenant = ?1 AND level = 0 AND chunk >= ?2 / 256 AND chunk <= (?3 - 1) / 256 AND filter IS NOT NULL";
    /// Deletes the index values of the chunks of which no entry is left.
    DELETE_INDEX_VALUES = "
        DELETE FROM np_byok_chunk_values WHERE tenant = ?1 AND chunk BETWEEN ?2 / 256 AND (?3 - 1) / 256
            AND NOT EXISTS (SELECT 1 FROM np_byok_audit a WHERE a.tenant = ?1
                AND a.seq >= np_byok_chunk_values.chunk * 256 AND a.seq < np_byok_chunk_values.chunk * 256 + 256)";
    GUARD = "SELECT sql FROM sqlite_schema WHERE type = 'trigger' AND name = 'np_byok_audit_no_delete'";
}

/// The name of the only part: SQLite has one table of entries.
const PART: &str = "np_byok_audit";

pub(super) fn hold(tenant: &TenantUid, on: bool) -> SqliteQuery<'_> {
    sqlx::query(if on { HOLD } else { RELEASE }).bind(tenant.0.as_slice())
}

pub(super) fn record_export<'q>(tenant: &'q TenantUid, places: &Range<u64>) -> SqliteQuery<'q> {
    sqlx::query(RECORD_EXPORT).bind(tenant.0.as_slice()).bind(signed(places.start)).bind(signed(places.end))
}

pub(super) fn erase<'q>(
    tenant: &'q TenantUid,
    personal: &'q PersonalValue,
    places: &Range<u64>,
) -> SqliteQuery<'q> {
    let statement = match personal {
        PersonalValue::User(_) => ERASE_USER,
        PersonalValue::Record(_) => ERASE_RECORD,
    };
    let query = sqlx::query(statement).bind(tenant.0.as_slice());
    query.bind(signed(places.start)).bind(signed(places.end)).bind(personal.value())
}

/// Builds the statements that take the filters away that were made of these entries.
pub(super) fn forget<'q>(tenant: &'q TenantUid, places: &Range<u64>) -> [SqliteQuery<'q>; 2] {
    [FORGET_GROUPS, FORGET_CHUNKS].map(|sql| {
        sqlx::query(sql).bind(tenant.0.as_slice()).bind(signed(places.start)).bind(signed(places.end))
    })
}

pub(super) fn erase_from_deks<'q>(
    tenant: &'q TenantUid,
    record_id: &'q str,
    hmac: &'q [u8; 32],
) -> SqliteQuery<'q> {
    sqlx::query(ERASE_FROM_DEKS).bind(tenant.0.as_slice()).bind(record_id).bind(hmac.as_slice())
}

/// Builds a statement that removes the value from the index of the release before this one.
pub(super) fn erase_from_index<'q>(
    tenant: &'q TenantUid,
    personal: &'q PersonalValue,
    places: &Range<u64>,
) -> SqliteQuery<'q> {
    let (statement, named) = match personal {
        PersonalValue::User(user) => (ERASE_USER_FROM_INDEX, Searchable::User(user)),
        PersonalValue::Record(record) => (ERASE_RECORD_FROM_INDEX, Searchable::Record(record)),
    };
    let query = sqlx::query(statement).bind(tenant.0.as_slice()).bind(index_value(*tenant, named));
    query.bind(signed(places.end)).bind(personal.value())
}

async fn ranges(
    connection: &mut SqliteConnection,
    retention: Retention,
) -> Result<Vec<(Tenant, Vec<Range<u64>>)>, Error> {
    let query = sqlx::query(RANGES).bind(retention.exported_only).bind(retention.before.0);
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

impl Sqlite {
    async fn drop_entries(&self, retention: Retention, prunable: &Prunable) -> Result<bool, Error> {
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        if ranges(&mut transaction, retention).await? != prunable.entries {
            transaction.rollback().await?;
            return Ok(false);
        }
        // The trigger is dropped only within this transaction, during which nobody else writes.
        let guard: String = sqlx::query(GUARD).fetch_one(&mut *transaction).await?.try_get(0)?;
        sqlx::raw_sql("DROP TRIGGER np_byok_audit_no_delete").execute(&mut *transaction).await?;
        for (tenant, ranges) in &prunable.entries {
            for range in ranges {
                let query = sqlx::query(DELETE).bind(tenant.uid.0.as_slice());
                query.bind(signed(range.start)).bind(signed(range.end)).execute(&mut *transaction).await?;
                let query = sqlx::query(DELETE_INDEX_VALUES).bind(tenant.uid.0.as_slice());
                query.bind(signed(range.start)).bind(signed(range.end)).execute(&mut *transaction).await?;
                for query in forget(&tenant.uid, range) {
                    query.execute(&mut *transaction).await?;
                }
            }
        }
        sqlx::raw_sql(sqlx::AssertSqlSafe(guard)).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(true)
    }
}

#[async_trait]
impl RetentionStore for Sqlite {
    async fn on_hold(&self, tenant: TenantUid) -> Result<bool, ReadError> {
        let query = sqlx::query(ON_HOLD).bind(tenant.0.as_slice());
        Ok(self.first(query, |row| row.try_get(0)).await? == Some(true))
    }

    async fn prunable(&self, retention: Retention) -> Result<Vec<Prunable>, ReadError> {
        let failed = |error: Error| ReadError::from(Failure::of(&error));
        let mut connection = self.readers.acquire().await.map_err(failed)?;
        let entries = ranges(&mut connection, retention).await.map_err(failed)?;
        let none = entries.is_empty();
        Ok(if none { Vec::new() } else { vec![Prunable { part: PART.to_owned(), entries }] })
    }

    async fn prune(&self, retention: Retention, prunable: &Prunable) -> Result<(), PruneError> {
        match self.drop_entries(retention, prunable).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(PruneError::Changed),
            Err(error) => Err(PruneError::Store(Failure::of(&error).into())),
        }
    }
}
