//! Public keys from PEM text (RFC 7468): `PUBLIC KEY` (RFC 5280, SubjectPublicKeyInfo), `RSA PUBLIC
//! KEY` (RFC 8017, A.1.1) and `CERTIFICATE` (RFC 5280, of which only the key is read: the
//! configuration makes it trusted).
//!
//! The DER parser supports only these three. It does not copy, and cannot read past the end of the
//! input.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A public key. RSA numbers are big-endian, without leading zeros.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PublicKey {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    /// An uncompressed point.
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// Why a PEM text is not a usable public key. The texts are shown in start-up errors and quote
/// nothing of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PemError {
    NotPem,
    PrivateKey,
    UnknownLabel,
    Damaged,
    UnsupportedKey,
}

impl PemError {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NotPem => {
                "is not PEM text: it takes `-----BEGIN PUBLIC KEY-----` or `-----BEGIN CERTIFICATE-----`"
            }
            Self::PrivateKey => "is a private key; only the public key or its certificate belongs here",
            Self::UnknownLabel => {
                "is PEM of another kind: it takes a PUBLIC KEY, an RSA PUBLIC KEY or a CERTIFICATE"
            }
            Self::Damaged => "is PEM text whose content cannot be read",
            Self::UnsupportedKey => "holds a key that is neither RSA, P-256, P-384 nor Ed25519",
        }
    }
}

/// The first public key in `text`.
pub(super) fn parse(text: &str) -> Result<PublicKey, PemError> {
    let (_, after) = text.split_once("-----BEGIN ").ok_or(PemError::NotPem)?;
    let (label, after) = after.split_once("-----").ok_or(PemError::NotPem)?;
    if label.ends_with("PRIVATE KEY") {
        return Err(PemError::PrivateKey);
    }
    let (body, _) = after.split_once("-----END ").ok_or(PemError::NotPem)?;
    let base64: String = body.split_ascii_whitespace().collect();
    let der = STANDARD.decode(base64).map_err(|_| PemError::Damaged)?;
    match label {
        "PUBLIC KEY" => subject_public_key_info(&mut Der(&der)),
        "RSA PUBLIC KEY" => rsa_public_key(&der).ok_or(PemError::Damaged),
        "CERTIFICATE" => certificate(&der),
        _ => Err(PemError::UnknownLabel),
    }
}

fn certificate(der: &[u8]) -> Result<PublicKey, PemError> {
    let spki = || {
        let mut fields = Der(Der(Der(der).take(SEQUENCE)?).take(SEQUENCE)?);
        fields.skip_if(EXPLICIT_0)?; // version
        fields.take(INTEGER)?; // serialNumber
        for _signature_issuer_validity_subject in 0..4 {
            fields.take(SEQUENCE)?;
        }
        Some(fields)
    };
    subject_public_key_info(&mut spki().ok_or(PemError::Damaged)?)
}

fn subject_public_key_info(der: &mut Der<'_>) -> Result<PublicKey, PemError> {
    // 1.2.840.113549.1.1.1, 1.2.840.10045.2.1, 1.2.840.10045.3.1.7, 1.3.132.0.34, 1.3.101.112
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
    const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

    let mut read = || {
        let mut spki = Der(der.take(SEQUENCE)?);
        let mut algorithm = Der(spki.take(SEQUENCE)?);
        let key = spki.take(BIT_STRING)?.strip_prefix(&[0])?; // no unused bits
        Some((algorithm.take(OID)?, algorithm.take(OID), key))
    };
    let (algorithm, parameter, key) = read().ok_or(PemError::Damaged)?;
    match (algorithm, parameter) {
        (RSA, _) => rsa_public_key(key).ok_or(PemError::Damaged),
        (EC, Some(P256)) if is_point(key, 32) => Ok(PublicKey::P256(key.to_vec())),
        (EC, Some(P384)) if is_point(key, 48) => Ok(PublicKey::P384(key.to_vec())),
        (ED25519, None) if key.len() == 32 => Ok(PublicKey::Ed25519(key.to_vec())),
        _ => Err(PemError::UnsupportedKey),
    }
}

/// Whether the bytes have the form of an uncompressed point (SEC 1, 2.3.3). ring checks with each
/// signature that it is on the curve.
fn is_point(bytes: &[u8], coordinate: usize) -> bool {
    bytes.len() == 1 + 2 * coordinate && bytes[0] == 4
}

fn rsa_public_key(der: &[u8]) -> Option<PublicKey> {
    let mut numbers = Der(Der(der).take(SEQUENCE)?);
    let mut number = || Some(without_leading_zeros(numbers.take(INTEGER)?).to_vec());
    Some(PublicKey::Rsa { n: number()?, e: number()? })
}

/// The big-endian bytes of a number in their shortest form, which ring requires.
pub(super) fn without_leading_zeros(number: &[u8]) -> &[u8] {
    &number[number.iter().take_while(|byte| **byte == 0).count()..]
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const EXPLICIT_0: u8 = 0xa0;

/// The rest of a sequence of DER values (X.690, section 8.1).
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The content of the next value. Reads nothing if it does not have this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let rest = self.0.strip_prefix(&[tag])?;
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(*first), rest),
            // Lengths in 1 to 3 bytes: no key is larger.
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(content)
    }

    fn skip_if(&mut self, tag: u8) -> Option<()> {
        if self.0.first() == Some(&tag) {
            self.take(tag)?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::jwt::testkit::pem;

    #[test]
    fn a_certificate_and_its_public_key_hold_the_same_key() {
        for name in ["rsa2048", "p256", "p384", "ed25519"] {
            let key = parse(&pem(&format!("{name}.public"))).unwrap();
            assert_eq!(parse(&pem(&format!("{name}.certificate"))).unwrap(), key, "{name}");
        }
    }

    #[test]
    fn pkcs1_gives_the_same_key_as_the_subject_public_key_info() {
        assert_eq!(parse(&pem("rsa2048.pkcs1")), parse(&pem("rsa2048.public")));
    }

    #[test]
    fn a_certificate_of_version_1_without_version_field_is_read() {
        assert_eq!(parse(&pem("rsa2048.certificate-v1")), parse(&pem("rsa2048.public")));
    }

    #[test]
    fn the_error_says_why_a_text_has_no_usable_public_key() {
        for (text, error) in [
            ("", PemError::NotPem),
            ("-----BEGIN PUBLIC KEY-----", PemError::NotPem),
            ("-----BEGIN PUBLIC KEY-----\n!!!!\n-----END PUBLIC KEY-----", PemError::Damaged),
            ("-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----", PemError::Damaged),
            ("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----", PemError::Damaged),
            ("-----BEGIN EC PARAMETERS-----\nMAA=\n-----END EC PARAMETERS-----", PemError::UnknownLabel),
            (&pem("rsa2048.private"), PemError::PrivateKey),
            (&pem("p521.public"), PemError::UnsupportedKey),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn no_truncated_key_is_accepted_or_panics() {
        let text = pem("rsa2048.certificate");
        let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = STANDARD.decode(body).unwrap();
        // The key ends well before the signature, but the outer length covers everything: no prefix
        // is valid.
        assert!((0..der.len()).all(|length| certificate(&der[..length]).is_err()));
    }
}
