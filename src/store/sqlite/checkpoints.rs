//! Signed heads.

use async_trait::async_trait;

use crate::model::TenantUid;

use super::super::row::{checkpoint, signed};
use super::super::{CheckpointReads, CheckpointRow, ReadError};
use super::{Sqlite, SqliteQuery, statements};

statements! {
    /// Touches one row if the checkpoint is stored, now or already; none if there is a different
    /// one of that size.
    ADD = "
        INSERT INTO np_byok_checkpoints (tenant, log, size, note, made_at)
        VALUES (?1, ?2, ?3, ?4, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000)
        ON CONFLICT (tenant, log, size) DO UPDATE SET note = note WHERE note = excluded.note";
    LATEST = "
        SELECT size, note, made_at FROM np_byok_checkpoints WHERE tenant = ?1 AND log = ?2 ORDER BY size DESC LIMIT 1";
    FROM = "
        SELECT size, note, made_at FROM np_byok_checkpoints WHERE tenant = ?1 AND log = ?2 AND size >= ?3
        ORDER BY size LIMIT ?4";
}

pub(super) fn add<'q>(tenant: &'q TenantUid, log: u32, size: u64, note: &'q str) -> SqliteQuery<'q> {
    sqlx::query(ADD).bind(tenant.0.as_slice()).bind(log).bind(signed(size)).bind(note)
}

#[async_trait]
impl CheckpointReads for Sqlite {
    async fn latest_checkpoint(
        &self,
        tenant: TenantUid,
        log: u32,
    ) -> Result<Option<CheckpointRow>, ReadError> {
        self.first(sqlx::query(LATEST).bind(tenant.0.as_slice()).bind(log), checkpoint).await
    }

    async fn checkpoints_from(
        &self,
        tenant: TenantUid,
        log: u32,
        size: u64,
        limit: u32,
    ) -> Result<Vec<CheckpointRow>, ReadError> {
        let query = sqlx::query(FROM).bind(tenant.0.as_slice()).bind(log).bind(signed(size)).bind(limit);
        self.all(query, checkpoint).await
    }
}
