//! The secret that binds the rows of DEKs.

use std::time::Duration;

use crate::crypto::RowMacKey;

use super::Reader;

const KEY: &str = "BYOK_ROW_MAC_KEY";
const PREVIOUS_KEY: &str = "BYOK_ROW_MAC_KEY_PREVIOUS";
const REQUIRED: &str = "BYOK_ROW_MACS_REQUIRED";

/// The keys that bind the rows of DEKs, so that nobody who can write to the database can change a
/// row unnoticed.
#[derive(Default)]
pub struct RowMac {
    /// The keys. Without them rows are not bound.
    pub keys: Option<RowMacKeys>,
    /// `BYOK_ROW_MAC_SETTLE_SECONDS`: how long no row without a MAC must have appeared before byok
    /// refuses such rows. It has to be longer than the previous release runs beside this one.
    pub settle: Duration,
    /// `BYOK_ROW_MACS_REQUIRED`: whether a row without a MAC is refused, whatever the log says.
    pub required: bool,
}

/// The keys that rows are bound with.
pub struct RowMacKeys {
    /// `BYOK_ROW_MAC_KEY`.
    pub current: RowMacKey,
    /// `BYOK_ROW_MAC_KEY_PREVIOUS`: rows that are bound with it are accepted too, and are bound
    /// again with the current key.
    pub previous: Option<RowMacKey>,
}

impl RowMac {
    /// Reads the section.
    pub fn read(reader: &mut Reader<'_>) -> Self {
        let (current, previous) = (key(reader, KEY), key(reader, PREVIOUS_KEY));
        if reader.is_set(PREVIOUS_KEY) && !reader.is_set(KEY) {
            reader.error(PREVIOUS_KEY, format!("is set without {KEY}"));
        }
        let settle: u64 = reader.number("BYOK_ROW_MAC_SETTLE_SECONDS", 3_600, 0..=2_592_000);
        let required = reader.flag(REQUIRED, false);
        if required && !reader.is_set(KEY) {
            reader.error(REQUIRED, format!("is set without {KEY}, which makes and checks the MACs"));
        }
        Self {
            keys: current.map(|current| RowMacKeys { current, previous }),
            settle: Duration::from_secs(settle),
            required,
        }
    }
}

fn key(reader: &mut Reader<'_>, name: &str) -> Option<RowMacKey> {
    let key = RowMacKey::from_base64(&reader.secret(name)?).ok();
    if key.is_none() {
        reader.error(name, "is not 32 bytes in base64: `openssl rand -base64 32` makes a key");
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    fn read(pairs: &[(&str, &str)]) -> (RowMac, Vec<String>) {
        let env = Env::from_pairs(pairs.iter().copied());
        let mut reader = Reader::new(&env);
        let section = RowMac::read(&mut reader);
        let errors = reader.into_errors();
        assert!(errors.iter().all(|error| !error.to_string().contains("hunter2")));
        (section, errors.into_iter().map(|error| error.variable).collect())
    }

    #[test]
    fn without_a_key_nothing_is_bound() {
        let (section, errors) = read(&[]);
        assert!(section.keys.is_none() && errors.is_empty());
        assert_eq!(section.settle, Duration::from_secs(3_600));
    }

    #[test]
    fn both_keys_count_while_one_takes_the_others_place() {
        let (one, other) = (RowMacKey::generate(), RowMacKey::generate());
        let (section, errors) = read(&[(KEY, one.expose()), (PREVIOUS_KEY, other.expose())]);
        assert!(errors.is_empty() && section.keys.unwrap().previous.is_some());
    }

    #[test]
    fn what_is_no_key_is_an_error_that_shows_no_value() {
        let key = RowMacKey::generate();
        assert_eq!(read(&[(KEY, "hunter2")]).1, [KEY]);
        assert_eq!(read(&[(KEY, key.expose()), (PREVIOUS_KEY, "hunter2")]).1, [PREVIOUS_KEY]);
        assert_eq!(read(&[(PREVIOUS_KEY, key.expose())]).1, [PREVIOUS_KEY]);
        assert_eq!(read(&[(REQUIRED, "true")]).1, [REQUIRED]);
        assert!(read(&[(KEY, key.expose()), (REQUIRED, "true")]).0.required);
    }
}
