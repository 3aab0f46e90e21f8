//! The limits on the rate of calls and items.

use std::num::NonZeroU32;

use super::Reader;

/// The largest value of a rate or a budget.
pub(super) const MOST: u32 = 100_000_000;

/// The calls and items per minute of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// `BYOK_ENCRYPT_RATE_RPM`: encrypt calls per minute and tenant.
    pub encrypt_calls: NonZeroU32,
    /// `BYOK_DECRYPT_RATE_RPM`: decrypt and reveal calls per minute and tenant.
    pub decrypt_calls: NonZeroU32,
    /// `BYOK_ENCRYPT_ITEMS_PER_MINUTE`: items of encrypt calls per minute and tenant; `None` means
    /// no limit.
    pub encrypt_items: Option<NonZeroU32>,
    /// `BYOK_DECRYPT_ITEMS_PER_MINUTE`: items of decrypt and reveal calls per minute and tenant;
    /// `None` means no limit.
    pub decrypt_items: Option<NonZeroU32>,
}

impl Rates {
    /// Reads the section.
    pub fn read(reader: &mut Reader<'_>) -> Self {
        let mut calls = |name, default| {
            NonZeroU32::new(reader.number(name, default, 1..=MOST)).unwrap_or(NonZeroU32::MIN)
        };
        let (encrypt_calls, decrypt_calls) =
            (calls("BYOK_ENCRYPT_RATE_RPM", 300), calls("BYOK_DECRYPT_RATE_RPM", 600));
        // Zero turns a limit of items off.
        let mut items = |name| NonZeroU32::new(reader.number(name, 0, 0..=MOST));
        let encrypt_items = items("BYOK_ENCRYPT_ITEMS_PER_MINUTE");
        let decrypt_items = items("BYOK_DECRYPT_ITEMS_PER_MINUTE");
        Self { encrypt_calls, decrypt_calls, encrypt_items, decrypt_items }
    }
}
