//! The keys of one tenant, each with the KMS that holds it. New DEKs are wrapped under the
//! current key; a DEK is unwrapped by the key that its row names, and by no other.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::crypto::Dek;
use crate::kms::{Connections, DekBinding, Generated, ItemResult, Kms, KmsError, KmsErrorClass, KmsProfile};
use crate::model::{KeyId, KeyVersion, Wrapped};

/// One key, with the KMS that holds it.
#[derive(Clone)]
pub struct Key {
    /// byok's own id of the key.
    pub id: KeyId,
    /// The KMS.
    pub kms: Arc<dyn Kms>,
    /// The connections to the KMS, if it has any.
    pub connections: Option<Arc<dyn Connections>>,
}

/// The keys of one tenant. Clones share the clients.
#[derive(Clone)]
pub struct KeySet {
    current: Key,
    others: BTreeMap<KeyId, Key>,
}

impl KeySet {
    /// Makes a set of the key that wraps, and of others that still unwrap.
    pub fn new(current: Key, others: impl IntoIterator<Item = Key>) -> Self {
        let others = others.into_iter().map(|key| (key.id, key)).collect();
        Self { current, others }
    }

    /// Returns all keys.
    pub fn all(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.current).chain(self.others.values())
    }

    /// Returns the key with this id.
    pub fn key(&self, id: KeyId) -> Option<&Key> {
        if id == self.current.id { Some(&self.current) } else { self.others.get(&id) }
    }

    /// Returns the id of the key that wraps.
    pub fn current_id(&self) -> KeyId {
        self.current.id
    }

    /// Returns the facts of the current key's provider.
    pub fn profile(&self) -> KmsProfile {
        self.current.kms.profile()
    }

    /// Returns the version that the current key wraps under now.
    ///
    /// # Errors
    /// The errors of the KMS.
    pub async fn current_version(&self) -> Result<KeyVersion, KmsError> {
        self.current.kms.current_version().await.map(|version| version.of(self.current.id))
    }

    /// Makes a DEK for each binding, wrapped under the current key.
    pub async fn generate(&self, bindings: &[DekBinding]) -> Vec<ItemResult<Generated>> {
        let mut made = self.current.kms.generate(bindings).await;
        for made in made.iter_mut().flatten() {
            made.value.wrapped.key_version.key_id = self.current.id;
        }
        made
    }

    /// Unwraps DEKs, each under the key that it names. Answers come in the order of the items.
    pub async fn unwrap(&self, wrapped: &[(DekBinding, Wrapped)]) -> Vec<ItemResult<Dek>> {
        if wrapped.iter().all(|(_, wrapped)| wrapped.key_version.key_id == self.current.id) {
            return self.current.kms.unwrap(wrapped).await;
        }
        let mut by_key: BTreeMap<KeyId, Vec<usize>> = BTreeMap::new();
        for (index, (_, wrapped)) in wrapped.iter().enumerate() {
            by_key.entry(wrapped.key_version.key_id).or_default().push(index);
        }
        let mut answers: Vec<Option<ItemResult<Dek>>> = wrapped.iter().map(|_| None).collect();
        // Concurrently, so that a KMS that hangs delays the DEKs of another key only up to its own
        // deadline.
        let of_each = by_key.into_iter().map(async |(id, indexes)| {
            let asked: Vec<_> = indexes.iter().map(|index| wrapped[*index].clone()).collect();
            let answers = match self.key(id) {
                Some(key) => key.kms.unwrap(&asked).await,
                None => asked.iter().map(|_| Err(unknown_key())).collect(),
            };
            (indexes, answers)
        });
        for (indexes, of_key) in futures_util::future::join_all(of_each).await {
            for (index, answer) in indexes.into_iter().zip(of_key) {
                answers[index] = Some(answer);
            }
        }
        let missing = || Err(KmsError::local(KmsErrorClass::Internal));
        answers.into_iter().map(|answer| answer.unwrap_or_else(missing)).collect()
    }

    /// Wraps DEKs again under another version of their key. Refuses all of them if one belongs to
    /// another key than that version.
    pub async fn rewrap(
        &self,
        wrapped: &[(DekBinding, Wrapped)],
        to: &KeyVersion,
    ) -> Vec<ItemResult<Wrapped>> {
        let are_of_key = wrapped.iter().all(|(_, wrapped)| wrapped.key_version.key_id == to.key_id);
        let Some(key) = self.key(to.key_id).filter(|_| are_of_key) else {
            return wrapped.iter().map(|_| Err(unknown_key())).collect();
        };
        let mut answers = key.kms.rewrap(wrapped, to).await;
        for answer in answers.iter_mut().flatten() {
            answer.value.key_version.key_id = key.id;
        }
        answers
    }

    /// Closes the idle connections to every KMS.
    pub fn hang_up(&self) {
        self.all().filter_map(|key| key.connections.as_ref()).for_each(|connections| connections.hang_up());
    }
}

/// The error of a row that names a key that the tenant does not have.
fn unknown_key() -> KmsError {
    KmsError::local(KmsErrorClass::Misconfigured)
}
