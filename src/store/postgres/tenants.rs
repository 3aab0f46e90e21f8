//! Tenants and the heads of their logs.

use async_trait::async_trait;

use crate::model::{Tenant, TenantUid};

use super::super::row::{head, tenant};
use super::super::{LogHead, ReadError, TenantReads};
use super::commit::PgQuery;
use super::{Postgres, reads, statements};

statements! {
    /// Creates a tenant whose key is the one of the deployment's configuration. Returns 1 if the
    /// tenant exists with this uid and name, now or already; 0 if another tenant has its name or
    /// its uid.
    CREATE = "SELECT np_byok_create_tenant($1, $2)";
}

reads! {
    BY_NAME = "SELECT uid, name FROM np_byok_tenants WHERE name = $1";
    EVERY = "SELECT uid, name FROM np_byok_tenants ORDER BY name";
    LOG_HEAD = "SELECT size, log::int8, first, frontier FROM np_byok_heads WHERE tenant = $1";
    ENDED_LOGS = "SELECT size, log::int8, first, frontier FROM np_byok_logs WHERE tenant = $1 ORDER BY log";
    /// For [`Commits::log_size`](super::super::Commits::log_size).
    LOG_SIZE = "SELECT size FROM np_byok_heads WHERE tenant = $1";
}

/// Builds a statement that returns how many rows it touched.
pub(super) fn create(tenant: &Tenant) -> PgQuery {
    sqlx::query(CREATE).bind(tenant.uid.0).bind(tenant.name.as_str())
}

#[async_trait]
impl TenantReads for Postgres {
    async fn tenant(&self, name: &str) -> Result<Option<Tenant>, ReadError> {
        if name.contains('\0') {
            return Ok(None);
        }
        self.first(sqlx::query(BY_NAME).bind(name), tenant).await
    }

    async fn tenants(&self) -> Result<Vec<Tenant>, ReadError> {
        self.all(sqlx::query(EVERY), tenant).await
    }

    async fn log_head(&self, tenant: TenantUid) -> Result<Option<LogHead>, ReadError> {
        self.first(sqlx::query(LOG_HEAD).bind(tenant.0), head).await
    }

    async fn ended_logs(&self, tenant: TenantUid) -> Result<Vec<LogHead>, ReadError> {
        self.all(sqlx::query(ENDED_LOGS).bind(tenant.0), head).await
    }
}
