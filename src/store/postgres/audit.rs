//! Reads of the audit log.

use std::ops::Range;

use async_trait::async_trait;
use sqlx::postgres::PgBindIterExt;

use crate::merkle::Hash;
use crate::model::{TenantUid, Timestamp};

use super::super::row::{bounds, chunk, entry, leaf, number, places, search_hit, signed};
use super::super::search::{self, Bounds, Lookup, SearchHit, SearchReads, Span};
use super::super::{AuditReads, Chunk, EntryFilter, EntrySearch, Page, PlacedEntry, ReadError};
use super::{Postgres, reads, timestamptz};

reads! {
    /// Each span's times are conditions on `at`, so that partitions outside of them are not read.
    /// In each span, records are searched only as long as the entries before hold fewer bytes than
    /// the span's part of $12. Of later entries, which may match, only the position is returned.
    /// Their sizes are added up without reading what is stored outside of their rows.
    ENTRIES = "
        SELECT e.seq, e.at, e.id, e.operation, e.outcome, e.means, e.role, e.user_id, e.user_salt, e.user_hmac,
            e.request_id, e.request_salt, e.request_hmac, e.item_count::int8, CASE WHEN NOT e.past THEN e.records::text END,
            CASE WHEN NOT e.past THEN e.items END, e.detail, e.digest
        FROM (
            SELECT e.* FROM unnest($2::int8[], $3::int8[], $4::timestamptz[], $5::timestamptz[])
                WITH ORDINALITY AS s(first, past, earliest, latest, nth)
            CROSS JOIN LATERAL (
                SELECT * FROM (
                    SELECT a.*, COALESCE(sum(pg_column_size(a.records) + pg_column_size(a.items)) OVER (
                        ORDER BY a.seq DESC GROUPS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)
                        * cardinality($2::int8[]) + s.nth > $12::int8 AS past
                    FROM (
                        SELECT * FROM np_byok_audit
                        WHERE tenant = $1 AND seq >= s.first AND seq < s.past
                            AND at >= COALESCE(s.earliest, '-infinity') AND at <= COALESCE(s.latest, 'infinity')
                            AND ($6::text IS NULL OR operation = $6) AND ($7::text IS NULL OR outcome = $7)
                            AND ($8::text IS NULL OR user_id = $8)
                        ORDER BY seq DESC LIMIT CASE WHEN $9::text IS NULL THEN $11::int8 END) a) a
                WHERE past OR $9::text IS NULL
                    OR jsonb_path_exists(records, 'strict $[*] ? (@[0] == $record)',
                        jsonb_build_object('record', $9::text))
                    OR ($10::text IS NOT NULL AND jsonb_path_exists(records, 'strict $[*] ? (@[0] == $record)',
                        jsonb_build_object('record', $10::text)))
                ORDER BY seq DESC LIMIT $11) e
            ORDER BY e.seq DESC LIMIT $11) e
        ORDER BY e.seq DESC";

    /// The ends of the log and of its index, and the first and the last chunk of the index that
    /// have entries in that time. These are looked up among chunks of level 1 first. Chunks whose
    /// entries were pruned are skipped.
    BOUNDS = "
        SELECT size,
            (SELECT COALESCE(max(chunk) + 1, 0) FROM np_byok_chunks WHERE tenant = $1 AND level = 0),
            (SELECT GREATEST(chunk, (SELECT seq / 256 FROM np_byok_audit WHERE tenant = $1 ORDER BY seq LIMIT 1))
                FROM np_byok_chunks
                WHERE tenant = $1 AND level = 0 AND latest >= COALESCE($2::timestamptz, '-infinity')
                    AND chunk >= 256 * COALESCE(
                        (SELECT chunk FROM np_byok_chunks WHERE tenant = $1 AND level = 1
                            AND latest >= COALESCE($2::timestamptz, '-infinity') ORDER BY chunk LIMIT 1),
                        (SELECT max(chunk) + 1 FROM np_byok_chunks WHERE tenant = $1 AND level = 1), 0)
                ORDER BY chunk LIMIT 1),
            COALESCE(
                (SELECT chunk FROM np_byok_chunks
                    WHERE tenant = $1 AND level = 0 AND earliest < COALESCE($3::timestamptz, 'infinity')
                        AND chunk >= 256 * COALESCE(
                            (SELECT max(chunk) + 1 FROM np_byok_chunks WHERE tenant = $1 AND level = 1), 0)
                    ORDER BY chunk DESC LIMIT 1),
                (SELECT chunk FROM np_byok_chunks
                    WHERE tenant = $1 AND level = 0 AND earliest < COALESCE($3::timestamptz, 'infinity')
                        AND chunk < 256 * (1 + (SELECT chunk FROM np_byok_chunks WHERE tenant = $1 AND level = 1
                            AND earliest < COALESCE($3::timestamptz, 'infinity') ORDER BY chunk DESC LIMIT 1))
                    ORDER BY chunk DESC LIMIT 1))
        FROM np_byok_heads WHERE tenant = $1";

    CHUNKS = "
        SELECT chunk, earliest, latest FROM np_byok_chunks
        WHERE tenant = $1 AND level = 0 AND chunk >= $2 AND chunk < $3 ORDER BY chunk DESC LIMIT $4";

    CHUNKS_WITH = "
        SELECT chunk FROM np_byok_chunk_values
        WHERE tenant = $1 AND value = $2 AND chunk >= $3 AND chunk < $4 ORDER BY chunk DESC LIMIT $5";

    CHUNKS_WITH_EITHER = "
        SELECT chunk FROM (
            (SELECT chunk FROM np_byok_chunk_values
                WHERE tenant = $1 AND value = $2 AND chunk >= $4 AND chunk < $5 ORDER BY chunk DESC LIMIT $6)
            UNION
            (SELECT chunk FROM np_byok_chunk_values
                WHERE tenant = $1 AND value = $3 AND chunk >= $4 AND chunk < $5 ORDER BY chunk DESC LIMIT $6)) AS c
        ORDER BY chunk DESC LIMIT $6";

    CHUNKS_WITH_ALL = "
        SELECT c.chunk, c.earliest, c.latest FROM np_byok_chunks c
        WHERE c.tenant = $1 AND c.level = 0 AND c.chunk = ANY ($2::int8[]) AND cardinality($3::int8[]) = (
            SELECT count(*) FROM np_byok_chunk_values v
            WHERE v.tenant = $1 AND v.value = ANY ($3::int8[]) AND v.chunk = c.chunk)
        ORDER BY c.chunk DESC";

    /// Ends once the entries at the positions before hold $4 bytes.
    ENTRIES_FROM = "
        SELECT seq, at, id, operation, outcome, means, role, user_id, user_salt, user_hmac, request_id, request_salt,
            request_hmac, item_count::int8, records::text, items, detail, digest
        FROM (
            SELECT e.*, COALESCE(sum(pg_column_size(e.records) + pg_column_size(e.items)) OVER (
                ORDER BY e.seq GROUPS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before
            FROM (SELECT * FROM np_byok_audit WHERE tenant = $1 AND seq >= $2 ORDER BY seq LIMIT $3) AS e) AS e
        WHERE before < $4::int8 ORDER BY seq";

    SIZES = "
        SELECT seq, (pg_column_size(records) + pg_column_size(items))::int8
        FROM np_byok_audit WHERE tenant = $1 AND seq >= $2 AND seq < $3 ORDER BY seq";

    PLACES = "
        SELECT min(seq), max(seq) FROM np_byok_audit WHERE tenant = $1
            AND at >= COALESCE($2, '-infinity'::timestamptz) AND at < COALESCE($3, 'infinity'::timestamptz)";

    LEAVES = "
        SELECT seq, at, digest FROM np_byok_audit WHERE tenant = $1 AND seq >= $2 AND seq < $3 ORDER BY seq";
}

#[async_trait]
impl EntrySearch for Postgres {
    async fn entries(
        &self,
        tenant: TenantUid,
        filter: &EntryFilter,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Page, ReadError> {
        // No text in PostgreSQL contains a NUL.
        if [&filter.user, &filter.record_id, &filter.record_hash]
            .into_iter()
            .flatten()
            .any(|text| text.contains('\0'))
        {
            return Ok(Page::default());
        }
        search::page(self, tenant, filter, before, limit).await
    }
}

#[async_trait]
impl AuditReads for Postgres {
    async fn entries_from(
        &self,
        tenant: TenantUid,
        from: u64,
        limit: u32,
    ) -> Result<Vec<PlacedEntry>, ReadError> {
        let query = |bytes| {
            let query = sqlx::query(ENTRIES_FROM).bind(tenant.0).bind(signed(from));
            query.bind(i64::from(limit)).bind(bytes)
        };
        self.within_byte_limit(query, entry).await
    }

    async fn sizes(&self, tenant: TenantUid, places: Range<u64>) -> Result<Vec<(u64, u64)>, ReadError> {
        let query = sqlx::query(SIZES).bind(tenant.0).bind(signed(places.start)).bind(signed(places.end));
        self.all(query, |row| Ok((number(row, 0)?, number(row, 1)?))).await
    }

    async fn places(
        &self,
        tenant: TenantUid,
        from: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> Result<Option<Range<u64>>, ReadError> {
        let query =
            sqlx::query(PLACES).bind(tenant.0).bind(from.map(timestamptz)).bind(until.map(timestamptz));
        Ok(self.first(query, places).await?.flatten())
    }

    async fn leaves(&self, tenant: TenantUid, places: Range<u64>) -> Result<Vec<(u64, Hash)>, ReadError> {
        let query = sqlx::query(LEAVES).bind(tenant.0).bind(signed(places.start)).bind(signed(places.end));
        self.all(query, leaf).await
    }
}

#[async_trait]
impl SearchReads for Postgres {
    async fn bounds(&self, tenant: TenantUid, filter: &EntryFilter) -> Result<Option<Bounds>, ReadError> {
        let query = sqlx::query(BOUNDS).bind(tenant.0);
        self.first(query.bind(filter.from.map(timestamptz)).bind(filter.until.map(timestamptz)), bounds).await
    }

    async fn chunks(
        &self,
        tenant: TenantUid,
        within: Range<u64>,
        limit: usize,
    ) -> Result<Vec<Chunk>, ReadError> {
        let query = sqlx::query(CHUNKS).bind(tenant.0).bind(signed(within.start)).bind(signed(within.end));
        self.all(query.bind(signed(limit as u64)), chunk).await
    }

    async fn chunks_with(
        &self,
        tenant: TenantUid,
        value: Lookup,
        within: Range<u64>,
        limit: usize,
    ) -> Result<Vec<u64>, ReadError> {
        let query = match value {
            Lookup::One(value) => sqlx::query(CHUNKS_WITH).bind(tenant.0).bind(value),
            Lookup::Either(one, other) => {
                sqlx::query(CHUNKS_WITH_EITHER).bind(tenant.0).bind(one).bind(other)
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
        let query = sqlx::query(CHUNKS_WITH_ALL)
            .bind(tenant.0)
            .bind(chunks.iter().map(|chunk| signed(*chunk)).bind_iter())
            .bind(values.to_vec());
        self.all(query, chunk).await
    }

    async fn entries_of(
        &self,
        tenant: TenantUid,
        filter: &EntryFilter,
        spans: &[Span],
        limit: usize,
    ) -> Result<Vec<SearchHit>, ReadError> {
        let query = |bytes| {
            sqlx::query(ENTRIES)
                .bind(tenant.0)
                .bind(spans.iter().map(|span| signed(span.places.start)).bind_iter())
                .bind(spans.iter().map(|span| signed(span.places.end)).bind_iter())
                .bind(spans.iter().map(|span| span.earliest.map(timestamptz)).bind_iter())
                .bind(spans.iter().map(|span| span.latest.map(timestamptz)).bind_iter())
                .bind(filter.operation.map(|operation| operation.as_str()))
                .bind(filter.outcome.map(|outcome| outcome.as_str()))
                .bind(filter.user.as_deref())
                .bind(filter.record_id.as_deref())
                .bind(filter.record_hash.as_deref())
                .bind(signed(limit as u64))
                .bind(bytes)
        };
        self.within_byte_limit(query, search_hit).await
    }
}
