//! The audit log's checkpoints: their origin, the keys that sign them, and their destinations.

use crate::crypto::{Ed25519SigningKey, NoEd25519Key, SecretText};

use super::{CheckpointDestinations, Reader};

const ORIGIN: &str = "BYOK_AUDIT_ORIGIN";
const KEY: &str = "BYOK_AUDIT_SIGNING_KEY";
const PREVIOUS_KEY: &str = "BYOK_AUDIT_PREVIOUS_SIGNING_KEY";

/// The settings of the log that others verify.
pub struct Audit {
    /// `BYOK_AUDIT_ORIGIN`: the deployment's name, with which the origin of every checkpoint
    /// begins. It has no white space, control characters or `+`, so that it can be a key's name
    /// (c2sp.org/signed-note).
    pub origin: String,
    /// The keys that sign checkpoints. Without them no checkpoints are made.
    pub keys: Option<SigningKeys>,
    /// The destinations where checkpoints are published.
    pub destinations: CheckpointDestinations,
}

/// Ed25519 keys as PKCS#8 in PEM. They are known to be readable.
pub struct SigningKeys {
    current: SecretText,
    previous: Option<SecretText>,
}

impl SigningKeys {
    /// Returns the keys to sign with: `BYOK_AUDIT_SIGNING_KEY` first, and then
    /// `BYOK_AUDIT_PREVIOUS_SIGNING_KEY` if that is set. Use the result only once: the parsed keys
    /// are not wiped.
    pub fn parsed(&self) -> Vec<Ed25519SigningKey> {
        let texts = [Some(&self.current), self.previous.as_ref()];
        texts.into_iter().flatten().filter_map(|text| Ed25519SigningKey::from_pem(text).ok()).collect()
    }

    /// Makes the keys from their texts.
    ///
    /// # Errors
    /// [`NoEd25519Key`].
    pub fn new(current: SecretText, previous: Option<SecretText>) -> Result<Self, NoEd25519Key> {
        for text in [Some(&current), previous.as_ref()].into_iter().flatten() {
            Ed25519SigningKey::from_pem(text)?;
        }
        Ok(Self { current, previous })
    }
}

impl Audit {
    /// Reads the section.
    pub fn read(reader: &mut Reader<'_>) -> Self {
        let origin = reader.text(ORIGIN).unwrap_or_else(|| "byok".to_owned());
        if origin.chars().any(|char| char.is_whitespace() || char.is_control() || char == '+') {
            reader.error(ORIGIN, "is not a name: it holds white space, a control character or `+`");
        }
        let current = key(reader, KEY);
        let previous = key(reader, PREVIOUS_KEY);
        if reader.is_set(PREVIOUS_KEY) && !reader.is_set(KEY) {
            reader.error(PREVIOUS_KEY, format!("is set without {KEY}"));
        }
        if let Some(destination) = CheckpointDestinations::is_set(reader).filter(|_| !reader.is_set(KEY)) {
            reader.error(destination, format!("is set without {KEY}: there are no checkpoints to publish"));
        }
        let destinations = CheckpointDestinations::read(reader);
        let keys = current.map(|current| SigningKeys { current, previous });
        Self { origin, keys, destinations }
    }
}

fn key(reader: &mut Reader<'_>, name: &str) -> Option<SecretText> {
    let text = reader.secret(name)?;
    if Ed25519SigningKey::from_pem(&text).is_err() {
        reader.error(
            name,
            "is not an Ed25519 key in PEM (PKCS#8): `openssl genpkey -algorithm ed25519` makes one",
        );
        return None;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    fn read(pairs: &[(&str, &str)]) -> (Audit, Vec<String>) {
        let env = Env::from_pairs(pairs.iter().copied());
        let mut reader = Reader::new(&env);
        let audit = Audit::read(&mut reader);
        let errors = reader.into_errors();
        assert!(errors.iter().all(|error| !error.to_string().contains("MC4CAQ")));
        (audit, errors.into_iter().map(|error| error.variable).collect())
    }

    #[test]
    fn without_a_key_nothing_is_signed() {
        let (audit, errors) = read(&[]);
        assert!(audit.keys.is_none() && errors.is_empty());
        assert_eq!(audit.origin, "byok");
    }

    #[test]
    fn both_keys_are_kept_while_one_takes_the_others_place() {
        let (one, other) = (Ed25519SigningKey::generate_pem(), Ed25519SigningKey::generate_pem());
        let (audit, errors) = read(&[(KEY, one.expose()), (PREVIOUS_KEY, other.expose())]);
        assert!(errors.is_empty());
        let parsed = audit.keys.unwrap().parsed();
        let of = |text| Ed25519SigningKey::from_pem(text).ok().unwrap().verifying_key();
        let keys: Vec<_> = parsed.iter().map(Ed25519SigningKey::verifying_key).collect();
        assert_eq!(keys, [of(&one), of(&other)]);
    }

    #[test]
    fn what_is_no_key_or_no_name_is_an_error() {
        let key = Ed25519SigningKey::generate_pem();
        assert_eq!(read(&[(KEY, "MC4CAQ")]).1, [KEY]);
        assert_eq!(read(&[(KEY, key.expose()), (PREVIOUS_KEY, "x")]).1, [PREVIOUS_KEY]);
        assert_eq!(read(&[(PREVIOUS_KEY, key.expose())]).1, [PREVIOUS_KEY]);
        for bad in ["a b", "a+b", "a\nb", "a\u{a0}b", "a\u{7}"] {
            assert_eq!(read(&[(ORIGIN, bad)]).1, [ORIGIN], "{bad:?}");
        }
        assert!(read(&[(ORIGIN, "byok.example/eu")]).1.is_empty());
    }
}
