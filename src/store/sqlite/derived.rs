//! Writes and reads of the data that is derived from entries.

use std::ops::Range;

use async_trait::async_trait;
use serde_json::json;
use sqlx::{Error, SqliteConnection};

use crate::merkle::Hash;
use crate::model::TenantUid;

use super::super::ReadError;
use super::super::byte_limit::ByteLimit;
use super::super::derived::{DerivedReads, EntryValues, FilterLevel, FilterRow, Tile, TileId, UnderivedLog};
use super::super::row::{self, number, signed, tile, tile_root};
use super::{Sqlite, SqliteQuery, statements};

statements! {
    /// Does not try to insert an existing tile: a trigger would take that for a replacement.
    ADD_TILE = "
        INSERT INTO np_byok_tiles (tenant, log, level, tile, root, hashes) SELECT ?1, ?2, ?3, ?4, ?5, ?6
        WHERE NOT EXISTS (SELECT 1 FROM np_byok_tiles WHERE tenant = ?1 AND log = ?2 AND level = ?3 AND tile = ?4)";
    OPEN_GROUP = "INSERT INTO np_byok_filters (tenant, level, chunk) VALUES (?1, 1, ?2) ON CONFLICT DO NOTHING";
    ADD_FILTER = "
        INSERT INTO np_byok_filters AS f (tenant, level, chunk, earliest, latest, filter)
        SELECT ?1, ?4, ?5, ?6, ?7, ?8 WHERE EXISTS (
            SELECT 1 FROM np_byok_filters WHERE tenant = ?1 AND level = 1 AND chunk = ?2 AND erasures = ?3)
            AND EXISTS (SELECT 1 FROM np_byok_heads
                WHERE tenant = ?1 AND size / CASE ?4 WHEN 0 THEN 256 ELSE 65536 END > ?5)
        ON CONFLICT (tenant, level, chunk) DO UPDATE
        SET earliest = excluded.earliest, latest = excluded.latest, filter = excluded.filter WHERE f.filter IS NULL";

    /// Ignores filters and tiles past the end of the log: whoever writes the database can add one
    /// at any index.
    UNDERIVED_LOGS = "
        SELECT tenant, log, first, size, chunk, tile FROM (
            SELECT h.tenant, h.log, h.first, h.size,
                COALESCE((SELECT max(chunk) + 1 FROM np_byok_filters
                    WHERE tenant = h.tenant AND level = 0 AND chunk < h.size / 256), 0) AS chunk,
                COALESCE((SELECT max(tile) + 1 FROM np_byok_tiles
                    WHERE tenant = h.tenant AND log = h.log AND level = 0 AND tile < (h.size - h.first) / 256),
                    0) AS tile
            FROM np_byok_heads h) AS l
        WHERE chunk < size / 256 OR tile < (size - first) / 256 OR EXISTS (
            SELECT 1 FROM np_byok_filters f WHERE f.tenant = l.tenant AND f.filter IS NULL
                AND f.chunk < CASE f.level WHEN 0 THEN l.chunk ELSE l.chunk / 256 END)
        ORDER BY random() LIMIT 256";

    ERASURES = "SELECT erasures FROM np_byok_filters WHERE tenant = ?1 AND level = 1 AND chunk = ?2";

    UNFILLED = "
        SELECT level, chunk FROM np_byok_filters WHERE tenant = ?1 AND filter IS NULL
            AND chunk < CASE level WHEN 0 THEN ?2 ELSE ?2 / 256 END
        ORDER BY level, chunk LIMIT ?3";

    /// Ends once the filters before have ?4 bytes.
    CHUNK_FILTERS = "
        WITH sized AS (
            SELECT chunk, COALESCE(sum(length(filter)) OVER (
                ORDER BY chunk ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before
            FROM np_byok_filters WHERE tenant = ?1 AND level = 0 AND chunk >= ?2 AND chunk < ?3)
        SELECT f.chunk, f.earliest, f.latest, f.filter
        FROM sized s CROSS JOIN np_byok_filters f ON f.tenant = ?1 AND f.level = 0 AND f.chunk = s.chunk
        WHERE s.before < ?4 ORDER BY f.chunk";

    /// Ends once the entries before have more than ?4 items or hold ?5 bytes.
    ENTRY_VALUES = "
        WITH sized AS (
            SELECT seq, item_count, octet_length(records) AS size FROM np_byok_audit
            WHERE tenant = ?1 AND seq >= ?2 AND seq < ?3 ORDER BY seq LIMIT 4096),
        bounded AS (
            SELECT seq, COALESCE(sum(item_count) OVER before, 0) AS items, COALESCE(sum(size) OVER before, 0) AS bytes
            FROM sized WINDOW before AS (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING))
        SELECT a.seq, a.at, a.operation, a.outcome, a.user_id, a.records
        FROM bounded b CROSS JOIN np_byok_audit a ON a.tenant = ?1 AND a.seq = b.seq
        WHERE b.items <= ?4 AND b.bytes < ?5 ORDER BY b.seq";

    TILES_END = "SELECT max(tile) FROM np_byok_tiles WHERE tenant = ?1 AND log = ?2 AND level = ?3 AND tile < ?4";

    TILES = "
        SELECT t.level, t.tile, t.hashes FROM json_each(?3) AS w
        CROSS JOIN np_byok_tiles t ON t.tenant = ?1 AND t.log = ?2 AND t.level = w.value ->> 0 AND t.tile = w.value ->> 1";

    TILE_ROOTS = "
        SELECT tile, root FROM np_byok_tiles
        WHERE tenant = ?1 AND log = ?2 AND level = ?3 AND tile >= ?4 AND tile < ?5 ORDER BY tile";
}

pub(super) async fn add_tiles(
    connection: &mut SqliteConnection,
    tenant: TenantUid,
    log: u32,
    tiles: &[Tile],
) -> Result<u64, Error> {
    let mut added = 0;
    for tile in tiles {
        let query = sqlx::query(ADD_TILE)
            .bind(tenant.0.as_slice())
            .bind(log)
            .bind(tile.id.level)
            .bind(signed(tile.id.index))
            .bind(tile.root().0.to_vec())
            .bind(tile.to_bytes());
        added += query.execute(&mut *connection).await?.rows_affected();
    }
    Ok(added)
}

pub(super) fn open_group(tenant: &TenantUid, group: u64) -> SqliteQuery<'_> {
    sqlx::query(OPEN_GROUP).bind(tenant.0.as_slice()).bind(signed(group))
}

pub(super) async fn add_filters(
    connection: &mut SqliteConnection,
    tenant: TenantUid,
    group: u64,
    erasures: u64,
    level: FilterLevel,
    filters: &[FilterRow],
) -> Result<u64, Error> {
    let mut added = 0;
    for row in filters {
        let query = sqlx::query(ADD_FILTER)
            .bind(tenant.0.as_slice())
            .bind(signed(group))
            .bind(signed(erasures))
            .bind(level.number())
            .bind(signed(row.index))
            .bind(row.earliest.0)
            .bind(row.latest.0)
            .bind(row.filter.as_deref());
        added += query.execute(&mut *connection).await?.rows_affected();
    }
    Ok(added)
}

#[async_trait]
impl DerivedReads for Sqlite {
    async fn underived_logs(&self) -> Result<Vec<UnderivedLog>, ReadError> {
        self.all(sqlx::query(UNDERIVED_LOGS), row::underived_log).await
    }

    async fn entry_values(
        &self,
        tenant: TenantUid,
        places: Range<u64>,
        items: u32,
    ) -> Result<Vec<EntryValues>, ReadError> {
        let query = sqlx::query(ENTRY_VALUES).bind(tenant.0.as_slice());
        let query = query.bind(signed(places.start)).bind(signed(places.end)).bind(items);
        self.all(query.bind(ByteLimit::LARGEST.bytes()), |row| row::entry_values(row, tenant)).await
    }

    async fn erasures(&self, tenant: TenantUid, group: u64) -> Result<Option<u64>, ReadError> {
        let query = sqlx::query(ERASURES).bind(tenant.0.as_slice()).bind(signed(group));
        self.first(query, |row| number(row, 0)).await
    }

    async fn unfilled(
        &self,
        tenant: TenantUid,
        end: u64,
        limit: u64,
    ) -> Result<Vec<(FilterLevel, u64)>, ReadError> {
        let query = sqlx::query(UNFILLED).bind(tenant.0.as_slice()).bind(signed(end)).bind(signed(limit));
        self.all(query, row::filter_id).await
    }

    async fn chunk_filters(
        &self,
        tenant: TenantUid,
        chunks: Range<u64>,
    ) -> Result<Vec<FilterRow>, ReadError> {
        let query = sqlx::query(CHUNK_FILTERS).bind(tenant.0.as_slice()).bind(signed(chunks.start));
        let query = query.bind(signed(chunks.end)).bind(ByteLimit::LARGEST.bytes());
        self.all(query, row::filter_row).await
    }

    async fn tiles_end(
        &self,
        tenant: TenantUid,
        log: u32,
        level: u32,
        before: u64,
    ) -> Result<u64, ReadError> {
        let query = sqlx::query(TILES_END).bind(tenant.0.as_slice()).bind(log).bind(level);
        Ok(self.first(query.bind(signed(before)), row::end).await?.unwrap_or(0))
    }

    async fn tiles(&self, tenant: TenantUid, log: u32, ids: &[TileId]) -> Result<Vec<Tile>, ReadError> {
        let ids: Vec<_> = ids.iter().map(|id| json!([id.level, id.index])).collect();
        let query = sqlx::query(TILES).bind(tenant.0.as_slice()).bind(log).bind(json!(ids).to_string());
        self.all(query, tile).await
    }

    async fn tile_roots(
        &self,
        tenant: TenantUid,
        log: u32,
        level: u32,
        tiles: Range<u64>,
    ) -> Result<Vec<(u64, Hash)>, ReadError> {
        let query = sqlx::query(TILE_ROOTS).bind(tenant.0.as_slice()).bind(log).bind(level);
        self.all(query.bind(signed(tiles.start)).bind(signed(tiles.end)), tile_root).await
    }
}
