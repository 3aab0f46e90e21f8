//! The state that the fields of one request share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_graphql::Context;
use tokio::sync::OnceCell;

use crate::app::{
    Answered, App, AuditPage, AuditQuery, Committed, DecryptItem, Decrypted, EncryptItem, Encrypted, Health,
    Release, Room, answer_too_large, no_room,
};
use crate::model::{ErrorCode, Operation, Refusal};
use crate::tenancy::Caller;

use super::collector::Collector;

/// One request.
pub(super) struct Call {
    app: Arc<App>,
    caller: Result<Caller, Refusal>,
    reveals: Collector<Result<DecryptItem, Refusal>, Result<Decrypted, Refusal>>,
    health: OnceCell<Health>,
    room: Arc<dyn Room>,
    /// The bytes that the pages of the audit log read so far may take.
    page_bytes: AtomicUsize,
    /// The commits that the answers of all fields so far depend on.
    committed: Mutex<Vec<Committed>>,
}

impl Call {
    /// A request by this caller, or by one without identity.
    pub(super) fn new(app: Arc<App>, caller: Result<Caller, Refusal>, room: Arc<dyn Room>) -> Self {
        let (reveals, health, committed) = (Collector::new(), OnceCell::new(), Mutex::default());
        Self { app, caller, reveals, health, room, page_bytes: AtomicUsize::new(0), committed }
    }

    /// The call that a field is part of.
    pub(super) fn of<'a>(context: &Context<'a>) -> Result<&'a Self, Refusal> {
        let call = context.data_opt::<Arc<Self>>().ok_or(ErrorCode::Internal)?;
        Ok(call)
    }

    /// The use cases and the caller.
    ///
    /// # Errors
    /// The caller has no identity.
    pub(super) fn authenticated(&self) -> Result<(&Arc<App>, &Caller), Refusal> {
        let caller = self.caller.as_ref().map_err(Clone::clone)?;
        Ok((&self.app, caller))
    }

    /// Encrypts for one field.
    pub(super) async fn encrypt(
        &self,
        items: Vec<Result<EncryptItem, Refusal>>,
    ) -> Result<Vec<Result<Encrypted, Refusal>>, Refusal> {
        let (app, caller) = self.authenticated()?;
        Ok(self.keep(app.encrypt(caller, items).await?))
    }

    /// Decrypts for one field.
    pub(super) async fn decrypt(
        &self,
        operation: Operation,
        items: Vec<Result<DecryptItem, Refusal>>,
    ) -> Result<Vec<Result<Decrypted, Refusal>>, Refusal> {
        let (app, caller) = self.authenticated()?;
        Ok(self.keep(app.decrypt(caller, operation, items).await?))
    }

    /// Decrypts a token together with all others that the request reveals: one read, one KMS batch,
    /// one entry. A refusal of the whole call, except for a missing identity, is the refusal of
    /// each item.
    pub(super) async fn reveal(
        &self,
        item: Result<DecryptItem, Refusal>,
    ) -> Result<Result<Decrypted, Refusal>, Refusal> {
        self.authenticated()?;
        let call = async |items: Vec<_>| {
            let count = items.len();
            match self.decrypt(Operation::Reveal, items).await {
                Ok(answers) => answers,
                Err(refusal) => (0..count).map(|_| Err(refusal.clone())).collect(),
            }
        };
        Ok(self.reveals.submit(item, call).await.unwrap_or_else(|| Err(ErrorCode::Internal.into())))
    }

    /// Reads a page of the audit log. The pages of a request share the limit on its answer.
    pub(super) async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, Refusal> {
        let (app, caller) = self.authenticated()?;
        let largest = self.room.largest_answer();
        let page = app.audit(caller, query, largest).await?;
        let bytes = self.page_bytes.fetch_add(page.bytes, Ordering::Relaxed) + page.bytes;
        // The size of a page is an estimate, so a single page is never too large by it.
        let refusal = if bytes > largest && bytes > page.bytes {
            answer_too_large()
        } else if !self.room.hold_at_least(bytes.min(largest)) {
            no_room()
        } else {
            return Ok(page);
        };
        Err(app.refuse(caller, Operation::Audit, refusal).await)
    }

    /// The key's health, checked once however often the request asks. A caller without identity
    /// gets the last known health.
    pub(super) async fn health(&self) -> &Health {
        let health = async || match &self.caller {
            Ok(caller) => self.app.health(&caller.runtime).await,
            Err(_) => self.app.known_health().await,
        };
        self.health.get_or_init(health).await
    }

    /// Refuses the whole request, since its answer could not be written. The commits that the
    /// answer depends on are recorded as not answered; a request without any is recorded as a
    /// refused `operation`.
    pub(super) async fn refuse(self: Arc<Self>, operation: Option<Operation>, refusal: Refusal) -> Refusal {
        let identity = self.authenticated().ok().map(|(app, caller)| (app.clone(), caller.clone()));
        match (self.release(), identity, operation) {
            (Some(release), ..) => release.refuse(refusal).await,
            (None, Some((app, caller)), Some(operation)) => app.refuse(&caller, operation, refusal).await,
            (None, ..) => refusal,
        }
    }

    /// The release that limits how long the answer may be sent; `None` if no part of the answer
    /// depends on a key.
    pub(super) fn release(self: Arc<Self>) -> Option<Arc<Release>> {
        let committed = std::mem::take(&mut *self.committed.lock().unwrap_or_else(PoisonError::into_inner));
        if committed.is_empty() {
            return None;
        }
        let (app, caller) = match Arc::try_unwrap(self) {
            Ok(call) => (call.app, call.caller),
            Err(shared) => (shared.app.clone(), shared.caller.clone()),
        };
        Release::of(app, caller.ok()?, committed)
    }

    fn keep<T>(&self, answered: Answered<T>) -> Vec<Result<T, Refusal>> {
        let Answered { answers, committed } = answered;
        self.committed.lock().unwrap_or_else(PoisonError::into_inner).extend(committed);
        answers
    }
}
