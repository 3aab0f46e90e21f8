//! Sends many decrypts of one record at a steady rate.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::model::BootTime;

use super::server::{Canary, Target};
use super::verdict::{Answer, Sample};

/// The longest pause between two decrypts, in milliseconds, if the server limits the rate.
const SLOWEST: u64 = 1_000;
/// The number of decrypts that may wait for an answer at once.
const AT_ONCE: usize = 64;

/// Decrypts the canary repeatedly. Each request is sent on schedule, whatever happens to those
/// before it.
pub(super) struct DecryptLoad {
    samples: Arc<Mutex<Vec<Sample>>>,
    task: JoinHandle<()>,
}

impl DecryptLoad {
    pub(super) fn start(target: Arc<Target>, canary: Arc<Canary>, rate: u64) -> Self {
        let samples = Arc::<Mutex<Vec<Sample>>>::default();
        let results = samples.clone();
        let task = tokio::spawn(async move {
            let permits = Arc::new(Semaphore::new(AT_ONCE));
            let pause = Arc::new(AtomicU64::new(1_000 / rate));
            while let Ok(permit) = permits.clone().acquire_owned().await {
                let (target, canary, results, slower) =
                    (target.clone(), canary.clone(), results.clone(), pause.clone());
                tokio::spawn(async move {
                    let sample = target.decrypt(&canary).await;
                    if sample.answer == Answer::Limited {
                        let doubled = |pause: u64| Some((pause * 2).clamp(1, SLOWEST));
                        let _ = slower.fetch_update(Ordering::Relaxed, Ordering::Relaxed, doubled);
                    }
                    results.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                    drop(permit);
                });
                tokio::time::sleep(Duration::from_millis(pause.load(Ordering::Relaxed))).await;
            }
        });
        Self { samples, task }
    }

    pub(super) fn samples(&self) -> Vec<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops sending, and returns the results so far.
    pub(super) fn end(self) -> Vec<Sample> {
        self.task.abort();
        self.samples()
    }

    /// Returns when the first result of a kind arrived.
    pub(super) fn find(&self, such: impl Fn(&Sample) -> bool) -> Option<BootTime> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().filter(|sample| such(sample)).map(|sample| sample.received).min()
    }
}
