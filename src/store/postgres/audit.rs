//! Reads of the audit log.

use std::ops::Range;

use async_trait::async_trait;
use sqlx::postgres::PgBindIterExt;

use crate::merkle::Hash;
use crate::model::{TenantUid, Timestamp};

use super::super::candidates::{Chunk, Group, Lookup};
use super::super::row::{bounds, chunk, entry, group, leaf, number, places, search_hit, signed};
use super::super::search::{self, Bounds, SearchHit, SearchReads, Span};
use super::super::{AuditReads, EntryFilter, EntrySearch, Page, PlacedEntry, ReadError};
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

    /// The end of the log, the end of its chunks that have filters, and its first entry. Ignores
    /// filters past the end of the log: a writer of the database can add one at any index.
    BOUNDS = "
        SELECT size,
            (SELECT COALESCE(max(chunk) + 1, 0) FROM np_byok_filters
                WHERE tenant = $1 AND level = 0 AND chunk < h.size / 256),
            (SELECT seq FROM np_byok_audit WHERE tenant = $1 ORDER BY seq LIMIT 1)
        FROM np_byok_heads h WHERE tenant = $1";

    /// Reads of a filter only the rows that $6 names. A filter that no group can have is none.
    GROUPS = "
        SELECT g.chunk, CASE WHEN g.bytes >= 32 AND g.bytes & (g.bytes - 1) = 0 THEN (
            SELECT string_agg(substring(g.filter FROM ((p.place & (g.bytes / 32 - 1)) * 32)::int4 + 1 FOR 32), ''::bytea
                ORDER BY p.nth)
            FROM unnest($6::int8[]) WITH ORDINALITY AS p(place, nth)) END
        FROM (
            SELECT s.chunk, f.filter, octet_length(f.filter)::int8 AS bytes
            FROM generate_series($3::int8 - 1, $2::int8, -1) AS s(chunk)
            LEFT JOIN np_byok_filters f ON f.tenant = $1 AND f.level = 1 AND f.chunk = s.chunk
            WHERE COALESCE(f.latest >= $4::timestamptz, true) AND COALESCE(f.earliest < $5::timestamptz, true)
            ORDER BY s.chunk DESC LIMIT $7) AS g
        ORDER BY g.chunk DESC";

    /// Reads of a filter only the bytes that have the bits, up to the first that is not set. A
    /// filter that no chunk can have says nothing.
    CHUNKS = "
        SELECT c.chunk, f.earliest, f.latest FROM unnest($2::int8[]) AS c(chunk)
        LEFT JOIN np_byok_filters f ON f.tenant = $1 AND f.level = 0 AND f.chunk = c.chunk
        CROSS JOIN LATERAL (SELECT octet_length(f.filter)::int8 AS bytes) AS l
        WHERE COALESCE(f.latest >= $3::timestamptz, true) AND COALESCE(f.earliest < $4::timestamptz, true)
            AND CASE WHEN bytes > 0 AND bytes & (bytes - 1) = 0 THEN
                NOT EXISTS (SELECT FROM unnest($5::int8[]) AS p(place) WHERE get_bit(
                    substring(f.filter FROM ((p.place & (bytes * 8 - 1)) >> 3)::int4 + 1 FOR 1), (p.place & 7)::int4) = 0)
                OR ($6::int8[] IS NOT NULL AND NOT EXISTS (SELECT FROM unnest($6::int8[]) AS p(place) WHERE get_bit(
                    substring(f.filter FROM ((p.place & (bytes * 8 - 1)) >> 3)::int4 + 1 FOR 1), (p.place & 7)::int4) = 0))
                ELSE true END
        ORDER BY c.chunk DESC LIMIT $7";

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
    async fn bounds(&self, tenant: TenantUid) -> Result<Option<Bounds>, ReadError> {
        self.first(sqlx::query(BOUNDS).bind(tenant.0), bounds).await
    }

    async fn groups(
        &self,
        tenant: TenantUid,
        groups: Range<u64>,
        lookup: &Lookup,
        limit: usize,
    ) -> Result<Vec<Group>, ReadError> {
        let query = sqlx::query(GROUPS)
            .bind(tenant.0)
            .bind(signed(groups.start))
            .bind(signed(groups.end))
            .bind(lookup.from.map(timestamptz))
            .bind(lookup.until.map(timestamptz))
            .bind(lookup.group_probes())
            .bind(signed(limit as u64));
        self.all(query, group).await
    }

    async fn chunks(
        &self,
        tenant: TenantUid,
        chunks: &[u64],
        lookup: &Lookup,
        limit: usize,
    ) -> Result<Vec<Chunk>, ReadError> {
        let query = sqlx::query(CHUNKS)
            .bind(tenant.0)
            .bind(chunks.iter().map(|chunk| signed(*chunk)).bind_iter())
            .bind(lookup.from.map(timestamptz))
            .bind(lookup.until.map(timestamptz))
            .bind(lookup.probes.clone())
            .bind(lookup.or_probes.clone())
            .bind(signed(limit as u64));
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
