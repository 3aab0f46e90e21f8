//! Bodies and answers of the Transit engine's batch endpoints
//! (<https://developer.hashicorp.com/vault/api-docs/secret/transit>).
//!
//! **No key is ever created.** Vault's encrypt creates a key that does not exist when the token has
//! `create` on the path and `disable_upsert` is off; data would then be wrapped under a key that
//! the customer never made. Every encrypt therefore names the type `ecdsa-p256`. Vault reads the
//! field only when it would create a key, and then refuses a type that cannot encrypt, in the same
//! request, so there is no race with a separate check. Decrypt and rewrap create nothing. One case
//! remains: a key that somebody deletes and creates again under the same name is another key, and
//! DEKs that the first one wrapped are then
//! [`InvalidWrappedDek`](KmsErrorClass::InvalidWrappedDek). Customers should also give `update`
//! only, and set `disable_upsert`.
//!
//! **No associated data.** Vault's rewrap does not support it, so a DEK that is bound that way
//! could not be rotated. The commitment in each token binds tenant and DEK id. [`SCHEME`] records
//! this in each row.
//!
//! A DEK in base64 is as secret as the DEK: bodies are written into memory that is wiped, and
//! answers are read in place.

use std::num::NonZeroU64;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::crypto::Dek;
use crate::kms::http::Reply;
use crate::kms::{Answer, ItemResult, KmsError, KmsErrorClass};
use crate::model::{KeyVersion, Wrapped};

use super::errors::{self, TYPE_THAT_IS_NEVER_CREATED};

/// The wrap scheme of this provider: the DEK's 32 bytes are the plaintext, nothing is bound to
/// them.
pub(super) const SCHEME: i16 = 1;

/// The longest ciphertext that is sent: ours are some 80 bytes, 700 under RSA-4096; a longer one
/// was altered.
const MAX_WRAPPED_BYTES: usize = 4096;

/// The length of a DEK in base64.
const DEK_CHARACTERS: usize = 44;

/// The body of `encrypt/<key>`.
pub(super) fn encrypt_body<'a>(
    deks: impl ExactSizeIterator<Item = &'a Dek>,
    version: Option<NonZeroU64>,
) -> Zeroizing<Vec<u8>> {
    let version = version.map(|version| format!(r#","key_version":{version}"#)).unwrap_or_default();
    let head = format!(r#"{{"type":"{TYPE_THAT_IS_NEVER_CREATED}","batch_input":["#);
    let item = r#"{"plaintext":""},"#.len() + DEK_CHARACTERS + version.len();
    // At its final size: growing would leave DEKs behind in freed memory.
    let mut body = Zeroizing::new(Vec::with_capacity(head.len() + deks.len() * item + 2));
    body.extend_from_slice(head.as_bytes());
    for (index, dek) in deks.enumerate() {
        if index > 0 {
            body.push(b',');
        }
        let mut text = Zeroizing::new([0; DEK_CHARACTERS]);
        STANDARD.encode_slice(dek.expose(), text.as_mut()).expect("32 bytes are 44 characters");
        body.extend_from_slice(br#"{"plaintext":""#);
        body.extend_from_slice(text.as_ref());
        body.push(b'"');
        body.extend_from_slice(version.as_bytes());
        body.push(b'}');
    }
    body.extend_from_slice(b"]}");
    body
}

/// The body of `decrypt/<key>` and `rewrap/<key>`, which holds no secret.
pub(super) fn ciphertexts_body<'a>(
    ciphertexts: impl Iterator<Item = &'a str>,
    version: Option<NonZeroU64>,
) -> Vec<u8> {
    let items: Vec<_> = ciphertexts
        .map(|ciphertext| match version {
            Some(version) => serde_json::json!({ "ciphertext": ciphertext, "key_version": version }),
            None => serde_json::json!({ "ciphertext": ciphertext }),
        })
        .collect();
    serde_json::json!({ "batch_input": items }).to_string().into_bytes()
}

/// The text of a wrapped DEK, if our key can have wrapped it.
pub(super) fn ciphertext(wrapped: &Wrapped) -> Result<&str, KmsErrorClass> {
    if wrapped.scheme != SCHEME || wrapped.bytes.len() > MAX_WRAPPED_BYTES {
        return Err(KmsErrorClass::InvalidWrappedDek);
    }
    let text = std::str::from_utf8(&wrapped.bytes).map_err(|_| KmsErrorClass::InvalidWrappedDek)?;
    version_of(text).map(|_| text).ok_or(KmsErrorClass::InvalidWrappedDek)
}

/// The number `N` of `vault:vN:…`.
pub(super) fn version_of(ciphertext: &str) -> Option<NonZeroU64> {
    let (version, rest) = ciphertext.strip_prefix("vault:v")?.split_once(':')?;
    let digits = !rest.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| version.parse().ok())?
}

/// The items of an answer, `count` of them; the outer error is that of the request as a whole.
///
/// Where an item fails, encrypt and decrypt answer 400 (or 500) with all items, rewrap answers 200.
pub(super) fn read_items<T>(
    reply: &Reply,
    count: usize,
    mut read: impl FnMut(&Item<'_>) -> Option<T>,
) -> Result<Vec<ItemResult<T>>, KmsError> {
    let answer = match serde_json::from_slice::<BatchAnswer<'_>>(&reply.body) {
        Ok(answer) => answer,
        Err(_) if reply.status == 200 => return Err(internal(reply, None)),
        Err(_) => return Err(errors::of_reply(reply)),
    };
    let request_id = answer.request_id.and_then(request_id);
    if answer.data.batch_results.len() != count {
        return Err(internal(reply, request_id));
    }
    let items = answer.data.batch_results.iter().map(|item| match &item.error {
        Some(text) if !text.is_empty() => {
            let class = errors::of_text(text).unwrap_or(KmsErrorClass::Internal);
            Err(KmsError::answered(class, reply.status, request_id.clone()))
        }
        _ => match read(item) {
            Some(value) => Ok(Answer { value, request_id: request_id.clone() }),
            None => Err(internal(reply, request_id.clone())),
        },
    });
    Ok(items.collect())
}

/// The wrapped DEK in an item of `encrypt` or `rewrap`; `None` if it has none, or was not wrapped
/// under `version`.
pub(super) fn wrapped(item: &Item<'_>, key: &Arc<str>, version: Option<NonZeroU64>) -> Option<Wrapped> {
    let text = item.ciphertext?;
    let made = version_of(text)?;
    if version.is_some_and(|asked| asked != made) || text.len() > MAX_WRAPPED_BYTES {
        return None;
    }
    let key_version = KeyVersion::new(Arc::clone(key), made.to_string());
    Some(Wrapped { bytes: text.as_bytes().to_vec(), key_version, scheme: SCHEME })
}

/// The DEK in an item of `decrypt`; `None` unless it has the length of a DEK.
pub(super) fn dek(item: &Item<'_>) -> Option<Dek> {
    let mut bytes = Zeroizing::new([0; DEK_CHARACTERS]);
    let text = item.plaintext.filter(|text| text.len() == DEK_CHARACTERS)?;
    let length = STANDARD.decode_slice(text, bytes.as_mut()).ok()?;
    Dek::from_slice(bytes.get(..length)?)
}

/// One item of `batch_results`. It is borrowed, so that no copy of a DEK is made: Vault escapes no
/// character of base64.
#[derive(Deserialize)]
pub(super) struct Item<'a> {
    plaintext: Option<&'a str>,
    ciphertext: Option<&'a str>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct BatchAnswer<'a> {
    request_id: Option<&'a str>,
    #[serde(borrow)]
    data: Batch<'a>,
}

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    batch_results: Vec<Item<'a>>,
}

/// The request id, which goes into logs and so must look like the UUID that it is.
fn request_id(text: &str) -> Option<Arc<str>> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (plain && (1..=64).contains(&text.len())).then(|| text.into())
}

fn internal(reply: &Reply, request_id: Option<Arc<str>>) -> KmsError {
    KmsError::answered(KmsErrorClass::Internal, reply.status, request_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;

    fn reply(status: u16, body: &str) -> Reply {
        Reply { status, headers: HeaderMap::new(), body: Zeroizing::new(body.as_bytes().to_vec()) }
    }

    fn wrapped_bytes(bytes: &[u8]) -> Wrapped {
        Wrapped { bytes: bytes.to_vec(), key_version: KeyVersion::new("byok", "1"), scheme: SCHEME }
    }

    #[test]
    fn an_encrypt_body_is_json_with_the_type_never_created() {
        let deks = [Dek::generate(), Dek::generate()];
        let body = encrypt_body(deks.iter(), NonZeroU64::new(3));
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json["type"], "ecdsa-p256");
        assert_eq!(json["batch_input"][1]["plaintext"], STANDARD.encode(deks[1].expose()));
        assert_eq!(json["batch_input"][1]["key_version"], 3);
    }

    #[test]
    fn an_encrypt_body_never_grows() {
        let deks: Vec<_> = (0..5).map(|_| Dek::generate()).collect();
        for version in [None, NonZeroU64::new(12)] {
            let body = encrypt_body(deks.iter(), version);
            assert!(body.len() <= body.capacity() && body.capacity() - body.len() < 8);
        }
    }

    #[test]
    fn what_cannot_be_a_wrapped_dek_is_not_sent() {
        assert!(ciphertext(&wrapped_bytes(b"vault:v1:abc=")).is_ok());
        let long = [b"vault:v1:".to_vec(), vec![b'a'; 5000]].concat();
        for bad in
            [&b""[..], b"vault:v1:", b"vault:v0:a", b"vault:v+1:a", b"vault:1:a", b"\xff", b"{}", &long]
        {
            assert_eq!(ciphertext(&wrapped_bytes(bad)), Err(KmsErrorClass::InvalidWrappedDek));
        }
        let other = Wrapped { scheme: 2, ..wrapped_bytes(b"vault:v1:abc=") };
        assert!(ciphertext(&other).is_err());
    }

    #[test]
    fn an_answer_with_fewer_items_than_requested_is_an_error() {
        let reply =
            reply(200, r#"{"request_id":"r-1","data":{"batch_results":[{"ciphertext":"vault:v1:a"}]}}"#);
        assert_eq!(read_items(&reply, 2, |_| Some(())).err().unwrap().class, KmsErrorClass::Internal);
        assert_eq!(
            read_items(&reply, 1, |_| Some(())).unwrap()[0].as_ref().unwrap().request_id.as_deref(),
            Some("r-1")
        );
    }

    #[test]
    fn a_rewrap_to_another_version_than_requested_is_an_error() {
        let reply = reply(200, r#"{"data":{"batch_results":[{"ciphertext":"vault:v1:a"}]}}"#);
        let read =
            |version| read_items(&reply, 1, |item| wrapped(item, &"byok".into(), version)).unwrap().remove(0);
        assert!(read(NonZeroU64::new(1)).is_ok());
        assert_eq!(read(NonZeroU64::new(2)).err().unwrap().class, KmsErrorClass::Internal);
    }

    #[test]
    fn a_plaintext_that_is_no_dek_is_an_error() {
        for text in
            [STANDARD.encode([7; 31]), STANDARD.encode([7; 33]), STANDARD.encode([7; 16]), "!".repeat(44)]
        {
            let reply = reply(200, &format!(r#"{{"data":{{"batch_results":[{{"plaintext":"{text}"}}]}}}}"#));
            assert_eq!(
                read_items(&reply, 1, dek).unwrap().remove(0).err().unwrap().class,
                KmsErrorClass::Internal
            );
        }
    }

    #[test]
    fn a_request_id_that_could_forge_log_lines_is_omitted() {
        assert!(request_id("a6a4b8ea-d830-18cf-22f4-e0cf2d830031").is_some());
        assert!(request_id("a\nb").is_none());
        assert!(request_id(&"a".repeat(65)).is_none());
    }
}
