//! Reads of the audit log.

use std::ops::Range;

use async_trait::async_trait;
use serde_json::json;

use crate::merkle::Hash;
use crate::model::{TenantUid, Timestamp};

use super::super::byte_limit::ByteLimit;
use super::super::row::{bounds, chunk, entry, leaf, number, places, search_hit, signed};
use super::super::search::{self, Bounds, Lookup, SearchHit, SearchReads, Span};
use super::super::{AuditReads, Chunk, EntryFilter, EntrySearch, Page, PlacedEntry, ReadError};
use super::{Sqlite, statements};

statements! {
    /// Records are searched only as long as the entries before hold fewer bytes than ?9. Of later
    /// entries, which may match, only the position is returned. Their sizes are added up without
    /// reading them.
    ENTRIES = "
        WITH sized AS (
            SELECT a.seq, octet_length(a.records) + octet_length(a.items) AS size
            FROM json_each(?2) AS s CROSS JOIN np_byok_audit a
            WHERE a.tenant = ?1 AND a.seq >= s.value ->> 0 AND a.seq < s.value ->> 1
                AND a.at >= COALESCE(s.value ->> 2, a.at) AND a.at <= COALESCE(s.value ->> 3, a.at)
                AND (?3 IS NULL OR operation = ?3) AND (?4 IS NULL OR outcome = ?4) AND (?5 IS NULL OR user_id = ?5)
            ORDER BY a.seq DESC LIMIT CASE WHEN ?6 IS NULL THEN ?8 ELSE -1 END),
        bounded AS (
            SELECT seq, COALESCE(sum(size) OVER (ORDER BY seq DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)
                >= ?9 AS past
            FROM sized)
        SELECT a.seq, a.at, a.id, a.operation, a.outcome, a.means, a.role, a.user_id, a.user_salt, a.user_hmac,
            a.request_id, a.request_salt, a.request_hmac, a.item_count, CASE WHEN NOT b.past THEN a.records END,
            CASE WHEN NOT b.past THEN a.items END, a.detail, a.digest
        FROM bounded b CROSS JOIN np_byok_audit a ON a.tenant = ?1 AND a.seq = b.seq
        WHERE b.past OR ?6 IS NULL OR EXISTS (
            SELECT 1 FROM json_each(a.records) AS r WHERE r.type = 'array' AND r.value ->> '$[0]' IN (?6, ?7))
        ORDER BY b.seq DESC LIMIT ?8";

    /// The ends of the log and of its index, and the first and the last chunk of the index that
    /// have entries in that time. These are looked up among chunks of level 1 first. Chunks whose
    /// entries were pruned are skipped.
    BOUNDS = "
        SELECT size,
            (SELECT COALESCE(max(chunk) + 1, 0) FROM np_byok_chunks WHERE tenant = ?1 AND level = 0),
            (SELECT max(chunk, (SELECT seq / 256 FROM np_byok_audit WHERE tenant = ?1 ORDER BY seq LIMIT 1))
                FROM np_byok_chunks
                WHERE tenant = ?1 AND level = 0 AND latest >= COALESCE(?2, latest)
                    AND chunk >= 256 * COALESCE(
                        (SELECT chunk FROM np_byok_chunks WHERE tenant = ?1 AND level = 1
                            AND latest >= COALESCE(?2, latest) ORDER BY chunk LIMIT 1),
                        (SELECT max(chunk) + 1 FROM np_byok_chunks WHERE tenant = ?1 AND level = 1), 0)
                ORDER BY chunk LIMIT 1),
            COALESCE(
                (SELECT chunk FROM np_byok_chunks
                    WHERE tenant = ?1 AND level = 0 AND (?3 IS NULL OR earliest < ?3)
                        AND chunk >= 256 * COALESCE(
                            (SELECT max(chunk) + 1 FROM np_byok_chunks WHERE tenant = ?1 AND level = 1), 0)
                    ORDER BY chunk DESC LIMIT 1),
                (SELECT chunk FROM np_byok_chunks
                    WHERE tenant = ?1 AND level = 0 AND (?3 IS NULL OR earliest < ?3)
                        AND chunk < 256 * (1 + (SELECT chunk FROM np_byok_chunks WHERE tenant = ?1 AND level = 1
                            AND (?3 IS NULL OR earliest < ?3) ORDER BY chunk DESC LIMIT 1))
                    ORDER BY chunk DESC LIMIT 1))
        FROM np_byok_heads WHERE tenant = ?1";

    CHUNKS = "
        SELECT chunk, earliest, latest FROM np_byok_chunks
        WHERE tenant = ?1 AND level = 0 AND chunk >= ?2 AND chunk < ?3 ORDER BY chunk DESC LIMIT ?4";

    CHUNKS_WITH = "
        SELECT chunk FROM np_byok_chunk_values
        WHERE tenant = ?1 AND value = ?2 AND chunk >= ?3 AND chunk < ?4 ORDER BY chunk DESC LIMIT ?5";

    CHUNKS_WITH_EITHER = "
        SELECT DISTINCT chunk FROM np_byok_chunk_values
        WHERE tenant = ?1 AND value IN (?2, ?3) AND chunk >= ?4 AND chunk < ?5 ORDER BY chunk DESC LIMIT ?6";

    CHUNKS_WITH_ALL = "
        SELECT c.chunk, c.earliest, c.latest FROM json_each(?2) AS w
        CROSS JOIN np_byok_chunks c ON c.tenant = ?1 AND c.level = 0 AND c.chunk = w.value
        WHERE json_array_length(?3) = (
            SELECT count(*) FROM json_each(?3) AS o
            CROSS JOIN np_byok_chunk_values v ON v.tenant = ?1 AND v.value = o.value AND v.chunk = c.chunk)
        ORDER BY c.chunk DESC";

    /// Ends once the entries before hold ?4 bytes.
    ENTRIES_FROM = "
        WITH sized AS (
            SELECT seq, octet_length(records) + octet_length(items) AS size
            FROM np_byok_audit WHERE tenant = ?1 AND seq >= ?2 ORDER BY seq LIMIT ?3),
        bounded AS (
            SELECT seq, COALESCE(sum(size) OVER (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before
            FROM sized)
        SELECT a.seq, a.at, a.id, a.operation, a.outcome, a.means, a.role, a.user_id, a.user_salt, a.user_hmac,
            a.request_id, a.request_salt, a.request_hmac, a.item_count, a.records, a.items, a.detail, a.digest
        FROM bounded b CROSS JOIN np_byok_audit a ON a.tenant = ?1 AND a.seq = b.seq
        WHERE b.before < ?4 ORDER BY b.seq";

    SIZES = "
        SELECT seq, octet_length(records) + octet_length(items)
        FROM np_byok_audit WHERE tenant = ?1 AND seq >= ?2 AND seq < ?3 ORDER BY seq";

    PLACES = "
        SELECT min(seq), max(seq) FROM np_byok_audit WHERE tenant = ?1
            AND at >= COALESCE(?2, -9223372036854775808) AND (?3 IS NULL OR at < ?3)";

    LEAVES = "
        SELECT seq, at, digest FROM np_byok_audit WHERE tenant = ?1 AND seq >= ?2 AND seq < ?3 ORDER BY seq";
}

#[async_trait]
impl EntrySearch for Sqlite {
    async fn entries(
        &self,
        tenant: TenantUid,
        filter: &EntryFilter,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Page, ReadError> {
        search::page(self, tenant, filter, before, limit).await
    }
}

#[async_trait]
impl AuditReads for Sqlite {
    async fn entries_from(
        &self,
        tenant: TenantUid,
        from: u64,
        limit: u32,
    ) -> Result<Vec<PlacedEntry>, ReadError> {
        let query = sqlx::query(ENTRIES_FROM).bind(tenant.0.as_slice()).bind(signed(from)).bind(limit);
        self.all(query.bind(ByteLimit::LARGEST.bytes()), entry).await
    }

    async fn sizes(&self, tenant: TenantUid, places: Range<u64>) -> Result<Vec<(u64, u64)>, ReadError> {
        let query =
            sqlx::query(SIZES).bind(tenant.0.as_slice()).bind(signed(places.start)).bind(signed(places.end));
        self.all(query, |row| Ok((number(row, 0)?, number(row, 1)?))).await
    }

    async fn places(
        &self,
        tenant: TenantUid,
        from: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> Result<Option<Range<u64>>, ReadError> {
        let query = sqlx::query(PLACES)
            .bind(tenant.0.as_slice())
            .bind(from.map(|from| from.0))
            .bind(until.map(|until| until.0));
        Ok(self.first(query, places).await?.flatten())
    }

    async fn leaves(&self, tenant: TenantUid, places: Range<u64>) -> Result<Vec<(u64, Hash)>, ReadError> {
        let query =
            sqlx::query(LEAVES).bind(tenant.0.as_slice()).bind(signed(places.start)).bind(signed(places.end));
        self.all(query, leaf).await
    }
}

#[async_trait]
impl SearchReads for Sqlite {
    async fn bounds(&self, tenant: TenantUid, filter: &EntryFilter) -> Result<Option<Bounds>, ReadError> {
        let query = sqlx::query(BOUNDS).bind(tenant.0.as_slice());
        self.first(query.bind(filter.from.map(|at| at.0)).bind(filter.until.map(|at| at.0)), bounds).await
    }

    async fn chunks(
        &self,
        tenant: TenantUid,
        within: Range<u64>,
        limit: usize,
    ) -> Result<Vec<Chunk>, ReadError> {
        let query = sqlx::query(CHUNKS).bind(tenant.0.as_slice());
        let query = query.bind(signed(within.start)).bind(signed(within.end)).bind(signed(limit as u64));
        self.all(query, chunk).await
    }

    async fn chunks_with(
        &self,
        tenant: TenantUid,
        value: Lookup,
        within: Range<u64>,
        limit: usize,
    ) -> Result<Vec<u64>, ReadError> {
        let query = match value {
            Lookup::One(value) => sqlx::query(CHUNKS_WITH).bind(tenant.0.as_slice()).bind(value),
            Lookup::Either(one, other) => {
                sqlx::query(CHUNKS_WITH_EITHER).bind(tenant.0.as_slice()).bind(one).bind(other)
            }
        };
        let query = query.bind(signed(within.start)).bind(signed(within.end)).bind(signed(limit as u64));
        self.all(query, |row| number(row, 0)).await
    }

    async fn chunks_with_all(
        &self,
        tenant: TenantUid,
        values: &[i64],
        chunks: &[u64],
    ) -> Result<Vec<Chunk>, ReadError> {
        let query = sqlx::query(CHUNKS_WITH_ALL).bind(tenant.0.as_slice());
        let query = query.bind(json!(chunks).to_string()).bind(json!(values).to_string());
        self.all(query, chunk).await
    }

    async fn entries_of(
        &self,
        tenant: TenantUid,
        filter: &EntryFilter,
        spans: &[Span],
        limit: usize,
    ) -> Result<Vec<SearchHit>, ReadError> {
        let at = |at: Option<Timestamp>| at.map(|at| at.0);
        let spans: Vec<_> = spans
            .iter()
            .map(|span| json!([span.places.start, span.places.end, at(span.earliest), at(span.latest)]))
            .collect();
        let query = sqlx::query(ENTRIES)
            .bind(tenant.0.as_slice())
            .bind(json!(spans).to_string())
            .bind(filter.operation.map(|operation| operation.as_str()))
            .bind(filter.outcome.map(|outcome| outcome.as_str()))
            .bind(filter.user.as_deref())
            .bind(filter.record_id.as_deref())
            .bind(filter.record_hash.as_deref())
            .bind(signed(limit as u64))
            .bind(ByteLimit::LARGEST.bytes());
        self.all(query, search_hit).await
    }
}
