//! Encrypts values. Each record has one DEK, which is found or made. The ciphertext goes back to
//! the caller, who stores it.

use std::sync::Arc;

use crate::audit::MAX_RECORD_ID_BYTES;
use crate::crypto::{Binding, Context, Plaintext, seal, sha256};
use crate::keyring::{KeyringError, KeysUsed, PlainDek, RecordDek};
use crate::kms::KmsErrorClass;
use crate::model::{ErrorCode, Item, KeyVersion, Operation, Refusal};
use crate::store::{Change, DekRow};
use crate::tenancy::Caller;

use super::record::{AnswerOutcome, item_of, note_dek, note_failure, retries_exhausted, withheld};
use super::{Answered, App, TRIES};

/// A value to encrypt, and the context that binds its ciphertext.
pub struct EncryptItem {
    /// The value, or the reason why it could not be read from the encoding that the caller named.
    /// The context is known even then, so the refusal is recorded with its record.
    pub plaintext: Result<Plaintext, Refusal>,
    /// The context, which is needed again to decrypt.
    pub context: Context,
}

/// The result of encrypting one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encrypted {
    /// The ciphertext, `byok:v1:…`.
    pub ciphertext: String,
    /// The version of the KEK that wraps the record's DEK.
    pub key_version: KeyVersion,
}

/// Items that were encrypted but not answered yet.
struct Sealed {
    answers: Vec<Result<Encrypted, Refusal>>,
    /// The keys that the answers depend on.
    keys_used: KeysUsed,
    /// The new DEKs that were made for the items.
    new_deks: Vec<(DekRow, Arc<PlainDek>)>,
}

impl App {
    /// Encrypts items that a front end has read, or refused to read. Returns one result for each
    /// item, in order. All items together take one entry, one KMS batch and one commit.
    ///
    /// # Errors
    /// A refusal of the whole call: it is over the limits, not permitted, or could not be recorded.
    pub async fn encrypt(
        self: &Arc<Self>,
        caller: &Caller,
        items: Vec<Result<EncryptItem, Refusal>>,
    ) -> Result<Answered<Encrypted>, Refusal> {
        let operation = Operation::Encrypt;
        // Is the role ever allowed to do this, and do the meters have room?
        self.enter(caller, operation).await?;
        self.bound(caller, operation, items.len()).await?;
        let rewinds = self.committer.rewinds(caller.tenant().uid);
        // Which items are within the limits, and may be encrypted by this caller with this context?
        let mut entry_items: Vec<Item> =
            items.iter().map(|item| item_of(item.as_ref().ok().map(|item| &item.context))).collect();
        let checked: Vec<Result<(Plaintext, Context), Refusal>> = items
            .into_iter()
            .map(|item| {
                let EncryptItem { plaintext, context } = item?;
                let plaintext = self.check_plaintext(plaintext?)?;
                Self::check_record_id(&context)?;
                self.check_context(caller, operation, &context)?;
                Ok((plaintext, context))
            })
            .collect();
        let records: Vec<Option<Arc<str>>> = checked
            .iter()
            .zip(&entry_items)
            .filter(|(item, _)| item.is_ok())
            .map(|(_, entry_item)| entry_item.record_id.clone())
            .collect();
        let answered = 'answered: {
            let mut newer: Option<Caller> = None;
            for _ in 0..TRIES {
                let caller = newer.as_ref().unwrap_or(caller);
                let Sealed { answers, keys_used, new_deks } =
                    self.seal_all(caller, &checked, &records, &mut entry_items).await?;
                // The entry, and the row of each new DEK, must be durable before anything is
                // answered.
                let changes = new_deks.iter().map(|(row, _)| Change::InsertDek(row.clone())).collect();
                let recorded =
                    self.record_answer(caller, operation, &mut entry_items, changes, keys_used).await?;
                if self.committer.rewinds(caller.tenant().uid) != rewinds {
                    // The database went back in time while this ran, so the DEK's row may be lost.
                    return Err(ErrorCode::StoreUnavailable.into());
                }
                match recorded {
                    AnswerOutcome::Given(committed) => {
                        for (row, dek) in &new_deks {
                            self.keyring.cache_committed(caller.tenant(), row, dek);
                        }
                        break 'answered Answered { answers, committed };
                    }
                    AnswerOutcome::Withheld(refusal) => {
                        break 'answered Answered::refused(withheld(answers, &refusal));
                    }
                    AnswerOutcome::Retry(runtime) => newer = Some(Caller { runtime, ..caller.clone() }),
                }
            }
            self.withhold(caller, operation, &entry_items, &retries_exhausted()).await?;
            let refused = |item: &Result<_, Refusal>| {
                Err(item.as_ref().err().cloned().unwrap_or_else(retries_exhausted))
            };
            Answered::refused(checked.iter().map(refused).collect())
        };
        self.settle(caller, operation, &answered.answers);
        Ok(answered)
    }

    /// Encrypts every item whose DEK is available.
    async fn seal_all(
        &self,
        caller: &Caller,
        checked: &[Result<(Plaintext, Context), Refusal>],
        records: &[Option<Arc<str>>],
        entry_items: &mut [Item],
    ) -> Result<Sealed, Refusal> {
        let uid = caller.tenant().uid;
        let permit = self.kms_permits.take(uid, || self.keyring.are_records_cached(uid, records))?;
        let deks = self.keyring.by_record(caller.tenant(), records, self.clock.now()).await;
        drop(permit);
        let mut deks = deks.into_iter();
        let mut sealed = Sealed {
            answers: Vec::with_capacity(checked.len()),
            keys_used: KeysUsed::default(),
            new_deks: Vec::new(),
        };
        for (item, entry_item) in checked.iter().zip(entry_items) {
            let answer = match item {
                Err(refusal) => Err(refusal.clone()),
                Ok((plaintext, context)) => match deks.next() {
                    None => Err(ErrorCode::Internal.into()),
                    Some(Err(error)) => {
                        Err(of_record(note_failure(entry_item, &error, &caller.request_id), &error))
                    }
                    Some(Ok(RecordDek { id, dek, new_row })) => {
                        note_dek(entry_item, id, &dek);
                        entry_item.wrapped_hash = new_row.as_ref().map(|row| sha256(&row.wrapped.bytes));
                        sealed.keys_used.add(&dek);
                        sealed.new_deks.extend(new_row.map(|row| (row, dek.clone())));
                        let binding = Binding::new(&caller.tenant().uid.0, id.as_bytes(), &context.digest());
                        let token = seal(&dek.plain, &binding, id.as_bytes(), plaintext.expose());
                        Ok(Encrypted { ciphertext: token.encode(), key_version: dek.key_version.clone() })
                    }
                },
            };
            entry_item.refused = answer.as_ref().err().map(|refusal: &Refusal| refusal.code);
            sealed.answers.push(answer);
        }
        Ok(sealed)
    }

    fn check_plaintext(&self, plaintext: Plaintext) -> Result<Plaintext, Refusal> {
        if plaintext.expose().len() > self.limits.plaintext_bytes {
            return Err(ErrorCode::PlaintextTooLarge.into());
        }
        Ok(plaintext)
    }

    /// Refuses a record id that is too long. Ciphertexts with longer record ids stay decryptable
    /// forever, but no new value is bound to one.
    fn check_record_id(context: &Context) -> Result<(), Refusal> {
        match context.get("record_id") {
            Some(record_id) if record_id.len() > MAX_RECORD_ID_BYTES => {
                Err(Refusal::because(ErrorCode::ContextTooLarge, "A record id has 512 bytes at most."))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Returns the refusal of an encryption for a record whose DEK the key cannot unwrap. The caller
/// sent no ciphertext, so a refusal about one would mislead.
fn of_record(refusal: Refusal, error: &KeyringError) -> Refusal {
    match error {
        KeyringError::Kms(error) if error.class == KmsErrorClass::InvalidWrappedDek => Refusal::because(
            ErrorCode::KmsMisconfigured,
            "The record's DEK does not open under the configured key: another key wraps it, or its row was altered.",
        ),
        _ => refusal,
    }
}
