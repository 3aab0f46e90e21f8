//! What is derived from the logs, at once: a server's worker does it in its own time.

use std::sync::Arc;

use byok::audit::{Derivation, Derived};
use byok::store::Database;
use tokio_util::sync::CancellationToken;

/// Derives all that there is to derive.
pub(crate) async fn derive(database: &Arc<dyn Database>) {
    let stop = CancellationToken::new();
    while Derivation::default().pass(&**database, &stop).await != Derived::All {}
}
