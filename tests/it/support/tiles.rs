//! Tiles of a tenant's tree.

use std::sync::Arc;

use byok::model::TenantUid;
use byok::store::Database;

/// Derives what there is to derive.
pub(crate) async fn derive(database: &Arc<dyn Database>, tenant: TenantUid) {
    let _ = (database, tenant);
    unimplemented!("with the worker that derives tiles");
}
