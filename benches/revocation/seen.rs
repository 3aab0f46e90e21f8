//! What the clients saw: the moments that a trial asks for, and what the clients are to do meanwhile.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::load::RECORDS;

/// Without a refusal for so long, and every record hot, a server is well.
const SETTLED: Duration = Duration::from_millis(300);
/// How long a server may take to be well again: the wait doubles with each fall.
const PATIENCE: Duration = Duration::from_secs(180);

/// What came, and when: in microseconds since `origin`, [`NEVER`] for what has not come.
pub(crate) struct Seen {
    origin: Instant,
    full: AtomicBool,
    stop: AtomicBool,
    plaintexts: AtomicU64,
    first_plaintext: AtomicU64,
    last_plaintext: AtomicU64,
    first_refusal: AtomicU64,
    last_refusal: AtomicU64,
    /// When the bound is over, and how many plaintexts came after it.
    bound: AtomicU64,
    late: AtomicU64,
    /// Answers that say nothing of the key: too many calls.
    shed: AtomicU64,
    /// What should never come.
    wrong: Mutex<Option<String>>,
}

const NEVER: u64 = u64::MAX;

impl Seen {
    pub(crate) fn new() -> Self {
        let never = || AtomicU64::new(NEVER);
        Self {
            origin: Instant::now(),
            full: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            plaintexts: AtomicU64::new(0),
            first_plaintext: never(),
            last_plaintext: AtomicU64::new(0),
            first_refusal: never(),
            last_refusal: AtomicU64::new(0),
            bound: never(),
            late: AtomicU64::new(0),
            shed: AtomicU64::new(0),
            wrong: Mutex::new(None),
        }
    }

    /// An answer has arrived. Whether it is the plaintext.
    pub(crate) fn take(&self, status: u16, body: &[u8], plaintext: &[u8]) -> bool {
        let now = self.at(Instant::now());
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
                self.wrong(format!("an answer, {status}: {}", text()));
                false
            }
        }
    }

    /// Something came that should never come; the first counts.
    pub(crate) fn wrong(&self, what: String) {
        self.wrong.lock().expect("a lock").get_or_insert(what);
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Relaxed)
    }

    /// Whether the clients call as fast as they are answered.
    pub(crate) fn full(&self, full: bool) {
        self.full.store(full, Relaxed);
    }

    /// From now on the first plaintext and the first refusal are new ones.
    pub(crate) fn forget(&self) {
        self.first_plaintext.store(NEVER, Relaxed);
        self.first_refusal.store(NEVER, Relaxed);
    }

    /// Plaintexts that arrive after this moment are counted; until [`Self::late`].
    pub(crate) fn count_after(&self, bound: Instant) {
        self.late.store(0, Relaxed);
        self.bound.store(self.at(bound), Relaxed);
    }

    /// How many came; no more are counted.
    pub(crate) fn late(&self) -> u64 {
        self.bound.store(NEVER, Relaxed);
        self.late.swap(0, Relaxed)
    }

    pub(crate) fn plaintexts(&self) -> u64 {
        self.plaintexts.load(Relaxed)
    }

    pub(crate) fn shed(&self) -> u64 {
        self.shed.load(Relaxed)
    }

    /// When the latest plaintext came.
    pub(crate) fn last_plaintext(&self) -> Instant {
        self.moment(self.last_plaintext.load(Relaxed))
    }

    /// When the first refusal came; waits for it.
    pub(crate) async fn first_refusal(&self) -> Result<Instant, String> {
        self.comes(&self.first_refusal, "a refusal").await
    }

    /// When the first plaintext came; waits for it.
    pub(crate) async fn first_plaintext(&self) -> Result<Instant, String> {
        self.comes(&self.first_plaintext, "a plaintext").await
    }

    /// Waits until all is well: every record was decrypted twice, and none was refused, in the last moments.
    pub(crate) async fn well(&self) -> Result<(), String> {
        let settled = async {
            let (mut since, mut plaintexts) = (Instant::now(), self.plaintexts());
            loop {
                sleep(Duration::from_millis(20)).await;
                let refused = self.moment(self.last_refusal.load(Relaxed));
                if refused > since {
                    (since, plaintexts) = (refused, self.plaintexts());
                }
                if since.elapsed() > SETTLED && self.plaintexts() - plaintexts > 2 * RECORDS as u64 {
                    return;
                }
            }
        };
        timeout(PATIENCE, settled).await.map_err(|_| format!("it was not well within {PATIENCE:?}"))?;
        self.sound()
    }

    /// # Errors
    /// Something came that should never come.
    pub(crate) fn sound(&self) -> Result<(), String> {
        self.wrong.lock().expect("a lock").take().map_or(Ok(()), Err)
    }

    async fn comes(&self, what: &AtomicU64, called: &str) -> Result<Instant, String> {
        let came = async {
            while what.load(Relaxed) == NEVER {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, came).await.map_err(|_| format!("{called} did not come within {PATIENCE:?}"))?;
        Ok(self.moment(what.load(Relaxed)))
    }

    fn at(&self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.origin).as_micros()).unwrap_or(NEVER)
    }

    fn moment(&self, at: u64) -> Instant {
        self.origin + Duration::from_micros(at)
    }
}
