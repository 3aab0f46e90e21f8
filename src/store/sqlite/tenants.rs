//! Tenants and the heads of their logs.

use async_trait::async_trait;

use crate::model::{Tenant, TenantUid};

use super::super::row::{head, tenant};
use super::super::{LogHead, ReadError, TenantReads};
use super::{Sqlite, SqliteQuery, statements};

statements! {
    CREATE = "
        INSERT INTO np_byok_tenants (uid, name, created_at)
        VALUES (?1, ?2, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000) ON CONFLICT DO NOTHING";
    CREATE_HEAD = "
        INSERT INTO np_byok_heads (tenant) SELECT uid FROM np_byok_tenants WHERE uid = ?1 AND name = ?2
        ON CONFLICT DO NOTHING";
    CREATE_KEY = "
        INSERT INTO np_byok_keys (tenant, id, label, owner, state, revision, created_at)
        SELECT uid, zeroblob(16), 'default', 'customer', 'current', 0, created_at
        FROM np_byok_tenants WHERE uid = ?1 AND name = ?2 ON CONFLICT DO NOTHING";
    EXISTS_WITH = "SELECT EXISTS (SELECT 1 FROM np_byok_tenants WHERE uid = ?1 AND name = ?2)";
    BY_NAME = "SELECT uid, name FROM np_byok_tenants WHERE name = ?1";
    EVERY = "SELECT uid, name FROM np_byok_tenants ORDER BY name";
    LOG_HEAD = "SELECT size, log, first, frontier FROM np_byok_heads WHERE tenant = ?1";
    ENDED_LOGS = "SELECT size, log, first, frontier FROM np_byok_logs WHERE tenant = ?1 ORDER BY log";
    /// For [`Commits::log_size`](super::super::Commits::log_size).
    LOG_SIZE = "SELECT size FROM np_byok_heads WHERE tenant = ?1";
}

pub(super) fn create(tenant: &Tenant) -> SqliteQuery<'_> {
    bind(CREATE, tenant)
}

pub(super) fn create_head(tenant: &Tenant) -> SqliteQuery<'_> {
    bind(CREATE_HEAD, tenant)
}

/// Builds the statement that gives the tenant the key of the deployment's configuration.
pub(super) fn create_key(tenant: &Tenant) -> SqliteQuery<'_> {
    bind(CREATE_KEY, tenant)
}

/// Builds a query for whether the tenant exists with this name and uid.
pub(super) fn exists(tenant: &Tenant) -> SqliteQuery<'_> {
    bind(EXISTS_WITH, tenant)
}

fn bind<'q>(sql: &'static str, tenant: &'q Tenant) -> SqliteQuery<'q> {
    sqlx::query(sql).bind(tenant.uid.0.as_slice()).bind(tenant.name.as_str())
}

#[async_trait]
impl TenantReads for Sqlite {
    async fn tenant(&self, name: &str) -> Result<Option<Tenant>, ReadError> {
        self.first(sqlx::query(BY_NAME).bind(name), tenant).await
    }

    async fn tenants(&self) -> Result<Vec<Tenant>, ReadError> {
        self.all(sqlx::query(EVERY), tenant).await
    }

    async fn log_head(&self, tenant: TenantUid) -> Result<Option<LogHead>, ReadError> {
        self.first(sqlx::query(LOG_HEAD).bind(tenant.0.as_slice()), head).await
    }

    async fn ended_logs(&self, tenant: TenantUid) -> Result<Vec<LogHead>, ReadError> {
        self.all(sqlx::query(ENDED_LOGS).bind(tenant.0.as_slice()), head).await
    }
}
