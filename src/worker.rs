//! What runs beside the calls: the watch over the keys, the rotation job, the announcement of incidents, checkpoints, what is
//! derived from the logs, their streams. Decides nothing itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::app::{App, Derived};

/// How often a replica looks for a rotation to work on, an incident to announce, entries to stream, a log that has moved.
const LOOK: Duration = Duration::from_secs(1);
/// How often a replica looks for what is to be derived: pages read the rest of the log as it is. One that finds another at it
/// leaves it to that one for a while.
const DERIVE: Duration = Duration::from_millis(250);
const LEAVE: Duration = Duration::from_secs(5);

/// Starts the workers; they end soon after `stop` is cancelled, with their place committed. Each has a timer of its own:
/// a slow webhook holds up no rotation.
pub fn start(app: Arc<App>, stop: CancellationToken) -> JoinHandle<()> {
    // Names this replica in leases, for as long as it lives.
    let holder = Uuid::now_v7();
    let (watching, watched) = (app.clone(), stop.clone());
    let watching = tokio::spawn(async move { watching.watch_keys(watched).await });
    let (announcing, told) = (app.clone(), stop.clone());
    let announcing = tokio::spawn(async move {
        while tokio::time::timeout(LOOK, told.cancelled()).await.is_err() {
            announcing.announce_incidents(holder, &told).await;
        }
    });
    let (sealing, ended) = (app.clone(), stop.clone());
    let sealing = tokio::spawn(async move {
        while tokio::time::timeout(LOOK, ended.cancelled()).await.is_err() {
            sealing.keep_checkpoint().await;
        }
    });
    let (publishing, ended) = (app.clone(), stop.clone());
    let publishing = tokio::spawn(async move {
        while tokio::time::timeout(LOOK, ended.cancelled()).await.is_err() {
            publishing.publish_checkpoints(holder, &ended).await;
        }
    });
    let (deriving, ended) = (app.clone(), stop.clone());
    let deriving = tokio::spawn(async move {
        let mut pause = DERIVE;
        while tokio::time::timeout(pause, ended.cancelled()).await.is_err() {
            pause = match deriving.derive(&ended).await {
                Derived::All => DERIVE,
                Derived::More => Duration::ZERO,
                Derived::NotHere | Derived::Wrong => LEAVE,
            };
        }
    });
    let streaming: Vec<_> = (0..app.streams().len())
        .map(|place| {
            let (streaming, sent) = (app.clone(), stop.clone());
            tokio::spawn(async move {
                let Some(stream) = streaming.streams().nth(place) else { return };
                while tokio::time::timeout(LOOK, sent.cancelled()).await.is_err() {
                    streaming.stream_entries(stream, holder, &sent).await;
                }
            })
        })
        .collect();
    tokio::spawn(async move {
        while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
            app.work_on_rotations(holder, &stop).await;
        }
        let _ = tokio::join!(watching, announcing, deriving, sealing, publishing);
        for stream in streaming {
            let _ = stream.await;
        }
    })
}
