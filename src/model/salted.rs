//! Personal values in the audit log: erasable, while the log stays verifiable.

/// A personal value (user, record id, request id) with the salt of its HMAC. The leaf of the log
/// covers only the HMAC, so that an erasure can set value and salt to null and the log still
/// verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Salted {
    /// The value; `None` after an erasure.
    pub value: Option<String>,
    /// 16 random bytes; `None` after an erasure.
    pub salt: Option<[u8; 16]>,
    /// HMAC-SHA256 of the value's bytes, keyed by the salt.
    pub hmac: [u8; 32],
}
