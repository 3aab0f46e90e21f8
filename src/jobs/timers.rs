//! Runs the jobs. Each has a task and a timer of its own, so that a slow webhook does not delay a
//! rotation; and within a job each tenant has its own [`Turns`], so that no tenant delays another.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::audit::{Derivation, Derived};
use crate::tenancy::Turns;

use super::Jobs;

/// How often a replica looks for a rotation to work on, an incident to announce, entries to stream,
/// or a log that has moved.
const LOOK: Duration = Duration::from_secs(1);
/// How often a replica looks for what is to be derived; until then, pages read the rest of the log
/// as it is.
const DERIVE: Duration = Duration::from_millis(250);

impl Jobs {
    /// Starts all jobs, and the watch over the keys whose DEKs are in memory. Without that watch,
    /// nothing is answered from memory. The jobs end soon after `stop` is cancelled, with their
    /// progress committed.
    pub fn start(self: Arc<Self>, stop: CancellationToken) -> JoinHandle<()> {
        // The name of this replica in leases, for as long as it lives.
        let holder = Uuid::now_v7();
        let (keyring, stopped) = (self.keyring.clone(), stop.clone());
        let watching = tokio::spawn(async move {
            tokio::join!(
                keyring.clone().run_prober(stopped.clone()),
                // These make DEKs ahead of need, and seal the rows of DEKs, if that is configured.
                keyring.clone().run_pool(stopped.clone()),
                keyring.run_row_sealing(stopped)
            )
        });
        let (jobs, stopped) = (self.clone(), stop.clone());
        let announcing = tokio::spawn(async move {
            let mut turns = Turns::default();
            while tokio::time::timeout(LOOK, stopped.cancelled()).await.is_err() {
                jobs.announce_incidents(&mut turns, holder, &stopped).await;
            }
            turns.end().await;
        });
        let (jobs, stopped) = (self.clone(), stop.clone());
        let making_checkpoints = tokio::spawn(async move {
            let mut turns = Turns::default();
            while tokio::time::timeout(LOOK, stopped.cancelled()).await.is_err() {
                jobs.keep_checkpoints(&mut turns);
            }
            turns.end().await;
        });
        let (jobs, stopped) = (self.clone(), stop.clone());
        let publishing = tokio::spawn(async move {
            let mut turns = Turns::default();
            while tokio::time::timeout(LOOK, stopped.cancelled()).await.is_err() {
                jobs.publish_checkpoints(&mut turns, holder, &stopped);
            }
            turns.end().await;
        });
        let (jobs, stopped) = (self.clone(), stop.clone());
        let deriving = tokio::spawn(async move {
            let (mut derivation, mut pause) = (Derivation::default(), DERIVE);
            while tokio::time::timeout(pause, stopped.cancelled()).await.is_err() {
                pause = match derivation.pass(&*jobs.store, &stopped).await {
                    Derived::More => Duration::ZERO,
                    Derived::All | Derived::NotHere | Derived::Wrong => DERIVE,
                };
            }
        });
        let streaming: Vec<_> = (0..self.streams.len())
            .map(|index| {
                let (jobs, stopped) = (self.clone(), stop.clone());
                tokio::spawn(async move {
                    let mut turns = Turns::default();
                    while tokio::time::timeout(LOOK, stopped.cancelled()).await.is_err() {
                        jobs.stream_entries(&mut turns, index, holder, &stopped);
                    }
                    turns.end().await;
                })
            })
            .collect();
        tokio::spawn(async move {
            let mut turns = Turns::default();
            while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
                self.work_on_rotations(&mut turns, holder, &stop).await;
            }
            turns.end().await;
            let _ = tokio::join!(watching, announcing, deriving, making_checkpoints, publishing);
            for stream in streaming {
                let _ = stream.await;
            }
        })
    }
}
