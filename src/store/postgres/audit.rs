//! Reads of the audit log.

use std::ops::Range;

use async_trait::async_trait;

use crate::merkle::Hash;
use crate::model::{TenantUid, Timestamp};

use super::super::row::{entry, leaf, places, signed};
use super::super::{AuditReads, EntryFilter, PlacedEntry, ReadError};
use super::{Postgres, moment, statements};

statements! {
    /// The bounds in time are written so that partitions outside are not even looked at.
    ENTRIES = "
        SELECT seq, at, id, operation, outcome, means, role, user_id, user_salt, user_hmac, request_id, request_salt,
            request_hmac, item_count::int8, records::text, items, detail, digest
        FROM np_byok_audit
        WHERE tenant = $1 AND seq < $2 AND at >= COALESCE($3::timestamptz, '-infinity')
            AND at < COALESCE($4::timestamptz, 'infinity')
            AND ($5::text IS NULL OR operation = $5) AND ($6::text IS NULL OR outcome = $6)
            AND ($7::text IS NULL OR user_id = $7)
            AND ($8::text IS NULL
                OR jsonb_path_exists(records, 'strict $[*] ? (@[0] == $record)', jsonb_build_object('record', $8::text)))
        ORDER BY seq DESC LIMIT $9";

    ENTRIES_FROM = "
        SELECT seq, at, id, operation, outcome, means, role, user_id, user_salt, user_hmac, request_id, request_salt,
            request_hmac, item_count::int8, records::text, items, detail, digest
        FROM np_byok_audit WHERE tenant = $1 AND seq >= $2 ORDER BY seq LIMIT $3";

    PLACES = "
        SELECT min(seq), max(seq) FROM np_byok_audit WHERE tenant = $1
            AND at >= COALESCE($2, '-infinity'::timestamptz) AND at < COALESCE($3, 'infinity'::timestamptz)";

    LEAVES = "
        SELECT seq, at, digest FROM np_byok_audit WHERE tenant = $1 AND seq >= $2 AND seq < $3 ORDER BY seq";
}

#[async_trait]
impl AuditReads for Postgres {
    async fn entries(
        &self,
        tenant: TenantUid,
        filter: &EntryFilter,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<PlacedEntry>, ReadError> {
        // A NUL is in no text of PostgreSQL's.
        if [&filter.user, &filter.record_id].into_iter().flatten().any(|text| text.contains('\0')) {
            return Ok(Vec::new());
        }
        let query = sqlx::query(ENTRIES)
            .bind(tenant.0)
            .bind(before.map_or(i64::MAX, signed))
            .bind(filter.from.map(moment))
            .bind(filter.until.map(moment))
            .bind(filter.operation.map(|operation| operation.as_str()))
            .bind(filter.outcome.map(|outcome| outcome.as_str()))
            .bind(filter.user.as_deref())
            .bind(filter.record_id.as_deref())
            .bind(i64::from(limit));
        self.all(query, entry).await
    }
    async fn entries_from(
        &self,
        tenant: TenantUid,
        from: u64,
        limit: u32,
    ) -> Result<Vec<PlacedEntry>, ReadError> {
        let query = sqlx::query(ENTRIES_FROM).bind(tenant.0).bind(signed(from)).bind(i64::from(limit));
        self.all(query, entry).await
    }

    async fn places(
        &self,
        tenant: TenantUid,
        from: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> Result<Option<Range<u64>>, ReadError> {
        let query = sqlx::query(PLACES).bind(tenant.0).bind(from.map(moment)).bind(until.map(moment));
        Ok(self.first(query, places).await?.flatten())
    }

    async fn leaves(&self, tenant: TenantUid, places: Range<u64>) -> Result<Vec<(u64, Hash)>, ReadError> {
        let query = sqlx::query(LEAVES).bind(tenant.0).bind(signed(places.start)).bind(signed(places.end));
        self.all(query, leaf).await
    }
}
