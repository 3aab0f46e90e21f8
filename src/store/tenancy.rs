//! What a tenant is served with, as its rows say.

use async_trait::async_trait;
use sqlx::Error;

use crate::model::{KeyId, Tenant, TenantUid};

use super::ReadError;
use super::row::{Columns, array, number, required, tenant};

/// The row of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantRow {
    /// The tenant.
    pub tenant: Tenant,
    /// How far the tenant's own key has come.
    pub stage: Stage,
    /// The number of changes of name, stage, keys and lock so far. A commit names the one that it
    /// began with.
    pub revision: u64,
    /// Whether nothing of the tenant may be answered.
    pub locked: bool,
}

/// How far the tenant's own key has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A key of the platform protects the data.
    Platform,
    /// The customer may bring a key.
    Entitled,
    /// The customer's key protects the data.
    Active,
    /// The customer operates the key, and knows whom to call.
    HandedOff,
}

/// The row of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// byok's own id of the key.
    pub id: KeyId,
    /// The label by which the tenant's data names the key.
    pub label: String,
    /// Whether the key wraps, or only unwraps.
    pub state: KeyState,
    /// The provider, as in `BYOK_PROVIDER`; `None` for the key of the deployment's configuration.
    pub provider: Option<String>,
    /// The region of the key, if the provider has regions.
    pub region: Option<String>,
    /// The provider's name of the key.
    pub identifier: Option<String>,
    /// The name of the credential that the operator has bound; `None` for the deployment's own.
    pub credential_ref: Option<String>,
    /// The number of changes of this row so far.
    pub revision: u64,
}

/// Whether a key is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Not used yet.
    Draft,
    /// New DEKs are wrapped under it.
    Current,
    /// DEKs under it may still be unwrapped.
    Retired,
}

/// Reads of what tenants are served with.
#[async_trait]
pub trait TenancyReads: Send + Sync {
    /// Returns the row of the tenant with this name.
    async fn tenant_named(&self, name: &str) -> Result<Option<TenantRow>, ReadError>;

    /// Returns the row of the tenant with this uid.
    async fn tenant_with(&self, uid: TenantUid) -> Result<Option<TenantRow>, ReadError>;

    /// Returns the keys of a tenant, ordered by id.
    async fn keys(&self, tenant: TenantUid) -> Result<Vec<KeyRow>, ReadError>;
}

/// Decodes the columns `uid, name, stage, revision, locked::int`.
pub(super) fn tenant_row(row: &impl Columns) -> Result<TenantRow, Error> {
    let stage = match required(row.text(2)?)?.as_str() {
        "platform" => Some(Stage::Platform),
        "entitled" => Some(Stage::Entitled),
        "active" => Some(Stage::Active),
        "handed_off" => Some(Stage::HandedOff),
        _ => None,
    };
    let (stage, locked) = (required(stage)?, required(row.number(4)?)? != 0);
    Ok(TenantRow { tenant: tenant(row)?, stage, revision: number(row, 3)?, locked })
}

/// Decodes the columns `id, label, state, provider, region, identifier, credential_ref, revision`.
pub(super) fn key_row(row: &impl Columns) -> Result<KeyRow, Error> {
    let state = match required(row.text(2)?)?.as_str() {
        "draft" => Some(KeyState::Draft),
        "current" => Some(KeyState::Current),
        "retired" => Some(KeyState::Retired),
        _ => None,
    };
    Ok(KeyRow {
        id: KeyId(array(required(row.bytes(0)?)?)?),
        label: required(row.text(1)?)?,
        state: required(state)?,
        provider: row.text(3)?,
        region: row.text(4)?,
        identifier: row.text(5)?,
        credential_ref: row.text(6)?,
        revision: number(row, 7)?,
    })
}
