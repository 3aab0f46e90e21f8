//! Reads of the audit log.

use std::ops::Range;

use async_trait::async_trait;

use crate::merkle::Hash;
use crate::model::{TenantUid, Timestamp};

use super::super::row::{entry, leaf, places, signed};
use super::super::{AuditReads, EntryFilter, PlacedEntry, ReadError};
use super::{Sqlite, statements};

statements! {
    ENTRIES = "
        SELECT seq, at, id, operation, outcome, means, role, user_id, user_salt, user_hmac, request_id, request_salt,
            request_hmac, item_count, records, items, detail, digest
        FROM np_byok_audit
        WHERE tenant = ?1 AND seq < ?2 AND (?3 IS NULL OR at >= ?3) AND (?4 IS NULL OR at < ?4)
            AND (?5 IS NULL OR operation = ?5) AND (?6 IS NULL OR outcome = ?6) AND (?7 IS NULL OR user_id = ?7)
            AND (?8 IS NULL OR EXISTS (
                SELECT 1 FROM json_each(records) AS r WHERE r.type = 'array' AND r.value ->> '$[0]' = ?8))
        ORDER BY seq DESC LIMIT ?9";

    ENTRIES_FROM = "
        SELECT seq, at, id, operation, outcome, means, role, user_id, user_salt, user_hmac, request_id, request_salt,
            request_hmac, item_count, records, items, detail, digest
        FROM np_byok_audit WHERE tenant = ?1 AND seq >= ?2 ORDER BY seq LIMIT ?3";

    PLACES = "
        SELECT min(seq), max(seq) FROM np_byok_audit WHERE tenant = ?1
            AND at >= COALESCE(?2, -9223372036854775808) AND (?3 IS NULL OR at < ?3)";

    LEAVES = "
        SELECT seq, at, digest FROM np_byok_audit WHERE tenant = ?1 AND seq >= ?2 AND seq < ?3 ORDER BY seq";
}

#[async_trait]
impl AuditReads for Sqlite {
    async fn entries(
        &self,
        tenant: TenantUid,
        filter: &EntryFilter,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<PlacedEntry>, ReadError> {
        let query = sqlx::query(ENTRIES)
            .bind(tenant.0.as_slice())
            .bind(before.map_or(i64::MAX, signed))
            .bind(filter.from.map(|at| at.0))
            .bind(filter.until.map(|at| at.0))
            .bind(filter.operation.map(|operation| operation.as_str()))
            .bind(filter.outcome.map(|outcome| outcome.as_str()))
            .bind(filter.user.as_deref())
            .bind(filter.record_id.as_deref())
            .bind(limit);
        self.all(query, entry).await
    }
    async fn entries_from(
        &self,
        tenant: TenantUid,
        from: u64,
        limit: u32,
    ) -> Result<Vec<PlacedEntry>, ReadError> {
        let query = sqlx::query(ENTRIES_FROM).bind(tenant.0.as_slice()).bind(signed(from)).bind(limit);
        self.all(query, entry).await
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
