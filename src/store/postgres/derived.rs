//! Writes and reads of the data that is derived from entries.

use std::ops::Range;

use async_trait::async_trait;
use sqlx::postgres::PgBindIterExt;

use crate::merkle::Hash;
use crate::model::TenantUid;

use super::super::derived::{Chunk, ChunkValue, DerivedReads, EntryValues, Tile, TileId, UnderivedLog};
use super::super::row::{self, number, signed, tile, tile_root};
use super::super::{ReadError, WIDTH};
use super::commit::PgQuery;
use super::{Postgres, reads, statements, timestamptz};

statements! {
    ADD_TILES = "
        WITH added AS (INSERT INTO np_byok_tiles (tenant, log, level, tile, root, hashes)
            SELECT $1, $2::int8, t.* FROM unnest($3::int8[], $4::int8[], $5::bytea[], $6::bytea[])
                AS t(level, tile, root, hashes)
            ON CONFLICT DO NOTHING RETURNING 1)
        SELECT count(*) FROM added";

    /// Inserts in the given order, so that two writers of the same values cannot deadlock.
    ADD_VALUES = "
        WITH added AS (INSERT INTO np_byok_chunk_values (tenant, value, chunk)
            SELECT $1, v.* FROM unnest($2::int8[], $3::int8[]) AS v(value, chunk)
            ON CONFLICT DO NOTHING RETURNING 1)
        SELECT count(*) FROM added";

    ADD_CHUNKS = "
        WITH added AS (INSERT INTO np_byok_chunks (tenant, level, chunk, earliest, latest)
            SELECT $1, 0, c.* FROM unnest($2::int8[], $3::timestamptz[], $4::timestamptz[])
                AS c(chunk, earliest, latest)
            ON CONFLICT DO NOTHING RETURNING 1)
        SELECT count(*) FROM added";

    /// Adds the chunks of level 1 above the chunks from the second to the third parameter, if all
    /// chunks below them exist.
    ADD_CHUNKS_ABOVE = "
        WITH added AS (INSERT INTO np_byok_chunks (tenant, level, chunk, earliest, latest)
            SELECT tenant, 1, chunk / 256, min(earliest), max(latest) FROM np_byok_chunks
            WHERE tenant = $1 AND level = 0 AND chunk >= $2::int8 / 256 * 256 AND chunk < ($3::int8 / 256 + 1) * 256
            GROUP BY tenant, chunk / 256 HAVING count(*) = 256
            ON CONFLICT DO NOTHING RETURNING 1)
        SELECT count(*) FROM added";
}

reads! {
    /// Ignores chunks and tiles past the end of the log: whoever writes the database can add one at
    /// any index.
    UNDERIVED_LOGS = "
        SELECT h.tenant, h.log::int8, h.first, h.size, c.next, t.next FROM np_byok_heads h
        CROSS JOIN LATERAL (SELECT COALESCE(max(chunk) + 1, 0) AS next
            FROM np_byok_chunks WHERE tenant = h.tenant AND level = 0 AND chunk < h.size / 256) c
        CROSS JOIN LATERAL (SELECT COALESCE(max(tile) + 1, 0) AS next FROM np_byok_tiles
            WHERE tenant = h.tenant AND log = h.log AND level = 0 AND tile < (h.size - h.first) / 256) t
        WHERE c.next < h.size / 256 OR t.next < (h.size - h.first) / 256 ORDER BY random() LIMIT 256";

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
        SELECT COALESCE(max(tile) + 1, 0) FROM np_byok_tiles WHERE tenant = $1 AND log = $2::int8 AND level = $3::int8";

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

pub(super) fn add_values(tenant: TenantUid, values: &[ChunkValue]) -> PgQuery {
    sqlx::query(ADD_VALUES)
        .bind(tenant.0)
        .bind(values.iter().map(|value| value.value).bind_iter())
        .bind(values.iter().map(|value| signed(value.chunk)).bind_iter())
}

pub(super) fn add_chunks(tenant: TenantUid, chunks: &[Chunk]) -> PgQuery {
    sqlx::query(ADD_CHUNKS)
        .bind(tenant.0)
        .bind(chunks.iter().map(|chunk| signed(chunk.index)).bind_iter())
        .bind(chunks.iter().map(|chunk| timestamptz(chunk.earliest)).bind_iter())
        .bind(chunks.iter().map(|chunk| timestamptz(chunk.latest)).bind_iter())
}

/// Returns the statement to run after [`add_chunks`], or `None` if these chunks cannot have
/// completed a chunk of the level above.
pub(super) fn add_chunks_above(tenant: TenantUid, chunks: &[Chunk]) -> Option<PgQuery> {
    let (first, last) = (chunks.first()?.index, chunks.last()?.index);
    let completed = first / WIDTH != last / WIDTH || (last + 1).is_multiple_of(WIDTH);
    completed.then(|| sqlx::query(ADD_CHUNKS_ABOVE).bind(tenant.0).bind(signed(first)).bind(signed(last)))
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

    async fn tiles_end(&self, tenant: TenantUid, log: u32, level: u32) -> Result<u64, ReadError> {
        let query = sqlx::query(TILES_END).bind(tenant.0).bind(i64::from(log)).bind(i64::from(level));
        Ok(self.first(query, |row| number(row, 0)).await?.unwrap_or(0))
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
