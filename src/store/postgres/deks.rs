//! Reads of wrapped DEKs.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::postgres::PgBindIterExt;
use uuid::Uuid;

use crate::model::{DekId, TenantUid};

use super::super::row::dek;
use super::super::{DekReads, DekRow, ReadError};
use super::{Postgres, reads};

reads! {
    BY_ID = "
        SELECT id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme::int8, created_at, mac, record_mac
        FROM np_byok_wrapped_deks WHERE tenant = $1 AND id = ANY($2)";

    /// Uses the index on the hash. The id itself is compared too, because two ids may have the same
    /// hash.
    BY_RECORD = "
        SELECT d.id, d.record_id, d.wrapped, d.key_id, d.key_name, d.key_version, d.wrap_scheme::int8, d.created_at,
            d.mac, d.record_mac
        FROM (SELECT DISTINCT record_id FROM unnest($2::text[]) AS w(record_id)) AS wanted
        CROSS JOIN LATERAL (
            SELECT * FROM np_byok_wrapped_deks
            WHERE tenant = $1 AND hashtextextended(record_id, 0::int8) = hashtextextended(wanted.record_id, 0::int8)
                AND record_id = wanted.record_id
            ORDER BY id DESC LIMIT 1) AS d";

    PAGE = "
        SELECT id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme::int8, created_at, mac, record_mac
        FROM np_byok_wrapped_deks WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3";

    FIRST_PAGE = "
        SELECT id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme::int8, created_at, mac, record_mac
        FROM np_byok_wrapped_deks WHERE tenant = $1 ORDER BY id LIMIT $2";

    UNSEALED = "
        SELECT id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme::int8, created_at, mac, record_mac
        FROM np_byok_wrapped_deks
        WHERE tenant = $1 AND id > $2 AND mac IS NULL AND octet_length(wrapped) <= 65536 ORDER BY id LIMIT $3";
}

#[async_trait]
impl DekReads for Postgres {
    async fn deks(&self, tenant: TenantUid, ids: &[DekId]) -> Result<Vec<DekRow>, ReadError> {
        let query = sqlx::query(BY_ID).bind(tenant.0).bind(ids.iter().map(|id| id.0).bind_iter());
        self.all(query, dek).await
    }

    async fn deks_of_records(
        &self,
        tenant: TenantUid,
        records: &[Arc<str>],
    ) -> Result<Vec<DekRow>, ReadError> {
        // No text in PostgreSQL contains a NUL.
        let records = records.iter().map(|record| &**record).filter(|record| !record.contains('\0'));
        let query = sqlx::query(BY_RECORD).bind(tenant.0).bind(records.bind_iter());
        self.all(query, dek).await
    }

    async fn deks_after(
        &self,
        tenant: TenantUid,
        after: Option<DekId>,
        limit: u32,
    ) -> Result<Vec<DekRow>, ReadError> {
        let query = match after {
            Some(after) => sqlx::query(PAGE).bind(tenant.0).bind(after.0),
            None => sqlx::query(FIRST_PAGE).bind(tenant.0),
        };
        self.all(query.bind(i64::from(limit)), dek).await
    }

    async fn unsealed_deks(
        &self,
        tenant: TenantUid,
        after: Option<DekId>,
        limit: u32,
    ) -> Result<Vec<DekRow>, ReadError> {
        let after = after.map_or(Uuid::nil(), |after| after.0);
        let query = sqlx::query(UNSEALED).bind(tenant.0).bind(after).bind(i64::from(limit));
        self.all(query, dek).await
    }
}
