//! What the fields of one request share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_graphql::Context;
use tokio::sync::OnceCell;

use crate::app::{
    Answered, App, AuditPage, AuditQuery, Committed, DecryptItem, Decrypted, EncryptItem, Encrypted, Health,
    Release, Room, answer_too_large, no_room,
};
use crate::model::{Caller, ErrorCode, Operation, Refusal};

use super::collector::Collector;

/// One request.
pub(super) struct Call {
    app: Arc<App>,
    caller: Result<Caller, Refusal>,
    reveals: Collector<Result<DecryptItem, Refusal>, Result<Decrypted, Refusal>>,
    health: OnceCell<Health>,
    room: Arc<dyn Room>,
    /// How many bytes the pages of the audit log may take that were read.
    pages: AtomicUsize,
    /// What the answers of all fields so far stand on.
    committed: Mutex<Vec<Committed>>,
}

impl Call {
    /// Of this caller, or of one who could not be recognised.
    pub(super) fn new(app: Arc<App>, caller: Result<Caller, Refusal>, room: Arc<dyn Room>) -> Self {
        let (reveals, health, committed) = (Collector::new(), OnceCell::new(), Mutex::default());
        Self { app, caller, reveals, health, room, pages: AtomicUsize::new(0), committed }
    }

    /// The call that the field is part of.
    pub(super) fn of<'a>(context: &Context<'a>) -> Result<&'a Self, Refusal> {
        let call = context.data_opt::<Arc<Self>>().ok_or(ErrorCode::Internal)?;
        Ok(call)
    }

    /// The use cases, and who asks for one.
    pub(super) fn known(&self) -> Result<(&Arc<App>, &Caller), Refusal> {
        let caller = self.caller.as_ref().map_err(Clone::clone)?;
        Ok((&self.app, caller))
    }

    /// Encrypts for one field.
    pub(super) async fn encrypt(
        &self,
        items: Vec<Result<EncryptItem, Refusal>>,
    ) -> Result<Vec<Result<Encrypted, Refusal>>, Refusal> {
        let (app, caller) = self.known()?;
        Ok(self.keep(app.encrypt(caller, items).await?))
    }

    /// Decrypts for one field.
    pub(super) async fn decrypt(
        &self,
        operation: Operation,
        items: Vec<Result<DecryptItem, Refusal>>,
    ) -> Result<Vec<Result<Decrypted, Refusal>>, Refusal> {
        let (app, caller) = self.known()?;
        Ok(self.keep(app.decrypt(caller, operation, items).await?))
    }

    /// Opens a token together with all others that the request reveals: one read, one KMS batch, one entry. A refusal of
    /// the whole call, but for that of the identity, is the refusal of each.
    pub(super) async fn reveal(
        &self,
        item: Result<DecryptItem, Refusal>,
    ) -> Result<Result<Decrypted, Refusal>, Refusal> {
        self.known()?;
        let call = async |items: Vec<_>| {
            let count = items.len();
            match self.decrypt(Operation::Reveal, items).await {
                Ok(answers) => answers,
                Err(refusal) => (0..count).map(|_| Err(refusal.clone())).collect(),
            }
        };
        Ok(self.reveals.ask(item, call).await.unwrap_or_else(|| Err(ErrorCode::Internal.into())))
    }

    /// Reads a page of the audit log. All pages of a request are of one answer.
    pub(super) async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, Refusal> {
        let (app, caller) = self.known()?;
        let largest = self.room.largest_answer();
        let page = app.audit(caller, query, largest).await?;
        let pages = self.pages.fetch_add(page.bytes, Ordering::Relaxed) + page.bytes;
        let refusal = match pages {
            // What a page takes is estimated: one alone may be less.
            _ if pages > largest && pages > page.bytes => answer_too_large(),
            _ if !self.room.hold_at_least(pages.min(largest)) => no_room(),
            _ => return Ok(page),
        };
        Err(app.refuse(caller, Operation::Audit, refusal).await)
    }

    /// The key's health, found out once however often the request asks; for a stranger, what is known of it.
    pub(super) async fn health(&self) -> &Health {
        let health = async || match self.caller {
            Ok(_) => self.app.health().await,
            Err(_) => self.app.known_health().await,
        };
        self.health.get_or_init(health).await
    }

    /// Refuses the answer to the whole request, which could not be written: what it stands on is recorded as not given, and a
    /// request that stands on nothing as refused, by what it does.
    pub(super) async fn refuse(self: Arc<Self>, does: Option<Operation>, refusal: Refusal) -> Refusal {
        let known = self.known().ok().map(|(app, caller)| (app.clone(), caller.clone()));
        match (self.release(), known, does) {
            (Some(release), ..) => release.refuse(refusal).await,
            (None, Some((app, caller)), Some(operation)) => app.refuse(&caller, operation, refusal).await,
            (None, ..) => refusal,
        }
    }

    /// What says how long the answer to the whole request may leave; `None` where nothing of it stands on a key.
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
