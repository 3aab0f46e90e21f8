//! What the fields of one request share.

use std::sync::Arc;

use async_graphql::Context;
use tokio::sync::OnceCell;

use crate::app::{App, DecryptItem, Decrypted, Health};
use crate::model::{Caller, ErrorCode, Operation, Refusal};

use super::collector::Collector;

/// One request.
pub(super) struct Call {
    app: Arc<App>,
    caller: Result<Caller, Refusal>,
    reveals: Collector<Result<DecryptItem, Refusal>, Result<Decrypted, Refusal>>,
    health: OnceCell<Health>,
}

impl Call {
    /// Of this caller, or of one who could not be recognised.
    pub(super) fn new(app: Arc<App>, caller: Result<Caller, Refusal>) -> Self {
        Self { app, caller, reveals: Collector::new(), health: OnceCell::new() }
    }

    /// The call that the field is part of.
    pub(super) fn of<'a>(context: &Context<'a>) -> Result<&'a Self, Refusal> {
        context.data_opt::<Self>().ok_or_else(|| ErrorCode::Internal.into())
    }

    /// The use cases, and who asks for one.
    pub(super) fn known(&self) -> Result<(&App, &Caller), Refusal> {
        let caller = self.caller.as_ref().map_err(Clone::clone)?;
        Ok((&self.app, caller))
    }

    /// Opens a token together with all others that the request reveals: one read, one KMS batch, one entry. A refusal of
    /// the whole call, but for that of the identity, is the refusal of each.
    pub(super) async fn reveal(
        &self,
        item: Result<DecryptItem, Refusal>,
    ) -> Result<Result<Decrypted, Refusal>, Refusal> {
        let (app, caller) = self.known()?;
        let call = async |items: Vec<_>| {
            let count = items.len();
            match app.decrypt(caller, Operation::Reveal, items).await {
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
}
