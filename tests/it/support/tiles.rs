//! Derivation of tiles and indexes on demand, which a server's worker does at its own pace.

use std::sync::Arc;

use byok::audit::{Derivation, Derived};
use byok::store::Database;
use tokio_util::sync::CancellationToken;

/// Derives everything that is due.
pub(crate) async fn derive(database: &Arc<dyn Database>) {
    let stop = CancellationToken::new();
    while Derivation::default().pass(&**database, &stop).await != Derived::All {}
}
