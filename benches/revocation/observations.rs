//! The clients' observations: the times of answers that a trial needs, and the signals by which it
//! controls the clients.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::load::RECORDS;

/// The time without a refusal after which a server is steady, if every record is hot.
const STEADY: Duration = Duration::from_millis(300);
/// The longest wait for an answer or a steady server. A server's own wait doubles with each outage.
const PATIENCE: Duration = Duration::from_secs(180);

/// The answers. Times are in microseconds since `origin`, or [`NEVER`].
pub(crate) struct Observations {
    origin: Instant,
    full_load: AtomicBool,
    stop: AtomicBool,
    plaintexts: AtomicU64,
    first_plaintext: AtomicU64,
    last_plaintext: AtomicU64,
    first_refusal: AtomicU64,
    last_refusal: AtomicU64,
    /// The end of the bound.
    bound: AtomicU64,
    /// The number of plaintexts that came after the bound.
    late: AtomicU64,
    /// The number of calls refused because there were too many; they show nothing about the key.
    shed: AtomicU64,
    /// The first error.
    error: Mutex<Option<String>>,
}

const NEVER: u64 = u64::MAX;

impl Observations {
    pub(crate) fn new() -> Self {
        let never = || AtomicU64::new(NEVER);
        Self {
            origin: Instant::now(),
            full_load: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            plaintexts: AtomicU64::new(0),
            first_plaintext: never(),
            last_plaintext: AtomicU64::new(0),
            first_refusal: never(),
            last_refusal: AtomicU64::new(0),
            bound: never(),
            late: AtomicU64::new(0),
            shed: AtomicU64::new(0),
            error: Mutex::new(None),
        }
    }

    /// Records an answer that has arrived, and returns whether it is the plaintext.
    pub(crate) fn record(&self, status: u16, body: &[u8], plaintext: &[u8]) -> bool {
        let now = self.micros(Instant::now());
        let text = || String::from_utf8_lossy(body);
        match status {
            200 if body == plaintext => {
                self.plaintexts.fetch_add(1, Relaxed);
                self.first_plaintext.fetch_min(now, Relaxed);
                self.last_plaintext.fetch_max(now, Relaxed);
                if now > self.bound.load(Relaxed) {
                    self.late.fetch_add(1, Relaxed);
                }
                true
            }
            403 | 503 if text().contains("\"code\":\"KMS_") => {
                self.first_refusal.fetch_min(now, Relaxed);
                self.last_refusal.fetch_max(now, Relaxed);
                false
            }
            429 | 503 => {
                self.shed.fetch_add(1, Relaxed);
                false
            }
            _ => {
                self.report(format!("a wrong answer, {status}: {}", text()));
                false
            }
        }
    }

    /// Reports an error. Only the first is kept.
    pub(crate) fn report(&self, error: String) {
        self.error.lock().expect("a lock").get_or_insert(error);
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    pub(crate) fn is_full_load(&self) -> bool {
        self.full_load.load(Relaxed)
    }

    /// Sets whether the clients make their next call as soon as the last is answered.
    pub(crate) fn set_full_load(&self, full_load: bool) {
        self.full_load.store(full_load, Relaxed);
    }

    /// Forgets the first plaintext and the first refusal, so that the next ones are recorded.
    pub(crate) fn reset_firsts(&self) {
        self.first_plaintext.store(NEVER, Relaxed);
        self.first_refusal.store(NEVER, Relaxed);
    }

    /// Counts the plaintexts that arrive after this moment, until [`Self::stop_counting_late`].
    pub(crate) fn count_late_after(&self, bound: Instant) {
        self.late.store(0, Relaxed);
        self.bound.store(self.micros(bound), Relaxed);
    }

    /// The number of late plaintexts; no more are counted.
    pub(crate) fn stop_counting_late(&self) -> u64 {
        self.bound.store(NEVER, Relaxed);
        self.late.swap(0, Relaxed)
    }

    pub(crate) fn plaintexts(&self) -> u64 {
        self.plaintexts.load(Relaxed)
    }

    pub(crate) fn shed(&self) -> u64 {
        self.shed.load(Relaxed)
    }

    /// The time of the latest plaintext.
    pub(crate) fn last_plaintext(&self) -> Instant {
        self.moment(self.last_plaintext.load(Relaxed))
    }

    /// The time of the first refusal; waits for it.
    pub(crate) async fn first_refusal(&self) -> Result<Instant, String> {
        self.wait_for(&self.first_refusal, "a refusal").await
    }

    /// The time of the first plaintext; waits for it.
    pub(crate) async fn first_plaintext(&self) -> Result<Instant, String> {
        self.wait_for(&self.first_plaintext, "a plaintext").await
    }

    /// Waits until the server is steady: since the last refusal, records were decrypted more than
    /// twice as often as there are records.
    pub(crate) async fn wait_until_steady(&self) -> Result<(), String> {
        let steady = async {
            let (mut since, mut plaintexts) = (Instant::now(), self.plaintexts());
            loop {
                sleep(Duration::from_millis(20)).await;
                let refused = self.moment(self.last_refusal.load(Relaxed));
                if refused > since {
                    (since, plaintexts) = (refused, self.plaintexts());
                }
                if since.elapsed() > STEADY && self.plaintexts() - plaintexts > 2 * RECORDS as u64 {
                    return;
                }
            }
        };
        timeout(PATIENCE, steady)
            .await
            .map_err(|_| format!("the server was not steady within {PATIENCE:?}"))?;
        self.no_error()
    }

    /// # Errors
    /// A client has reported an error.
    pub(crate) fn no_error(&self) -> Result<(), String> {
        self.error.lock().expect("a lock").take().map_or(Ok(()), Err)
    }

    async fn wait_for(&self, time: &AtomicU64, name: &str) -> Result<Instant, String> {
        let came = async {
            while time.load(Relaxed) == NEVER {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, came).await.map_err(|_| format!("{name} did not come within {PATIENCE:?}"))?;
        Ok(self.moment(time.load(Relaxed)))
    }

    fn micros(&self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.origin).as_micros()).unwrap_or(NEVER)
    }

    fn moment(&self, micros: u64) -> Instant {
        self.origin + Duration::from_micros(micros)
    }
}
