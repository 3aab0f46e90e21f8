//! What a call may ask for, and how often.

use super::Reader;

/// The most that one call, or one minute, may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `BYOK_ENCRYPT_RATE_RPM`: encrypt calls a minute, by tenant.
    pub encrypt_per_minute: u32,
    /// `BYOK_DECRYPT_RATE_RPM`: decrypt and reveal calls a minute, by tenant.
    pub decrypt_per_minute: u32,
    /// `BYOK_MAX_ITEMS_PER_REQUEST`: items of a batch, or aliases of a join.
    pub items: usize,
    /// `BYOK_MAX_PLAINTEXT_BYTES`: of one value.
    pub plaintext_bytes: usize,
    /// `BYOK_MAX_BODY_BYTES`: of one request. A join inlines its ciphertexts, so this is generous.
    pub body_bytes: usize,
    /// `BYOK_REQUIRE_RECORD_ID`: whether a context must name its record.
    pub require_record_id: bool,
}

impl Limits {
    /// Reads the section.
    pub fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            encrypt_per_minute: reader.number("BYOK_ENCRYPT_RATE_RPM", 300, 1..=100_000_000),
            decrypt_per_minute: reader.number("BYOK_DECRYPT_RATE_RPM", 600, 1..=100_000_000),
            items: reader.number("BYOK_MAX_ITEMS_PER_REQUEST", 10_000, 1..=65_000),
            plaintext_bytes: reader.number("BYOK_MAX_PLAINTEXT_BYTES", 1 << 20, 1..=16 << 20),
            body_bytes: reader.number("BYOK_MAX_BODY_BYTES", 32 << 20, 1_024..=1 << 30),
            require_record_id: reader.flag("BYOK_REQUIRE_RECORD_ID", true),
        }
    }
}
