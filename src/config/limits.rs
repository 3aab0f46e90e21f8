//! The limits on a call, and on the requests to the KMS.

use std::num::NonZeroU32;

use super::rates::MOST;
use super::{Rates, Reader};

/// The smallest KMS budget: a rotation may use half of it, and must be able to re-wrap one DEK.
const FEWEST_KMS_CALLS: u32 = 10;
/// The number of DEKs not in memory that the default KMS budget allows for each call within the
/// rates.
const COLD_DEKS_PER_CALL: u32 = 100;

/// The limits on one call, and on the requests to the KMS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `BYOK_KMS_CALLS_PER_MINUTE`: requests to the KMS per minute and tenant; `None` means no
    /// limit. The default is a hundred for each call that the two rates allow, and at least two for
    /// each item of the largest call.
    pub kms_calls_per_minute: Option<NonZeroU32>,
    /// `BYOK_MAX_ITEMS_PER_REQUEST`: the largest number of items in a batch, or of aliases in a
    /// join.
    pub items: usize,
    /// `BYOK_MAX_PLAINTEXT_BYTES`: the largest size of one value.
    pub plaintext_bytes: usize,
    /// `BYOK_MAX_BODY_BYTES`: the largest size of one request. A join inlines its ciphertexts, so
    /// this is generous.
    pub body_bytes: usize,
    /// `BYOK_REQUIRE_RECORD_ID`: whether a context must name its record.
    pub require_record_id: bool,
    /// Whether key versions are hidden from callers without an identity. If `BYOK_METRICS_LISTEN`
    /// is set, they are shown there.
    pub hides_key_versions: bool,
}

impl Limits {
    /// Reads the section. What the KMS may be asked depends on the rates of calls by default.
    pub fn read(reader: &mut Reader<'_>, rates: &Rates) -> Self {
        let items: u32 = reader.number("BYOK_MAX_ITEMS_PER_REQUEST", 10_000, 1..=65_000);
        let calls = rates.encrypt_calls.saturating_add(rates.decrypt_calls.get()).get();
        let by_rates = calls.saturating_mul(COLD_DEKS_PER_CALL);
        let by_default = by_rates.clamp(2 * items, MOST);
        // Zero turns the budget off.
        let kms_calls_per_minute =
            NonZeroU32::new(reader.number("BYOK_KMS_CALLS_PER_MINUTE", by_default, 0..=MOST));
        if kms_calls_per_minute.is_some_and(|calls| calls.get() < FEWEST_KMS_CALLS) {
            let problem = format!("is neither 0, for no bound, nor at least {FEWEST_KMS_CALLS}");
            reader.error("BYOK_KMS_CALLS_PER_MINUTE", problem);
        }
        Self {
            kms_calls_per_minute,
            items: items as usize,
            plaintext_bytes: reader.number("BYOK_MAX_PLAINTEXT_BYTES", 1 << 20, 1..=16 << 20),
            body_bytes: reader.number("BYOK_MAX_BODY_BYTES", 32 << 20, 1_024..=1 << 30),
            require_record_id: reader.flag("BYOK_REQUIRE_RECORD_ID", true),
            hides_key_versions: reader.is_set("BYOK_METRICS_LISTEN"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    fn kms_calls(pairs: &[(&str, &str)]) -> Option<u32> {
        let env = Env::from_pairs(pairs.iter().copied());
        let mut reader = Reader::new(&env);
        let rates = Rates::read(&mut reader);
        Limits::read(&mut reader, &rates).kms_calls_per_minute.map(NonZeroU32::get)
    }

    #[test]
    fn the_cap_on_kms_calls_grows_with_the_rates() {
        assert_eq!(kms_calls(&[]), Some(90_000));
        assert_eq!(kms_calls(&[("BYOK_DECRYPT_RATE_RPM", "9700")]), Some(1_000_000));
        let rare = [("BYOK_DECRYPT_RATE_RPM", "1"), ("BYOK_ENCRYPT_RATE_RPM", "1")];
        assert_eq!(kms_calls(&rare), Some(20_000), "the largest call passes whole");
        let often = [("BYOK_DECRYPT_RATE_RPM", "100000000"), ("BYOK_ENCRYPT_RATE_RPM", "100000000")];
        assert_eq!(kms_calls(&often), Some(MOST));
    }

    #[test]
    fn a_cap_can_be_set_and_turned_off() {
        assert_eq!(kms_calls(&[("BYOK_KMS_CALLS_PER_MINUTE", "600")]), Some(600));
        assert_eq!(kms_calls(&[("BYOK_KMS_CALLS_PER_MINUTE", "0")]), None);
        let env = Env::from_pairs([("BYOK_KMS_CALLS_PER_MINUTE", "9")]);
        let mut reader = Reader::new(&env);
        let rates = Rates::read(&mut reader);
        Limits::read(&mut reader, &rates);
        assert_eq!(reader.into_errors()[0].variable, "BYOK_KMS_CALLS_PER_MINUTE");
    }
}
