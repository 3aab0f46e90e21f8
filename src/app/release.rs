//! Controls an answer between its commit and its arrival. The entry says that the answer was given,
//! but other fields of the same request, or a client that reads slowly, can delay the answer until
//! the proofs of its keys are too old. So the server checks, before the first byte and before each
//! piece, whether the answer may still leave. If it is too late before the first byte, the whole
//! answer is withheld, and each of its entries gets a refusal that voids it. If it is too late
//! afterwards, the answer is broken off. The entries of an answer that is lost before its first
//! byte are voided too.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::keyring::Permit;
use crate::model::{BootTime, Caller, ErrorCode, Posture, Refusal};

use super::App;
use super::record::dark_refusal;
use super::unsent::UnsentEntry;

/// The result of one use case.
pub struct Answered<T> {
    /// One result for each item, in order.
    pub answers: Vec<Result<T, Refusal>>,
    /// Decides until when the answer may be given; `None` if it depends on no key.
    pub committed: Option<Committed>,
}

impl<T> Answered<T> {
    /// Returns an answer that holds refusals only.
    pub(super) fn refused(answers: Vec<Result<T, Refusal>>) -> Self {
        Self { answers, committed: None }
    }
}

/// An answer that depends on keys: its durable entry, and the permit to give it.
pub struct Committed {
    pub(super) entry: UnsentEntry,
    pub(super) permit: Permit,
}

impl Committed {
    /// Notes that the answer is given without a [`Release`], because it never leaves this process
    /// over a network.
    pub fn given(self) {
        self.entry.given();
    }
}

/// The permission for the whole answer to one request to leave. The answer may combine the answers
/// of several use cases.
pub struct Release {
    app: Arc<App>,
    caller: Caller,
    permit: Permit,
    /// The end of the permit, in nanoseconds since this machine started. It is extended while the
    /// keys are shown to work.
    until: AtomicU64,
    /// The entries to void if the answer is withheld or lost. Empty once the first byte has left or
    /// the answer was withheld.
    entries: Mutex<Vec<UnsentEntry>>,
    broken_off: AtomicBool,
    handed_over: AtomicBool,
}

impl Release {
    /// Builds the release of an answer that combines all of `committed`; `None` if there are none.
    pub fn of(
        app: Arc<App>,
        caller: Caller,
        committed: impl IntoIterator<Item = Committed>,
    ) -> Option<Arc<Self>> {
        let mut committed = committed.into_iter();
        let Committed { entry, mut permit } = committed.next()?;
        let mut entries = vec![entry];
        for Committed { entry, permit: another } in committed {
            entries.push(entry);
            permit.merge(another);
        }
        let until = AtomicU64::new(nanoseconds(permit.until()));
        let (entries, broken_off, handed_over) =
            (Mutex::new(entries), AtomicBool::new(false), AtomicBool::new(false));
        Some(Arc::new(Self { app, caller, permit, until, entries, broken_off, handed_over }))
    }

    /// Returns whether the answer, or more of it, may leave now. Once it was withheld or broken
    /// off, the result is always `false`.
    pub fn may_leave(&self) -> bool {
        if self.broken_off.load(Ordering::Relaxed) {
            return false;
        }
        nanoseconds(self.app.clock.boot()) <= self.until.load(Ordering::Relaxed) || self.renew().is_ok()
    }

    /// Decides whether an answer that is ready, and of which nothing has left, may leave. If its
    /// permit has ended, the keys are probed.
    ///
    /// # Errors
    /// The refusal to send in its place. Either the answer may not leave, and a refusal is recorded
    /// for each of its entries, or that could not be recorded.
    pub async fn confirm(&self) -> Result<(), Refusal> {
        if self.may_leave() {
            return Ok(());
        }
        let posture = match self.app.keyring.prove_again(&self.caller.tenant, &self.permit).await {
            Ok(until) => {
                self.put_off(until);
                return Ok(());
            }
            Err(posture) => posture,
        };
        self.broken_off.store(true, Ordering::Relaxed);
        let refusal = dark_refusal(posture);
        // This is recorded even if the client hangs up.
        let recording = self.withhold(self.take_entries(), &refusal);
        Err(recorded(recording, refusal).await)
    }

    /// Refuses the whole answer, of which nothing has left, for a reason that does not concern its
    /// keys: it is too large, or there is no memory for it. Returns the refusal to send in its
    /// place.
    pub async fn refuse(&self, refusal: Refusal) -> Refusal {
        self.broken_off.store(true, Ordering::Relaxed);
        let recording = self.take_entries().into_iter().map(|entry| entry.void(&refusal)).collect();
        recorded(recording, refusal).await
    }

    /// Notes that the first byte leaves. From here on the answer counts as given.
    pub fn begin(&self) {
        self.take_entries().into_iter().for_each(UnsentEntry::given);
    }

    /// Keeps the keys watched for a while, so that the permit of an answer that takes long to leave
    /// can be renewed.
    pub fn watch_on(&self) {
        self.app.keyring.watch_on(&self.caller.tenant, &self.permit);
    }

    /// Notes that the protocol implementation has all of the answer, its end included.
    pub fn hand_over(&self) {
        self.handed_over.store(true, Ordering::Relaxed);
    }

    /// Returns whether the protocol implementation has all of the answer, so that its stream can no
    /// longer be reset.
    pub fn is_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Relaxed)
    }

    /// Ends an answer that may no longer leave after its head was sent. This is logged once. If
    /// nothing of its body has left, it is recorded as withheld.
    pub fn break_off(&self) {
        if self.broken_off.swap(true, Ordering::Relaxed) {
            return;
        }
        let entries = self.take_entries();
        if entries.is_empty() {
            warn!(
                request_id = self.caller.request_id.as_str(),
                "an answer was broken off: the key was not shown to work any more while it left"
            );
            return;
        }
        let posture = self.app.keyring.renewed(&self.caller.tenant, &self.permit).err();
        drop(self.withhold(entries, &dark_refusal(posture.unwrap_or(Posture::Active))));
    }

    fn renew(&self) -> Result<(), Posture> {
        let until = self.app.keyring.renewed(&self.caller.tenant, &self.permit)?;
        self.put_off(until);
        Ok(())
    }

    fn put_off(&self, until: BootTime) {
        self.until.fetch_max(nanoseconds(until), Ordering::Relaxed);
    }

    /// Records this refusal for each of these entries, whether or not the caller waits for it.
    fn withhold(&self, entries: Vec<UnsentEntry>, refusal: &Refusal) -> Vec<JoinHandle<Result<(), Refusal>>> {
        warn!(
            request_id = self.caller.request_id.as_str(),
            "an answer came too late after the key was last shown to work, and is withheld"
        );
        entries.into_iter().map(|entry| entry.void(refusal)).collect()
    }

    fn take_entries(&self) -> Vec<UnsentEntry> {
        std::mem::take(&mut *self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Returns the refusal once it is recorded, or the reason why it could not be.
async fn recorded(recording: Vec<JoinHandle<Result<(), Refusal>>>, refusal: Refusal) -> Refusal {
    let recorded = join_all(recording).await;
    let mut recorded =
        recorded.into_iter().map(|one| one.unwrap_or_else(|_| Err(ErrorCode::Internal.into())));
    recorded.find_map(Result::err).unwrap_or(refusal)
}

fn nanoseconds(moment: BootTime) -> u64 {
    let since_start: Duration = moment.since(BootTime::default());
    u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX)
}
