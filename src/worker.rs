//! What runs beside the calls: the watch over the keys, and the rotation job. Decides nothing itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::app::App;

/// How often a replica looks for a rotation to work on.
const LOOK: Duration = Duration::from_secs(1);

/// Starts the worker; it ends soon after `stop` is cancelled, with its place committed.
pub fn start(app: Arc<App>, stop: CancellationToken) -> JoinHandle<()> {
    // Names this replica in leases, for as long as it lives.
    let holder = Uuid::now_v7();
    let watch = { (app.clone(), stop.clone()) };
    let rotations = async move {
        while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
            app.work_on_rotations(holder, &stop).await;
        }
    };
    tokio::spawn(async move {
        tokio::join!(watch.0.watch_keys(watch.1), rotations);
    })
}
