//! Bodies and answers of `wrapkey` and `unwrapkey` (Key Vault REST API, `KeyOperationsParameters`
//! and `KeyOperationResult`). They are written and read here instead of by the client's own types,
//! so that memory that holds a DEK is wiped.

use std::borrow::Cow;
use std::io::Write as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use reqwest::Url;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::config::{AzureAlgorithm, AzureKey, is_azure_version};
use crate::crypto::Dek;
use crate::kms::KmsErrorClass;
use crate::model::{KeyVersion, Wrapped};

/// The wrap scheme of this provider; see the table in `kms`.
const SCHEME: i16 = 1;
/// The length of a DEK in base64url.
const DEK_CHARACTERS: usize = 43;

/// The decoder of base64url, padded or not.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The body `{"alg":…,"value":…}`, which never grows, so that no copy of the value is left behind.
pub(super) fn body(algorithm: AzureAlgorithm, value: &[u8]) -> Zeroizing<Vec<u8>> {
    let characters = value.len().div_ceil(3) * 4;
    let mut body = Zeroizing::new(Vec::with_capacity(64 + characters));
    // Writing to memory does not fail.
    let _ = write!(&mut *body, r#"{{"alg":"{}","value":""#, algorithm.name());
    let start = body.len();
    body.resize(start + characters, 0);
    let written = URL_SAFE_NO_PAD.encode_slice(value, &mut body[start..]).unwrap_or(0);
    body.truncate(start + written);
    body.extend_from_slice(br#""}"#);
    body
}

/// The version that unwraps and the bytes to send, if our key can have wrapped this DEK. The row
/// comes from the database, so its key must be compared with ours: it must not choose a path in the
/// vault.
pub(super) fn checked<'a>(
    key: &AzureKey,
    wrapped: &'a Wrapped,
) -> Result<(&'a str, &'a [u8]), KmsErrorClass> {
    if *wrapped.key_version.key != *key.name {
        return Err(KmsErrorClass::WrappedByAnotherKey);
    }
    let length_fits = match key.algorithm {
        // As long as the key: 2048, 3072 or 4096 bit.
        AzureAlgorithm::RsaOaep256 => matches!(wrapped.bytes.len(), 256 | 384 | 512),
        // RFC 3394: eight bytes more than the DEK.
        AzureAlgorithm::A256Kw => wrapped.bytes.len() == 40,
    };
    if wrapped.scheme != SCHEME || !is_azure_version(&wrapped.key_version.version) || !length_fits {
        return Err(KmsErrorClass::InvalidWrappedDek);
    }
    Ok((&wrapped.key_version.version, &wrapped.bytes))
}

/// An answer to a wrap or an unwrap; borrowed, so that no copy of a DEK is made.
#[derive(Deserialize)]
pub(super) struct Answer<'a> {
    #[serde(borrow)]
    kid: Cow<'a, str>,
    value: &'a str,
}

impl<'a> Answer<'a> {
    /// The parsed answer of a successful request; `None` if it is malformed.
    pub(super) fn read(body: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// The wrapped DEK; `None` unless our key made it, under `version` if one was asked for.
    pub(super) fn wrapped(&self, key: &AzureKey, name: &Arc<str>, version: Option<&str>) -> Option<Wrapped> {
        let made = self.version(key)?;
        if version.is_some_and(|asked| asked != made) {
            return None;
        }
        let bytes = BASE64URL.decode(self.value).ok()?;
        let wrapped = Wrapped { bytes, key_version: KeyVersion::new(Arc::clone(name), made), scheme: SCHEME };
        // A value that we would refuse to unwrap must not be stored.
        checked(key, &wrapped).is_ok().then_some(wrapped)
    }

    /// The DEK. `None` unless it has the length of a DEK, and the version that was asked for
    /// unwrapped it.
    pub(super) fn dek(&self, key: &AzureKey, version: &str) -> Option<Dek> {
        if self.version(key)? != version || !(DEK_CHARACTERS..=DEK_CHARACTERS + 1).contains(&self.value.len())
        {
            return None;
        }
        let mut bytes = Zeroizing::new([0; DEK_CHARACTERS]);
        let length = BASE64URL.decode_slice(self.value, bytes.as_mut()).ok()?;
        Dek::from_slice(bytes.get(..length)?)
    }

    /// The version in `kid`. `None` unless that belongs to our vault and our key. Azure ignores the
    /// case of names.
    fn version(&self, key: &AzureKey) -> Option<String> {
        let kid = Url::parse(&self.kid).ok()?;
        if kid.origin() != key.vault.origin() {
            return None;
        }
        let mut segments = kid.path_segments()?;
        let (keys, name, version) = (segments.next()?, segments.next()?, segments.next()?);
        let ours = keys == "keys" && name.eq_ignore_ascii_case(&key.name) && segments.next().is_none();
        (ours && is_azure_version(version)).then(|| version.to_ascii_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AzureService;

    const VERSION: &str = "0123456789abcdef0123456789abcdef";

    fn key(algorithm: AzureAlgorithm) -> AzureKey {
        AzureKey {
            vault: Url::parse("https://v.vault.azure.net").unwrap(),
            name: "byok".to_owned(),
            version: None,
            service: AzureService::Vault,
            resource: "https://vault.azure.net".to_owned(),
            algorithm,
        }
    }

    fn wrapped(length: usize) -> Wrapped {
        Wrapped { bytes: vec![7; length], key_version: KeyVersion::new("byok", VERSION), scheme: SCHEME }
    }

    fn answer(kid: &str, value: &str) -> String {
        serde_json::json!({ "kid": kid, "value": value }).to_string()
    }

    #[test]
    fn a_body_is_json_that_never_grew() {
        for length in [32, 40, 256, 384, 512] {
            let body = body(AzureAlgorithm::RsaOaep256, &vec![0xff; length]);
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(json["alg"], "RSA-OAEP-256");
            assert_eq!(URL_SAFE_NO_PAD.decode(json["value"].as_str().unwrap()).unwrap(), vec![0xff; length]);
            assert!(body.capacity() >= 64 + length.div_ceil(3) * 4);
        }
    }

    #[test]
    fn what_cannot_be_a_wrapped_dek_is_not_sent() {
        let rsa = key(AzureAlgorithm::RsaOaep256);
        for length in [256, 384, 512] {
            assert!(checked(&rsa, &wrapped(length)).is_ok());
        }
        for length in [0, 40, 255, 257, 1024] {
            assert_eq!(checked(&rsa, &wrapped(length)), Err(KmsErrorClass::InvalidWrappedDek));
        }
        let aes = key(AzureAlgorithm::A256Kw);
        assert!(checked(&aes, &wrapped(40)).is_ok() && checked(&aes, &wrapped(256)).is_err());
    }

    #[test]
    fn a_version_in_the_row_cannot_choose_a_path() {
        for version in ["", "..", "../../secrets/x", "0123", &format!("{VERSION}/"), &"g".repeat(32)] {
            let bad = Wrapped { key_version: KeyVersion::new("byok", version), ..wrapped(256) };
            assert_eq!(
                checked(&key(AzureAlgorithm::RsaOaep256), &bad),
                Err(KmsErrorClass::InvalidWrappedDek)
            );
        }
    }

    #[test]
    fn an_answer_of_another_key_is_none() {
        let key = key(AzureAlgorithm::A256Kw);
        let read = |kid: &str| {
            let body = answer(kid, &URL_SAFE_NO_PAD.encode([7; 40]));
            Answer::read(body.as_bytes()).unwrap().wrapped(&key, &"byok".into(), None).is_some()
        };
        assert!(read(&format!("https://v.vault.azure.net/keys/byok/{VERSION}")));
        assert!(read(&format!("https://v.vault.azure.net/keys/BYOK/{VERSION}")));
        for bad in [
            format!("https://w.vault.azure.net/keys/byok/{VERSION}"),
            format!("https://v.vault.azure.net/keys/other/{VERSION}"),
            format!("https://v.vault.azure.net/secrets/byok/{VERSION}"),
            format!("https://v.vault.azure.net/keys/byok/{VERSION}/x"),
            "https://v.vault.azure.net/keys/byok".to_owned(),
            "https://v.vault.azure.net/keys/byok/1".to_owned(),
            VERSION.to_owned(),
        ] {
            assert!(!read(&bad), "{bad}");
        }
    }

    #[test]
    fn a_plaintext_that_is_no_dek_is_none() {
        let key = key(AzureAlgorithm::RsaOaep256);
        let kid = format!("https://v.vault.azure.net/keys/byok/{VERSION}");
        let read = |value: String| {
            let body = answer(&kid, &value);
            Answer::read(body.as_bytes()).unwrap().dek(&key, VERSION).is_some()
        };
        assert!(read(URL_SAFE_NO_PAD.encode([7; 32])));
        assert!(read(format!("{}=", URL_SAFE_NO_PAD.encode([7; 32]))));
        for bad in [URL_SAFE_NO_PAD.encode([7; 31]), URL_SAFE_NO_PAD.encode([7; 33]), "!".repeat(43)] {
            assert!(!read(bad.clone()), "{bad}");
        }
    }

    #[test]
    fn an_answer_under_another_version_than_was_asked_for_is_none() {
        let key = key(AzureAlgorithm::A256Kw);
        let body = answer(
            &format!("https://v.vault.azure.net/keys/byok/{VERSION}"),
            &URL_SAFE_NO_PAD.encode([7; 40]),
        );
        let answer = Answer::read(body.as_bytes()).unwrap();
        assert!(answer.wrapped(&key, &"byok".into(), Some(VERSION)).is_some());
        assert!(answer.wrapped(&key, &"byok".into(), Some(&"0".repeat(32))).is_none());
    }
}
