//! The DEKs that calls get, and why they may not get one: plain types.

use std::sync::Arc;

use crate::crypto::Dek;
use crate::kms::{KmsError, KmsErrorClass};
use crate::model::{DekId, KeyVersion, Posture, Source};
use crate::store::{DekRow, ReadError};
use crate::tenancy::NotServed;

/// A DEK that may be used for the call at hand.
pub struct PlainDek {
    /// The DEK itself, wiped when dropped.
    pub plain: Dek,
    /// The version of the KEK that wrapped it when it was read.
    pub key_version: KeyVersion,
    /// The epoch of that version under which it was taken.
    pub epoch: u64,
    /// Where it came from.
    pub source: Source,
    /// The KMS's id of the request that unwrapped it.
    pub kms_request_id: Option<Arc<str>>,
    /// Whether the row that it was unwrapped from had its MACs. Also true for a DEK that was made
    /// here.
    pub(super) row_is_sealed: bool,
}

/// A record's DEK.
pub struct RecordDek {
    /// The id of the DEK.
    pub id: DekId,
    /// The DEK, shared by the items of one call that name the same record.
    pub dek: Arc<PlainDek>,
    /// The row to commit with the first use of a DEK that has just been made.
    pub new_row: Option<DekRow>,
}

/// Why a DEK is not available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyringError {
    /// The tenant has no such DEK.
    Missing,
    /// Its row was changed by somebody who does not hold the secret of the row MACs.
    Altered,
    /// Its row has no MACs yet, and under this key anybody could have made it.
    Unsealed,
    /// There is no secret for its row's MACs, and one is required.
    RowMacKeyMissing,
    /// The KMS refused or failed.
    Kms(KmsError),
    /// The key version is not active, and the KMS was not called.
    KeyUnusable(Posture),
    /// The store refused or failed.
    Store(ReadError),
    /// The tenant is not served any more.
    NotServed(NotServed),
}

impl From<NotServed> for KeyringError {
    fn from(not_served: NotServed) -> Self {
        match not_served {
            NotServed::Store(error) => Self::Store(error),
            NotServed::Unknown | NotServed::NoKey | NotServed::Locked => Self::NotServed(not_served),
        }
    }
}

impl KeyringError {
    /// Returns the error for an answer of the KMS that did not come although it was due.
    pub(super) fn internal() -> Self {
        Self::Kms(KmsError::local(KmsErrorClass::Internal))
    }
}
