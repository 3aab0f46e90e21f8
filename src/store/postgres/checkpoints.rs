//! Signed heads.

use std::sync::Arc;

use async_trait::async_trait;

use crate::model::TenantUid;

use super::super::row::{checkpoint, signed};
use super::super::{CheckpointReads, CheckpointRow, ReadError};
use super::commit::PgQuery;
use super::{Postgres, reads, statements};

statements! {
    /// Returns 1 if the checkpoint is stored, now or already; 0 if there is a different one of that
    /// size.
    ADD = "
        WITH added AS (INSERT INTO np_byok_checkpoints (tenant, log, size, note) VALUES ($1, $2::int8, $3, $4)
            ON CONFLICT DO NOTHING RETURNING 1)
        SELECT count(*) FROM (SELECT FROM added UNION ALL
            SELECT FROM np_byok_checkpoints WHERE tenant = $1 AND log = $2 AND size = $3 AND note = $4) AS there";
}

reads! {
    LATEST = "
        SELECT size, note, made_at FROM np_byok_checkpoints WHERE tenant = $1 AND log = $2::int8
        ORDER BY size DESC LIMIT 1";
    FROM = "
        SELECT size, note, made_at FROM np_byok_checkpoints WHERE tenant = $1 AND log = $2::int8 AND size >= $3
        ORDER BY size LIMIT $4";
}

pub(super) fn add(tenant: TenantUid, log: u32, size: u64, note: &Arc<str>) -> PgQuery {
    sqlx::query(ADD).bind(tenant.0).bind(i64::from(log)).bind(signed(size)).bind(note.clone())
}

#[async_trait]
impl CheckpointReads for Postgres {
    async fn latest_checkpoint(
        &self,
        tenant: TenantUid,
        log: u32,
    ) -> Result<Option<CheckpointRow>, ReadError> {
        self.first(sqlx::query(LATEST).bind(tenant.0).bind(i64::from(log)), checkpoint).await
    }

    async fn checkpoints_from(
        &self,
        tenant: TenantUid,
        log: u32,
        size: u64,
        limit: u32,
    ) -> Result<Vec<CheckpointRow>, ReadError> {
        let query = sqlx::query(FROM).bind(tenant.0).bind(i64::from(log)).bind(signed(size));
        self.all(query.bind(i64::from(limit)), checkpoint).await
    }
}
