//! Writes and reads of the data that is derived from entries.

use std::ops::Range;

use async_trait::async_trait;
use sqlx::postgres::PgBindIterExt;

use crate::merkle::Hash;
use crate::model::TenantUid;

use super::super::ReadError;
use super::super::byte_limit::ByteLimit;
use super::super::derived::{DerivedReads, EntryValues, FilterLevel, FilterRow, Tile, TileId, UnderivedLog};
use super::super::row::{self, number, signed, tile, tile_root};
use super::commit::PgQuery;
use super::{Postgres, reads, statements, timestamptz};

statements! {
    ADD_TILES = "
        WITH added AS (INSERT INTO np_byok_tiles (tenant, log, level, tile, root, hashes)
            SELECT $1, $2::int8, t.* FROM unnest($3::int8[], $4::int8[], $5::bytea[], $6::bytea[])
                AS t(level, tile, root, hashes)
            ON CONFLICT DO NOTHING RETURNING 1)
        SELECT count(*) FROM added";

    OPEN_GROUP = "
        WITH opened AS (INSERT INTO np_byok_filters (tenant, level, chunk) VALUES ($1, 1, $2)
            ON CONFLICT DO NOTHING RETURNING 1)
        SELECT count(*) FROM opened";

    /// Returns how many filters were added (migration 14).
    ADD_FILTERS = "SELECT np_byok_add_filters($1, $2, $3, $4::int8::int2, $5, $6, $7, $8)";
}

reads! {
    /// Ignores filters and tiles past the end of the log: whoever writes the database can add one
    /// at any index.
    UNDERIVED_LOGS = "
        SELECT h.tenant, h.log::int8, h.first, h.size, c.next, t.next FROM np_byok_heads h
        CROSS JOIN LATERAL (SELECT COALESCE(max(chunk) + 1, 0) AS next
            FROM np_byok_filters WHERE tenant = h.tenant AND level = 0 AND chunk < h.size / 256) c
        CROSS JOIN LATERAL (SELECT COALESCE(max(tile) + 1, 0) AS next FROM np_byok_tiles
            WHERE tenant = h.tenant AND log = h.log AND level = 0 AND tile < (h.size - h.first) / 256) t
        WHERE c.next < h.size / 256 OR t.next < (h.size - h.first) / 256 OR EXISTS (
            SELECT FROM np_byok_filters f WHERE f.tenant = h.tenant AND f.filter IS NULL
                AND f.chunk < CASE f.level WHEN 0 THEN c.next ELSE c.next / 256 END)
        ORDER BY random() LIMIT 256";

    ERASURES = "SELECT erasures FROM np_byok_filters WHERE tenant = $1 AND level = 1 AND chunk = $2";

    UNFILLED = "
        SELECT level::int8, chunk FROM np_byok_filters WHERE tenant = $1 AND filter IS NULL
            AND chunk < CASE level WHEN 0 THEN $2::int8 ELSE $2::int8 / 256 END
        ORDER BY level, chunk LIMIT $3";

    /// Ends once the filters before have $4 bytes.
    CHUNK_FILTERS = "
        SELECT chunk, earliest, latest, filter FROM (
            SELECT chunk, earliest, latest, filter, COALESCE(sum(octet_length(filter)) OVER (
                ORDER BY chunk ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before
            FROM np_byok_filters WHERE tenant = $1 AND level = 0 AND chunk >= $2 AND chunk < $3) AS f
        WHERE before < $4::int8 ORDER BY chunk";

    /// Reads records only as long as the entries at the positions before have at most $4 items and
    /// fewer than $5 bytes. For that, reads the sizes of at most 4096 entries.
    ENTRY_VALUES = "
        SELECT seq, at, operation, outcome, user_id, records::text FROM (
            SELECT seq, at, operation, outcome, user_id, records,
                COALESCE(sum(item_count) OVER before, 0) AS items,
                COALESCE(sum(pg_column_size(records)) OVER before, 0) AS bytes
            FROM (
                SELECT seq, at, operation, outcome, user_id, records, item_count FROM np_byok_audit
                WHERE tenant = $1 AND seq >= $2 AND seq < $3 ORDER BY seq LIMIT 4096) AS e
            WINDOW before AS (ORDER BY seq GROUPS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)) AS e
        WHERE items <= $4 AND bytes < $5::int8 ORDER BY seq";

    TILES_END = "
        SELECT max(tile) FROM np_byok_tiles
        WHERE tenant = $1 AND log = $2::int8 AND level = $3::int8 AND tile < $4";

    TILES = "
        SELECT t.level::int8, t.tile, t.hashes FROM unnest($3::int8[], $4::int8[]) AS w(level, tile)
        JOIN np_byok_tiles t ON t.tenant = $1 AND t.log = $2::int8 AND t.level = w.level AND t.tile = w.tile";

    TILE_ROOTS = "
        SELECT tile, root FROM np_byok_tiles
        WHERE tenant = $1 AND log = $2::int8 AND level = $3::int8 AND tile >= $4 AND tile < $5 ORDER BY tile";
}

pub(super) fn add_tiles(tenant: TenantUid, log: u32, tiles: &[Tile]) -> PgQuery {
    sqlx::query(ADD_TILES)
        .bind(tenant.0)
        .bind(i64::from(log))
        .bind(tiles.iter().map(|tile| i64::from(tile.id.level)).bind_iter())
        .bind(tiles.iter().map(|tile| signed(tile.id.index)).bind_iter())
        .bind(tiles.iter().map(|tile| tile.root().0).bind_iter())
        .bind(tiles.iter().map(Tile::to_bytes).bind_iter())
}

pub(super) fn open_group(tenant: TenantUid, group: u64) -> PgQuery {
    sqlx::query(OPEN_GROUP).bind(tenant.0).bind(signed(group))
}

pub(super) fn add_filters(
    tenant: TenantUid,
    group: u64,
    erasures: u64,
    level: FilterLevel,
    filters: &[FilterRow],
) -> PgQuery {
    sqlx::query(ADD_FILTERS)
        .bind(tenant.0)
        .bind(signed(group))
        .bind(signed(erasures))
        .bind(level.number())
        .bind(filters.iter().map(|row| signed(row.index)).bind_iter())
        .bind(filters.iter().map(|row| timestamptz(row.earliest)).bind_iter())
        .bind(filters.iter().map(|row| timestamptz(row.latest)).bind_iter())
        .bind(filters.iter().map(|row| row.filter.clone()).bind_iter())
}

#[async_trait]
impl DerivedReads for Postgres {
    async fn underived_logs(&self) -> Result<Vec<UnderivedLog>, ReadError> {
        self.all(sqlx::query(UNDERIVED_LOGS), row::underived_log).await
    }

    async fn entry_values(
        &self,
        tenant: TenantUid,
        places: Range<u64>,
        items: u32,
    ) -> Result<Vec<EntryValues>, ReadError> {
        let query = |bytes| {
            let query = sqlx::query(ENTRY_VALUES).bind(tenant.0).bind(signed(places.start));
            query.bind(signed(places.end)).bind(i64::from(items)).bind(bytes)
        };
        self.within_byte_limit(query, |row| row::entry_values(row, tenant)).await
    }

    async fn erasures(&self, tenant: TenantUid, group: u64) -> Result<Option<u64>, ReadError> {
        let query = sqlx::query(ERASURES).bind(tenant.0).bind(signed(group));
        self.first(query, |row| number(row, 0)).await
    }

    async fn unfilled(
        &self,
        tenant: TenantUid,
        end: u64,
        limit: u64,
    ) -> Result<Vec<(FilterLevel, u64)>, ReadError> {
        let query = sqlx::query(UNFILLED).bind(tenant.0).bind(signed(end)).bind(signed(limit));
        self.all(query, row::filter_id).await
    }

    async fn chunk_filters(
        &self,
        tenant: TenantUid,
        chunks: Range<u64>,
    ) -> Result<Vec<FilterRow>, ReadError> {
        let query = sqlx::query(CHUNK_FILTERS).bind(tenant.0).bind(signed(chunks.start));
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
        let query = sqlx::query(TILES_END).bind(tenant.0).bind(i64::from(log)).bind(i64::from(level));
        Ok(self.first(query.bind(signed(before)), row::end).await?.unwrap_or(0))
    }

    async fn tiles(&self, tenant: TenantUid, log: u32, ids: &[TileId]) -> Result<Vec<Tile>, ReadError> {
        let query = sqlx::query(TILES)
            .bind(tenant.0)
            .bind(i64::from(log))
            .bind(ids.iter().map(|id| i64::from(id.level)).bind_iter())
            .bind(ids.iter().map(|id| signed(id.index)).bind_iter());
        self.all(query, tile).await
    }

    async fn tile_roots(
        &self,
        tenant: TenantUid,
        log: u32,
        level: u32,
        tiles: Range<u64>,
    ) -> Result<Vec<(u64, Hash)>, ReadError> {
        let query = sqlx::query(TILE_ROOTS)
            .bind(tenant.0)
            .bind(i64::from(log))
            .bind(i64::from(level))
            .bind(signed(tiles.start))
            .bind(signed(tiles.end));
        self.all(query, tile_root).await
    }
}
