//! Reads of wrapped DEKs.

use std::sync::Arc;

use async_trait::async_trait;

use crate::model::{DekId, TenantUid};

use super::super::row::dek;
use super::super::{DekReads, DekRow, ReadError};
use super::{Sqlite, statements};

statements! {
    /// `?2` is a JSON array of ids in hexadecimal.
    BY_ID = "
        SELECT id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme, created_at, mac, record_mac
        FROM np_byok_wrapped_deks WHERE tenant = ?1 AND id IN (SELECT unhex(value) FROM json_each(?2))";

    /// `?2` is a JSON array of record ids.
    BY_RECORD = "
        SELECT d.id, d.record_id, d.wrapped, d.key_id, d.key_name, d.key_version, d.wrap_scheme, d.created_at,
            d.mac, d.record_mac
        FROM (SELECT DISTINCT value AS record_id FROM json_each(?2)) AS wanted
        JOIN np_byok_wrapped_deks AS d ON d.tenant = ?1 AND d.id = (
            SELECT id FROM np_byok_wrapped_deks
            WHERE tenant = ?1 AND record_id = wanted.record_id ORDER BY id DESC LIMIT 1)";

    PAGE = "
        SELECT id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme, created_at, mac, record_mac
        FROM np_byok_wrapped_deks WHERE tenant = ?1 AND id > ?2 ORDER BY id LIMIT ?3";

    UNSEALED = "
        SELECT id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme, created_at, mac, record_mac
        FROM np_byok_wrapped_deks
        WHERE tenant = ?1 AND id > ?2 AND mac IS NULL AND length(wrapped) <= 65536 ORDER BY id LIMIT ?3";
}

#[async_trait]
impl DekReads for Sqlite {
    async fn deks(&self, tenant: TenantUid, ids: &[DekId]) -> Result<Vec<DekRow>, ReadError> {
        let ids: Vec<String> = ids.iter().map(|id| id.0.simple().to_string()).collect();
        let query = sqlx::query(BY_ID).bind(tenant.0.as_slice()).bind(serde_json::json!(ids).to_string());
        self.all(query, dek).await
    }

    async fn deks_of_records(
        &self,
        tenant: TenantUid,
        records: &[Arc<str>],
    ) -> Result<Vec<DekRow>, ReadError> {
        // SQLite's JSON functions stop at a NUL. No stored record id has one.
        let records: Vec<&str> =
            records.iter().map(|record| &**record).filter(|record| !record.contains('\0')).collect();
        let query =
            sqlx::query(BY_RECORD).bind(tenant.0.as_slice()).bind(serde_json::json!(records).to_string());
        self.all(query, dek).await
    }

    async fn deks_after(
        &self,
        tenant: TenantUid,
        after: Option<DekId>,
        limit: u32,
    ) -> Result<Vec<DekRow>, ReadError> {
        // The empty BLOB sorts before every id.
        let after = after.map_or_else(Vec::new, |after| after.as_bytes().to_vec());
        let query = sqlx::query(PAGE).bind(tenant.0.as_slice()).bind(after).bind(limit);
        self.all(query, dek).await
    }

    async fn unsealed_deks(
        &self,
        tenant: TenantUid,
        after: Option<DekId>,
        limit: u32,
    ) -> Result<Vec<DekRow>, ReadError> {
        let after = after.map_or_else(Vec::new, |after| after.as_bytes().to_vec());
        let query = sqlx::query(UNSEALED).bind(tenant.0.as_slice()).bind(after).bind(limit);
        self.all(query, dek).await
    }
}
