//! Bodies and answers of `encrypt` and `decrypt`
//! (<https://cloud.google.com/kms/docs/reference/rest/v1/projects.locations.keyRings.cryptoKeys/encrypt>).
//!
//! **Associated data.** Every DEK is bound to its tenant and id: 43 bytes, `byok-dek-v1` in ASCII,
//! the tenant's uid (16 bytes), the DEK's id (16). [`SCHEME`] records this in each row. For a
//! probe, `purpose=probe` in ASCII follows.
//!
//! **Checksums.** Every value is sent with its CRC32C (RFC 3720, appendix B.4). An answer is used
//! only if Google says that it verified each checksum, and the answer's own checksum matches
//! (<https://cloud.google.com/kms/docs/data-integrity-guidelines>).
//!
//! A DEK in base64, and its checksum, are as secret as the DEK: bodies are written into memory that
//! is wiped, and answers are read in place.

use std::borrow::Cow;
use std::num::NonZeroU64;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc::{CRC_32_ISCSI, Crc, Table};
use serde::Deserialize;
use zeroize::{Zeroize as _, Zeroizing};

use crate::config::GcpKey;
use crate::crypto::Dek;
use crate::kms::{DekBinding, KmsErrorClass, Purpose};
use crate::model::{KeyVersion, Wrapped};

/// The wrap scheme of this provider: the DEK's 32 bytes are the plaintext, bound by [`associated`].
pub(super) const SCHEME: i16 = 1;

/// The longest ciphertext that is sent: ours are some 115 bytes, a longer one was altered.
const MAX_WRAPPED_BYTES: usize = 4096;
/// The length of a DEK in base64.
const DEK_CHARACTERS: usize = 44;
/// The most digits of a checksum.
const CRC_DIGITS: usize = 10;
const LABEL: &[u8] = b"byok-dek-v1";

static CRC32C: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISCSI);

/// The additional authenticated data that binds a DEK at Google.
fn associated(binding: DekBinding) -> Vec<u8> {
    let purpose: &[u8] = match binding.purpose {
        Purpose::Record | Purpose::RecordAhead | Purpose::RecordProbed => b"",
        Purpose::Probe => b"purpose=probe",
        // Google does not log associated data, so this is never requested. It has a value of its
        // own all the same.
        Purpose::Checkpoint(_) => b"purpose=checkpoint",
    };
    [LABEL, &binding.tenant.0, binding.dek_id.as_bytes(), purpose].concat()
}

/// The body of `encrypt`.
pub(super) fn encrypt_body(binding: DekBinding, dek: &Dek) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new([0; DEK_CHARACTERS]);
    STANDARD.encode_slice(dek.expose(), text.as_mut()).expect("32 bytes are 44 characters");
    let mut checksum = Zeroizing::new([0; CRC_DIGITS]);
    let checksum = digits(CRC32C.checksum(dek.expose()), &mut checksum);
    body(binding, ["{\"plaintext\":\"", "\",\"plaintextCrc32c\":\""], text.as_ref(), checksum)
}

/// The body of `decrypt`, which holds no secret.
pub(super) fn decrypt_body(binding: DekBinding, ciphertext: &[u8]) -> Zeroizing<Vec<u8>> {
    let text = STANDARD.encode(ciphertext);
    let mut checksum = [0; CRC_DIGITS];
    let checksum = digits(CRC32C.checksum(ciphertext), &mut checksum);
    body(binding, ["{\"ciphertext\":\"", "\",\"ciphertextCrc32c\":\""], text.as_bytes(), checksum)
}

fn body(binding: DekBinding, names: [&str; 2], text: &[u8], checksum: &[u8]) -> Zeroizing<Vec<u8>> {
    let associated = associated(binding);
    let rest = format!(
        r#"","additionalAuthenticatedData":"{}","additionalAuthenticatedDataCrc32c":"{}"}}"#,
        STANDARD.encode(&associated),
        CRC32C.checksum(&associated),
    );
    let parts = [names[0].as_bytes(), text, names[1].as_bytes(), checksum, rest.as_bytes()];
    // At its final size: growing would leave a DEK behind in freed memory.
    let mut body = Zeroizing::new(Vec::with_capacity(parts.iter().map(|part| part.len()).sum()));
    parts.iter().for_each(|part| body.extend_from_slice(part));
    body
}

/// Writes a checksum in decimal, without a copy on the heap.
fn digits(mut number: u32, into: &mut [u8; CRC_DIGITS]) -> &[u8] {
    let mut at = CRC_DIGITS;
    loop {
        at -= 1;
        into[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &into[at..];
        }
    }
}

/// The ciphertext to send, if the key can have made it.
pub(super) fn ciphertext<'a>(wrapped: &'a Wrapped, key: &GcpKey) -> Result<&'a [u8], KmsErrorClass> {
    // The row comes from the database, so its key must be compared with the configured one.
    if *wrapped.key_version.key != *key.key {
        return Err(KmsErrorClass::WrappedByAnotherKey);
    }
    if version_number(&wrapped.key_version).is_none() {
        return Err(KmsErrorClass::Misconfigured);
    }
    let length = wrapped.bytes.len();
    if wrapped.scheme != SCHEME || !(1..=MAX_WRAPPED_BYTES).contains(&length) {
        return Err(KmsErrorClass::InvalidWrappedDek);
    }
    Ok(&wrapped.bytes)
}

/// The number of a version: only digits, because it goes into a path.
pub(super) fn version_number(version: &KeyVersion) -> Option<NonZeroU64> {
    version.version.bytes().all(|byte| byte.is_ascii_digit()).then(|| version.version.parse().ok())?
}

/// The wrapped DEK in an answer of `encrypt`. `None` unless all of it was verified, and our key
/// wrapped it under the version that was asked for.
pub(super) fn wrapped(json: &[u8], key: &GcpKey, asked: Option<NonZeroU64>) -> Option<Wrapped> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Encrypted<'a> {
        name: &'a str,
        #[serde(borrow)]
        ciphertext: Cow<'a, str>,
        ciphertext_crc32c: &'a str,
        #[serde(default)]
        verified_plaintext_crc32c: bool,
        #[serde(default)]
        verified_additional_authenticated_data_crc32c: bool,
    }

    let answer: Encrypted<'_> = serde_json::from_slice(json).ok()?;
    if !answer.verified_plaintext_crc32c || !answer.verified_additional_authenticated_data_crc32c {
        return None;
    }
    let bytes = STANDARD.decode(answer.ciphertext.as_bytes()).ok()?;
    let fits = answer.ciphertext_crc32c.parse() == Ok(CRC32C.checksum(&bytes));
    let version = version_of(answer.name, key)?;
    let right = asked.is_none_or(|asked| asked == version) && (1..=MAX_WRAPPED_BYTES).contains(&bytes.len());
    (fits && right).then(|| Wrapped {
        bytes,
        key_version: KeyVersion::new(Arc::from(key.key.as_str()), version.to_string()),
        scheme: SCHEME,
    })
}

/// The DEK in an answer of `decrypt`. `None` unless it has the length of a DEK and its checksum
/// matches.
pub(super) fn dek(json: &[u8]) -> Option<Dek> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Decrypted<'a> {
        #[serde(borrow)]
        plaintext: Cow<'a, str>,
        plaintext_crc32c: &'a str,
    }

    let mut answer: Decrypted<'_> = serde_json::from_slice(json).ok()?;
    let mut bytes = Zeroizing::new([0; DEK_CHARACTERS]);
    let length = match answer.plaintext.len() {
        DEK_CHARACTERS => STANDARD.decode_slice(answer.plaintext.as_bytes(), bytes.as_mut()).ok(),
        _ => None,
    };
    // The text is owned only if something in it was escaped.
    if let Cow::Owned(text) = &mut answer.plaintext {
        text.zeroize();
    }
    let bytes = bytes.get(..length?)?;
    (answer.plaintext_crc32c.parse() == Ok(CRC32C.checksum(bytes))).then(|| Dek::from_slice(bytes))?
}

/// The number of the version that an answer names, if it belongs to our key. A project may be
/// configured by its number and returned by its id, or the other way round.
fn version_of(name: &str, key: &GcpKey) -> Option<NonZeroU64> {
    let (project, rest) = name.strip_prefix("projects/")?.split_once('/')?;
    let number = |project: &str| project.bytes().all(|byte| byte.is_ascii_digit());
    let ours = project == key.project || number(project) != number(&key.project);
    let path =
        format!("locations/{}/keyRings/{}/cryptoKeys/{}/cryptoKeyVersions/", key.location, key.ring, key.key);
    let version = rest.strip_prefix(&path).filter(|_| ours)?;
    version_number(&KeyVersion::new("", version))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::{DekId, TenantUid};

    #[test]
    fn only_a_probe_is_bound_to_its_purpose() {
        let record =
            DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record };
        let bytes = [&b"byok-dek-v1"[..], &[7; 16], record.dek_id.as_bytes()].concat();
        assert_eq!(associated(record), bytes);
        let probe = DekBinding { purpose: Purpose::Probe, ..record };
        assert_eq!(associated(probe), [&bytes[..], b"purpose=probe"].concat());
    }

    fn key() -> GcpKey {
        GcpKey {
            project: "p".to_owned(),
            location: "l".to_owned(),
            ring: "r".to_owned(),
            key: "k".to_owned(),
            version: None,
        }
    }

    fn binding() -> DekBinding {
        DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record }
    }

    fn encrypted() -> Value {
        json!({
            "name": "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/3",
            "ciphertext": STANDARD.encode(b"sealed"), "ciphertextCrc32c": CRC32C.checksum(b"sealed").to_string(),
            "verifiedPlaintextCrc32c": true, "verifiedAdditionalAuthenticatedDataCrc32c": true,
            "protectionLevel": "SOFTWARE",
        })
    }

    fn with(mut json: Value, name: &str, value: impl Into<Value>) -> Value {
        json[name] = value.into();
        json
    }

    fn read(answer: &Value, asked: u64) -> Option<Wrapped> {
        wrapped(answer.to_string().as_bytes(), &key(), NonZeroU64::new(asked))
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(CRC32C.checksum(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn a_dek_is_bound_to_its_tenant_and_id() {
        let binding = binding();
        let data = associated(binding);
        assert_eq!(&data[..11], b"byok-dek-v1");
        assert_eq!(data[11..27], binding.tenant.0);
        assert_eq!(data[27..], *binding.dek_id.as_bytes());
    }

    #[test]
    fn a_body_holds_everything_with_its_checksum_and_never_grows() {
        let (binding, dek) = (binding(), Dek::generate());
        let body = encrypt_body(binding, &dek);
        assert_eq!(body.len(), body.capacity());
        let json: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json["plaintext"], STANDARD.encode(dek.expose()));
        assert_eq!(json["plaintextCrc32c"], CRC32C.checksum(dek.expose()).to_string());
        let body = decrypt_body(binding, b"sealed");
        let json: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json["ciphertext"], STANDARD.encode(b"sealed"));
        assert_eq!(json["ciphertextCrc32c"], CRC32C.checksum(b"sealed").to_string());
        assert_eq!(json["additionalAuthenticatedData"], STANDARD.encode(associated(binding)));
        let checksum = CRC32C.checksum(&associated(binding)).to_string();
        assert_eq!(json["additionalAuthenticatedDataCrc32c"], checksum);
    }

    #[test]
    fn digits_are_those_of_the_number() {
        for number in [0, 7, 10, u32::MAX] {
            assert_eq!(digits(number, &mut [0; CRC_DIGITS]), number.to_string().as_bytes());
        }
    }

    #[test]
    fn a_verified_answer_is_taken() {
        let wrapped = read(&encrypted(), 0).unwrap();
        assert_eq!(
            (wrapped.bytes.as_slice(), wrapped.key_version),
            (&b"sealed"[..], KeyVersion::new("k", "3"))
        );
        assert!(read(&encrypted(), 3).is_some());
    }

    #[test]
    fn an_answer_with_anything_wrong_in_it_is_not() {
        let name = |name: &str| with(encrypted(), "name", name);
        for bad in [
            with(encrypted(), "ciphertext", STANDARD.encode(b"sealeD")),
            with(encrypted(), "ciphertext", "!"),
            with(encrypted(), "ciphertextCrc32c", "1"),
            with(encrypted(), "ciphertextCrc32c", Value::Null),
            with(encrypted(), "verifiedPlaintextCrc32c", false),
            with(encrypted(), "verifiedAdditionalAuthenticatedDataCrc32c", false),
            name("projects/p/locations/l/keyRings/r/cryptoKeys/k"),
            name("projects/p/locations/l/keyRings/r/cryptoKeys/other/cryptoKeyVersions/3"),
            name("projects/q/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/3"),
            name("projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/+3"),
            json!({}),
        ] {
            assert!(read(&bad, 0).is_none(), "{bad}");
        }
        assert!(read(&encrypted(), 2).is_none());
    }

    #[test]
    fn a_project_may_be_named_by_number_or_id() {
        let path = "locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/3";
        assert!(version_of(&format!("projects/12345/{path}"), &key()).is_some());
        let numbered = GcpKey { project: "12345".to_owned(), ..key() };
        assert!(version_of(&format!("projects/p/{path}"), &numbered).is_some());
        assert!(version_of(&format!("projects/54321/{path}"), &numbered).is_none());
    }

    #[test]
    fn a_dek_is_taken_if_its_checksum_fits() {
        let secret = Dek::generate();
        let answer = |bytes: &[u8], checksum: u32| {
            json!({ "plaintext": STANDARD.encode(bytes), "plaintextCrc32c": checksum.to_string() })
                .to_string()
        };
        let good = answer(secret.expose(), CRC32C.checksum(secret.expose()));
        assert_eq!(dek(good.as_bytes()).unwrap().expose(), secret.expose());
        let escaped = good.replace('=', "\\u003d");
        assert_eq!(dek(escaped.as_bytes()).unwrap().expose(), secret.expose());
        assert!(dek(answer(secret.expose(), 7).as_bytes()).is_none());
        for other in [&[7; 31][..], &[7; 33], &[]] {
            assert!(dek(answer(other, CRC32C.checksum(other)).as_bytes()).is_none());
        }
    }

    #[test]
    fn what_cannot_be_a_wrapped_dek_is_not_sent() {
        let good = read(&encrypted(), 0).unwrap();
        assert!(ciphertext(&good, &key()).is_ok());
        let of = |wrapped: Wrapped| ciphertext(&wrapped, &key()).err();
        assert_eq!(of(Wrapped { bytes: Vec::new(), ..good.clone() }), Some(KmsErrorClass::InvalidWrappedDek));
        assert_eq!(
            of(Wrapped { bytes: vec![0; 5000], ..good.clone() }),
            Some(KmsErrorClass::InvalidWrappedDek)
        );
        assert_eq!(of(Wrapped { scheme: 2, ..good.clone() }), Some(KmsErrorClass::InvalidWrappedDek));
        for (key, version, class) in [
            ("other", "3", KmsErrorClass::WrappedByAnotherKey),
            ("k", "3/../2", KmsErrorClass::Misconfigured),
            ("k", "0", KmsErrorClass::Misconfigured),
        ] {
            let key_version = KeyVersion::new(key, version);
            assert_eq!(of(Wrapped { key_version, ..good.clone() }), Some(class));
        }
    }
}
