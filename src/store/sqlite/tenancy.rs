//! What tenants are served with.

use async_trait::async_trait;
use sqlx::{Error, SqliteConnection};

use crate::model::TenantUid;

use super::super::ReadError;
use super::super::tenancy::{KeyRow, TenancyReads, TenantRow, key_row, tenant_row};
use super::{Sqlite, statements};

statements! {
    NAMED = "SELECT uid, name, stage, revision, locked FROM np_byok_tenants WHERE name = ?1";
    WITH_UID = "SELECT uid, name, stage, revision, locked FROM np_byok_tenants WHERE uid = ?1";
    KEYS = "
        SELECT id, label, state, provider, region, identifier, credential_ref, revision
        FROM np_byok_keys WHERE tenant = ?1 ORDER BY id";
}

/// Reads the row of a tenant under the lock of this transaction.
pub(super) async fn row_of(
    connection: &mut SqliteConnection,
    tenant: &TenantUid,
) -> Result<Option<TenantRow>, Error> {
    let row = sqlx::query(WITH_UID).bind(tenant.0.as_slice()).fetch_optional(connection).await?;
    row.map(|row| tenant_row(&row)).transpose()
}

#[async_trait]
impl TenancyReads for Sqlite {
    async fn tenant_named(&self, name: &str) -> Result<Option<TenantRow>, ReadError> {
        self.first(sqlx::query(NAMED).bind(name), tenant_row).await
    }

    async fn tenant_with(&self, uid: TenantUid) -> Result<Option<TenantRow>, ReadError> {
        self.first(sqlx::query(WITH_UID).bind(uid.0.as_slice()), tenant_row).await
    }

    async fn keys(&self, tenant: TenantUid) -> Result<Vec<KeyRow>, ReadError> {
        self.all(sqlx::query(KEYS).bind(tenant.0.as_slice()), key_row).await
    }
}
