//! What the fields of one request share.

use std::sync::{Arc, Mutex, PoisonError};

use async_graphql::Context;
use tokio::sync::OnceCell;

use crate::app::{Answered, App, Committed, DecryptItem, Decrypted, EncryptItem, Encrypted, Health, Release};
use crate::model::{Caller, ErrorCode, Operation, Refusal};

use super::collector::Collector;

/// One request.
pub(super) struct Call {
    app: Arc<App>,
    caller: Result<Caller, Refusal>,
    reveals: Collector<Result<DecryptItem, Refusal>, Result<Decrypted, Refusal>>,
    health: OnceCell<Health>,
    /// What the answers of all fields so far stand on.
    committed: Mutex<Vec<Committed>>,
}

impl Call {
    /// Of this caller, or of one who could not be recognised.
    pub(super) fn new(app: Arc<App>, caller: Result<Caller, Refusal>) -> Self {
        let (reveals, health, committed) = (Collector::new(), OnceCell::new(), Mutex::default());
        Self { app, caller, reveals, health, committed }
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

    /// The key's health, found out once however often the request asks; for a stranger, what is known of it.
    pub(super) async fn health(&self) -> &Health {
        let health = async || match self.caller {
            Ok(_) => self.app.health().await,
            Err(_) => self.app.known_health().await,
        };
        self.health.get_or_init(health).await
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
