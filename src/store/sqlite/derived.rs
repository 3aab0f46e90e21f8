//! Writes and reads of the data that is derived from entries.

use std::ops::Range;

use async_trait::async_trait;
use serde_json::json;
use sqlx::{Error, SqliteConnection};

use crate::merkle::Hash;
use crate::model::TenantUid;

use super::super::ReadError;
use super::super::byte_limit::ByteLimit;
use super::super::derived::{Chunk, ChunkValue, DerivedReads, EntryValues, Tile, TileId, UnderivedLog};
use super::super::row::{self, number, signed, tile, tile_root};
use super::{Sqlite, statements};

statements! {
    /// Does not try to insert an existing tile: a trigger would take that for a replacement.
    ADD_TILE = "
        INSERT INTO np_byok_tiles (tenant, log, level, tile, root, hashes) SELECT ?1, ?2, ?3, ?4, ?5, ?6
        WHERE NOT EXISTS (SELECT 1 FROM np_byok_tiles WHERE tenant = ?1 AND log = ?2 AND level = ?3 AND tile = ?4)";
    ADD_VALUES = "
        INSERT INTO np_byok_chunk_values (tenant, value, chunk)
        SELECT ?1, value ->> 0, value ->> 1 FROM json_each(?2) WHERE true ON CONFLICT DO NOTHING";
    ADD_CHUNKS = "
        INSERT INTO np_byok_chunks (tenant, level, chunk, earliest, latest)
        SELECT ?1, 0, value ->> 0, value ->> 1, value ->> 2 FROM json_each(?2) WHERE true ON CONFLICT DO NOTHING";

    /// Adds the chunks of level 1 above the chunks from the second to the third parameter, if all
    /// chunks below them exist.
    ADD_CHUNKS_ABOVE = "
        INSERT INTO np_byok_chunks (tenant, level, chunk, earliest, latest)
        SELECT tenant, 1, chunk / 256, min(earliest), max(latest) FROM np_byok_chunks
        WHERE tenant = ?1 AND level = 0 AND chunk >= ?2 / 256 * 256 AND chunk < (?3 / 256 + 1) * 256
        GROUP BY tenant, chunk / 256 HAVING count(*) = 256
        ON CONFLICT DO NOTHING";

    /// Ignores chunks and tiles past the end of the log: whoever writes the database can add one at
    /// any index.
    UNDERIVED_LOGS = "
        SELECT tenant, log, first, size, chunk, tile FROM (
            SELECT h.tenant, h.log, h.first, h.size,
                COALESCE((SELECT max(chunk) + 1 FROM np_byok_chunks
                    WHERE tenant = h.tenant AND level = 0 AND chunk < h.size / 256), 0) AS chunk,
                COALESCE((SELECT max(tile) + 1 FROM np_byok_tiles
                    WHERE tenant = h.tenant AND log = h.log AND level = 0 AND tile < (h.size - h.first) / 256),
                    0) AS tile
            FROM np_byok_heads h)
        WHERE chunk < size / 256 OR tile < (size - first) / 256 ORDER BY random() LIMIT 256";

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

    TILES_END = "SELECT COALESCE(max(tile) + 1, 0) FROM np_byok_tiles WHERE tenant = ?1 AND log = ?2 AND level = ?3";

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

pub(super) async fn add_values(
    connection: &mut SqliteConnection,
    tenant: TenantUid,
    values: &[ChunkValue],
) -> Result<u64, Error> {
    let values: Vec<_> = values.iter().map(|value| json!([value.value, value.chunk])).collect();
    let query = sqlx::query(ADD_VALUES).bind(tenant.0.as_slice()).bind(json!(values).to_string());
    Ok(query.execute(connection).await?.rows_affected())
}

pub(super) async fn add_chunks(
    connection: &mut SqliteConnection,
    tenant: TenantUid,
    chunks: &[Chunk],
) -> Result<u64, Error> {
    let [first, ..] = chunks else { return Ok(0) };
    let last = chunks.last().unwrap_or(first);
    let rows: Vec<_> =
        chunks.iter().map(|chunk| json!([chunk.index, chunk.earliest.0, chunk.latest.0])).collect();
    let query = sqlx::query(ADD_CHUNKS).bind(tenant.0.as_slice()).bind(json!(rows).to_string());
    let added = query.execute(&mut *connection).await?.rows_affected();
    let above = sqlx::query(ADD_CHUNKS_ABOVE).bind(tenant.0.as_slice());
    above.bind(signed(first.index)).bind(signed(last.index)).execute(connection).await?;
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

    async fn tiles_end(&self, tenant: TenantUid, log: u32, level: u32) -> Result<u64, ReadError> {
        let query = sqlx::query(TILES_END).bind(tenant.0.as_slice()).bind(log).bind(level);
        Ok(self.first(query, |row| number(row, 0)).await?.unwrap_or(0))
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
