//! Personal values as the audit log holds them: erasable, yet verifiable.

/// A personal value (user, record id, request id) with the salt that its HMAC was made with. The log's leaf covers only
/// the HMAC, so that value and salt can be set to null by an erasure and the log still verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Salted {
    /// The value; `None` after an erasure.
    pub value: Option<String>,
    /// 16 random bytes; `None` after an erasure.
    pub salt: Option<[u8; 16]>,
    /// HMAC-SHA256 of the value's bytes, keyed by the salt.
    pub hmac: [u8; 32],
}
