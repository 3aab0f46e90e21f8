//! Reads of the audit log.

use std::ops::Range;

use async_trait::async_trait;
use serde_json::json;

use crate::merkle::Hash;
use crate::model::{TenantUid, Timestamp};

use super::super::byte_limit::ByteLimit;
use super::super::candidates::{Chunk, Group, Lookup};
use super::super::row::{bounds, chunk, entry, group, leaf, number, places, search_hit, signed};
use super::super::search::{self, Bounds, SearchHit, SearchReads, Span};
use super::super::{AuditReads, EntryFilter, EntrySearch, Page, PlacedEntry, ReadError};
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

    /// The end of the log, the end of its chunks that have filters, and its first entry. Ignores
    /// filters past the end of the log: a writer of the database can add one at any index.
    BOUNDS = "
        SELECT size,
            (SELECT COALESCE(max(chunk) + 1, 0) FROM np_byok_filters
                WHERE tenant = ?1 AND level = 0 AND chunk < h.size / 256),
            (SELECT seq FROM np_byok_audit WHERE tenant = ?1 ORDER BY seq LIMIT 1)
        FROM np_byok_heads h WHERE tenant = ?1";

    /// A filter that no group can have is none.
    GROUPS = "
        SELECT g.chunk, CASE WHEN g.bytes >= 32 AND g.bytes & (g.bytes - 1) = 0 THEN (
            SELECT unhex(group_concat(hex(substr(g.filter, (p.value & (g.bytes / 32 - 1)) * 32 + 1, 32)), '' ORDER BY p.key))
            FROM json_each(?5) AS p) END
        FROM (
            SELECT s.value AS chunk, f.filter, length(f.filter) AS bytes
            FROM json_each(?2) AS s LEFT JOIN np_byok_filters f ON f.tenant = ?1 AND f.level = 1 AND f.chunk = s.value
            WHERE COALESCE(f.latest >= ?3, true) AND COALESCE(f.earliest < ?4, true)
            ORDER BY s.value DESC LIMIT ?6) AS g
        ORDER BY g.chunk DESC";

    /// A bit is read from one of the two hexadecimal digits of its byte. A filter that no chunk can
    /// have says nothing.
    CHUNKS = "
        SELECT c.value, f.earliest, f.latest
        FROM json_each(?2) AS c LEFT JOIN np_byok_filters f ON f.tenant = ?1 AND f.level = 0 AND f.chunk = c.value
        WHERE COALESCE(f.latest >= ?3, true) AND COALESCE(f.earliest < ?4, true)
            AND CASE WHEN length(f.filter) > 0 AND length(f.filter) & (length(f.filter) - 1) = 0 THEN
                NOT EXISTS (SELECT 1 FROM json_each(?5) AS p WHERE
                    (((instr('0123456789ABCDEF', substr(hex(substr(f.filter, ((p.value & (length(f.filter) * 8 - 1)) >> 3) + 1, 1)),
                        2 - ((p.value >> 2) & 1), 1)) - 1) >> (p.value & 3)) & 1) = 0)
                OR (?6 IS NOT NULL AND NOT EXISTS (SELECT 1 FROM json_each(?6) AS p WHERE
                    (((instr('0123456789ABCDEF', substr(hex(substr(f.filter, ((p.value & (length(f.filter) * 8 - 1)) >> 3) + 1, 1)),
                        2 - ((p.value >> 2) & 1), 1)) - 1) >> (p.value & 3)) & 1) = 0))
                ELSE true END
        ORDER BY c.value DESC LIMIT ?7";

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
    async fn bounds(&self, tenant: TenantUid) -> Result<Option<Bounds>, ReadError> {
        self.first(sqlx::query(BOUNDS).bind(tenant.0.as_slice()), bounds).await
    }

    async fn groups(
        &self,
        tenant: TenantUid,
        groups: Range<u64>,
        lookup: &Lookup,
        limit: usize,
    ) -> Result<Vec<Group>, ReadError> {
        let groups: Vec<u64> = groups.collect();
        let query = sqlx::query(GROUPS)
            .bind(tenant.0.as_slice())
            .bind(json!(groups).to_string())
            .bind(lookup.from.map(|from| from.0))
            .bind(lookup.until.map(|until| until.0))
            .bind(json!(lookup.group_probes()).to_string())
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
            .bind(tenant.0.as_slice())
            .bind(json!(chunks).to_string())
            .bind(lookup.from.map(|from| from.0))
            .bind(lookup.until.map(|until| until.0))
            .bind(json!(lookup.probes).to_string())
            .bind(lookup.or_probes.as_ref().map(|probes| json!(probes).to_string()))
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
