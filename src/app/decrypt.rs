//! Decrypts values. A reveal does the same for a remote join.

use std::sync::Arc;

use crate::crypto::{Binding, Context, Plaintext, Token, TokenError, open};
use crate::keyring::KeysUsed;
use crate::model::{DekId, ErrorCode, Item, KeyVersion, Operation, Refusal};
use crate::tenancy::Caller;

use super::record::{AnswerOutcome, item_of, note_dek, note_failure, retries_exhausted, withheld};
use super::{Answered, App, TRIES};

/// The number of items to open before the task yields to other calls on the same core.
const TURN: usize = 256;

/// A ciphertext to decrypt.
pub struct DecryptItem {
    /// The ciphertext, as encrypt returned it.
    pub ciphertext: String,
    /// The context that it was encrypted with.
    pub context: Context,
}

/// The result of decrypting one item.
pub struct Decrypted {
    /// The decrypted value.
    pub plaintext: Plaintext,
    /// The version of the KEK that wrapped the DEK at the time it was read.
    pub key_version: KeyVersion,
}

impl App {
    /// Decrypts items that a front end has read, or refused to read. Returns one result for each
    /// item, in order. All items together take one entry, one database read, one KMS batch and one
    /// commit. `operation` is [`Operation::Decrypt`] or [`Operation::Reveal`].
    ///
    /// # Errors
    /// A refusal of the whole call: it is over the limits, not permitted, or could not be recorded.
    pub async fn decrypt(
        self: &Arc<Self>,
        caller: &Caller,
        operation: Operation,
        items: Vec<Result<DecryptItem, Refusal>>,
    ) -> Result<Answered<Decrypted>, Refusal> {
        // Is the role ever allowed to do this, and do the meters have room?
        self.enter(caller, operation).await?;
        self.bound(caller, operation, items.len()).await?;
        // Which items are well-formed ciphertexts that this caller may decrypt with this context?
        let mut entry_items: Vec<Item> =
            items.iter().map(|item| item_of(item.as_ref().ok().map(|item| &item.context))).collect();
        let tokens: Vec<Result<(Token, Context), Refusal>> = items
            .into_iter()
            .map(|item| {
                let item = item?;
                let token = Token::parse(&item.ciphertext).map_err(token_refusal)?;
                self.check_context(caller, operation, &item.context)?;
                Ok((token, item.context))
            })
            .collect();
        let answered = 'answered: {
            let mut newer: Option<Caller> = None;
            for _ in 0..TRIES {
                let caller = newer.as_ref().unwrap_or(caller);
                let (answers, keys_used) = self.open_all(caller, &tokens, &mut entry_items).await?;
                // The entry must be durable before anything is answered.
                let recorded =
                    self.record_answer(caller, operation, &mut entry_items, Vec::new(), keys_used).await?;
                match recorded {
                    AnswerOutcome::Given(committed) => break 'answered Answered { answers, committed },
                    AnswerOutcome::Withheld(refusal) => {
                        break 'answered Answered::refused(withheld(answers, &refusal));
                    }
                    AnswerOutcome::Retry(runtime) => newer = Some(Caller { runtime, ..caller.clone() }),
                }
            }
            self.withhold(caller, operation, &entry_items, &retries_exhausted()).await?;
            let refused = |token: &Result<_, Refusal>| {
                Err(token.as_ref().err().cloned().unwrap_or_else(retries_exhausted))
            };
            Answered::refused(tokens.iter().map(refused).collect())
        };
        self.settle(caller, operation, &answered.answers);
        Ok(answered)
    }

    /// Decrypts every item whose DEK is available. Returns the results, and the keys that they
    /// depend on.
    async fn open_all(
        &self,
        caller: &Caller,
        tokens: &[Result<(Token, Context), Refusal>],
        entry_items: &mut [Item],
    ) -> Result<(Vec<Result<Decrypted, Refusal>>, KeysUsed), Refusal> {
        let ids: Vec<DekId> = tokens.iter().flatten().map(|(token, _)| id_of(token)).collect();
        let permit = self
            .kms_permits
            .take(caller.tenant().uid, || self.keyring.are_cached(caller.tenant().uid, &ids))?;
        let mut deks = self.keyring.by_id(caller.tenant(), &ids).await.into_iter();
        drop(permit);
        let mut keys_used = KeysUsed::default();
        let mut answers = Vec::with_capacity(tokens.len());
        for (index, (token, entry_item)) in tokens.iter().zip(entry_items).enumerate() {
            if index % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
            let answer = match token {
                Err(refusal) => Err(refusal.clone()),
                Ok((token, context)) => match deks.next() {
                    None => Err(ErrorCode::Internal.into()),
                    Some(Err(error)) => Err(note_failure(entry_item, &error, &caller.request_id)),
                    Some(Ok(dek)) => {
                        let id = id_of(token);
                        note_dek(entry_item, id, &dek);
                        let binding = Binding::new(&caller.tenant().uid.0, id.as_bytes(), &context.digest());
                        match open(&dek.plain, &binding, token) {
                            Ok(plaintext) => {
                                keys_used.add(&dek);
                                Ok(Decrypted { plaintext, key_version: dek.key_version })
                            }
                            Err(_) => Err(ErrorCode::DecryptFailed.into()),
                        }
                    }
                },
            };
            entry_item.refused = answer.as_ref().err().map(|refusal: &Refusal| refusal.code);
            answers.push(answer);
        }
        Ok((answers, keys_used))
    }
}

fn id_of(token: &Token) -> DekId {
    DekId(uuid::Uuid::from_bytes(token.dek_id))
}

fn token_refusal(error: TokenError) -> Refusal {
    match error {
        TokenError::UnsupportedVersion => ErrorCode::TokenVersionUnsupported.into(),
        TokenError::NotAToken | TokenError::NotCanonical | TokenError::Truncated | TokenError::TooLong => {
            ErrorCode::TokenMalformed.into()
        }
    }
}
