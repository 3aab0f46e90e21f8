//! Entries as a server writes them: mostly decrypts of one record from the cache, some encryptions,
//! some refusals.

use std::sync::Arc;

use byok::audit::pack;
use byok::model::{
    DekId, Entry, EntryId, ErrorCode, Extensions, Item, KeyVersion, Means, Operation, Outcome, RequestId,
    Source, TenantUid, Timestamp,
};
use byok::store::EntryRow;

use crate::random::Random;

/// The number of users. Those with low numbers come most often.
pub(crate) const USERS: u64 = 5_000;
/// The number of records. Those with low numbers come most often.
pub(crate) const RECORDS: u64 = 200_000;

/// A generator of entries. The same seed gives the same entries, except for their ids.
pub(crate) struct Entries {
    tenant: TenantUid,
    random: Random,
    deks: Vec<DekId>,
    key_version: KeyVersion,
    kms_request_id: Arc<str>,
}

impl Entries {
    pub(crate) fn new(tenant: TenantUid, seed: u64) -> Self {
        let deks = (0..1_024).map(|_| DekId::new()).collect();
        let kms_request_id = RequestId::fresh().as_str().into();
        Self {
            tenant,
            random: Random::of(seed, ["audit", "entries"]),
            deks,
            key_version: KeyVersion::new("byok", "1"),
            kms_request_id,
        }
    }

    /// An entry with this time.
    pub(crate) fn entry(&mut self, at: Timestamp) -> EntryRow {
        let user = self.skewed(USERS);
        let record = self.skewed(RECORDS);
        let operation = if self.below(10) == 0 { Operation::Encrypt } else { Operation::Decrypt };
        let refused = (self.below(50) == 0).then_some(ErrorCode::DecryptFailed);
        let cached = self.below(20) > 0;
        let item = Item {
            record_id: Some(record_name(record).into()),
            dek_id: Some(self.deks[record as usize % self.deks.len()]),
            key_version: Some(self.key_version.clone()),
            source: Some(if cached { Source::Cache } else { Source::Kms }),
            kms_request_id: Some(self.kms_request_id.clone()),
            refused,
            ..Item::default()
        };
        let entry = Entry {
            id: EntryId::new(),
            at,
            operation,
            outcome: refused.map_or(Outcome::Ok, Outcome::Refused),
            role: "service".into(),
            user: Some(user_name(user)),
            means: Means::Jwt,
            request_id: Some(RequestId::fresh().as_str().to_owned()),
            detail: None,
            reason: None,
            ledger_hash: None,
            issuer: None,
            extensions: Extensions::default(),
            items: vec![item],
        };
        pack(self.tenant, &entry)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random.next() % end
    }

    /// The smaller of two random numbers: low ones come twice as often as the mean, high ones
    /// hardly ever.
    fn skewed(&mut self, end: u64) -> u64 {
        self.below(end).min(self.below(end))
    }
}

pub(crate) fn user_name(user: u64) -> String {
    format!("user-{user}")
}

pub(crate) fn record_name(record: u64) -> String {
    format!("patient-{record}")
}
