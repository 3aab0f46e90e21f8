//! Handles entries that say that an answer was given before any of it was sent. The answer can
//! still be lost after its entry is durable: its request times out or panics, its client hangs up,
//! or the server shuts down. Then the entry is voided: a refusal that names it is recorded.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::audit::{CommitFailed, Durable};
use crate::model::{EntryId, ErrorCode, Item, Operation, Refusal};
use crate::store::{Change, EntryRow, Fence, Gate};
use crate::tenancy::Caller;

use super::App;

/// The entry of an answer that depends on keys.
pub(super) struct CommittedEntry {
    pub(super) id: EntryId,
    pub(super) operation: Operation,
    pub(super) items: Vec<Item>,
}

/// A durable entry of which no part of the answer has left yet. If it is dropped before that, it is
/// voided.
pub(super) struct UnsentEntry {
    app: Arc<App>,
    caller: Caller,
    entry: Option<CommittedEntry>,
    /// How often the log had been found shorter than before. If the count has changed since, the
    /// entry may be lost.
    rewinds: u64,
    _settling: TaskTrackerToken,
}

/// The commits and voids under way whose request may be gone. All of them run on the committer's
/// runtime, because the runtime of the requests may be busy or shutting down.
pub(super) struct Settling {
    tasks: TaskTracker,
    runtime: Handle,
}

impl Settling {
    /// Uses the runtime that this is called on.
    pub(super) fn here() -> Self {
        Self { tasks: TaskTracker::new(), runtime: Handle::current() }
    }

    fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.tasks.spawn_on(work, &self.runtime)
    }
}

/// A commit that continues after its caller stops waiting. As long as a caller waits, it needs no
/// task of its own.
struct Committing<T: Send + 'static> {
    app: Arc<App>,
    committing: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
}

impl<T: Send + 'static> Future for Committing<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(committing) = &mut self.committing else { return Poll::Pending };
        let committed = ready!(committing.as_mut().poll(context));
        self.committing = None;
        Poll::Ready(committed)
    }
}

impl<T: Send + 'static> Drop for Committing<T> {
    fn drop(&mut self) {
        if let Some(committing) = self.committing.take() {
            drop(self.app.settling.spawn(committing));
        }
    }
}

impl UnsentEntry {
    /// Notes that some of the answer leaves: the entry stays valid.
    pub(super) fn given(mut self) {
        self.entry = None;
    }

    /// Records that the answer is refused instead of given. Continues even if nobody waits for it.
    pub(super) fn void(mut self, refusal: &Refusal) -> JoinHandle<Result<(), Refusal>> {
        self.record(refusal.clone())
    }

    fn record(&mut self, refusal: Refusal) -> JoinHandle<Result<(), Refusal>> {
        let (app, caller, entry) = (self.app.clone(), self.caller.clone(), self.entry.take());
        self.app.settling.spawn(async move {
            match &entry {
                Some(entry) => app.record_withheld(&caller, entry, &refusal).await,
                None => Ok(()),
            }
        })
    }
}

impl Drop for UnsentEntry {
    fn drop(&mut self) {
        if self.entry.is_some() && self.app.committer.rewinds(self.caller.tenant().uid) == self.rewinds {
            drop(self.record(ErrorCode::Unavailable.into()));
        }
    }
}

impl App {
    /// Makes the entry of an answer durable, even if the request is cancelled: if the commit
    /// succeeded after the caller stopped waiting, nothing else could void the entry. If the commit
    /// fails, the items are returned with the error.
    pub(super) async fn commit_unsent(
        self: &Arc<Self>,
        caller: &Caller,
        (row, entry): (EntryRow, CommittedEntry),
        changes: Vec<Change>,
        gate: Option<Gate>,
        fence: Vec<Fence>,
    ) -> Result<(Durable, UnsentEntry), (CommitFailed, Vec<Item>)> {
        let (app, caller, settling) = (self.clone(), caller.clone(), self.settling.tasks.token());
        let committing = async move {
            let durable = match app.commit(&caller, row, changes, gate, fence).await {
                Ok(durable) => durable,
                Err(failed) => return Err((failed, entry.items)),
            };
            let rewinds = app.committer.rewinds(caller.tenant().uid);
            Ok((durable, UnsentEntry { app, caller, entry: Some(entry), rewinds, _settling: settling }))
        };
        Committing { app: self.clone(), committing: Some(Box::pin(committing)) }.await
    }

    /// Waits until it is recorded for each answer whether it was given. To be called when no
    /// request is left.
    pub async fn settled(&self) {
        self.settling.tasks.close();
        self.settling.tasks.wait().await;
    }
}
