//! The meaning of Vault's and OpenBao's errors. They have no error codes: the HTTP status
//! distinguishes some causes, the others only the text, so this file has the texts in one table.
//! Vault's come from a real Vault 1.21.0, and a test provokes each again
//! (`tests/it/kms_vault_errors.rs`). Those that only OpenBao has are replayed there from its
//! source. The texts are compared and go no further.

use serde::Deserialize;

use crate::kms::http::Reply;
use crate::kms::{KmsError, KmsErrorClass};

/// The key type that every encrypt names, so that it can never create a key: where the key exists
/// Vault ignores the field, where it would create one it refuses this type, which signs only. See
/// [`super::transit`].
pub(super) const TYPE_THAT_IS_NEVER_CREATED: &str = "ecdsa-p256";

/// The comparison of a text of the table.
enum Text {
    Is(&'static str),
    /// A comparison of the beginning: a key type or a path follows.
    Begins(&'static str),
}

const TEXTS: &[(Text, KmsErrorClass)] = &[
    // Our identity: of the policy, of the token.
    (Text::Is("permission denied"), KmsErrorClass::AccessDenied),
    (Text::Is("1 error occurred:\n\t* permission denied\n\n"), KmsErrorClass::AccessDenied),
    (
        Text::Is("2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"),
        KmsErrorClass::CredentialInvalid,
    ),
    (Text::Is("invalid role or secret ID"), KmsErrorClass::CredentialInvalid),
    // OpenBao from 2.3 on, and Vault Enterprise: an administrator's lock on a namespace. The path
    // follows.
    (
        Text::Begins("API access to this namespace has been locked by an administrator"),
        KmsErrorClass::AccessDenied,
    ),
    // The key.
    (Text::Is("encryption key not found"), KmsErrorClass::KeyNotFound),
    // OpenBao: `soft-delete`, until `soft-delete-restore`.
    (Text::Is("refusing to use soft-deleted key"), KmsErrorClass::KeyDisabled),
    (Text::Is("key type ecdsa-p256 not supported for this operation"), KmsErrorClass::KeyNotFound),
    (Text::Begins("message encryption not supported for key type "), KmsErrorClass::Misconfigured),
    (Text::Begins("message decryption not supported for key type "), KmsErrorClass::Misconfigured),
    (Text::Begins("missing 'context' for key derivation"), KmsErrorClass::Misconfigured),
    // Its versions.
    (
        Text::Is("ciphertext or signature version is disallowed by policy (too old)"),
        KmsErrorClass::KeyVersionUnavailable,
    ),
    (Text::Is("no such key version"), KmsErrorClass::KeyVersionUnavailable),
    (
        Text::Is("requested version for encryption is less than the minimum encryption key version"),
        KmsErrorClass::KeyVersionUnavailable,
    ),
    (
        Text::Is("requested version for encryption is higher than the latest key version"),
        KmsErrorClass::Misconfigured,
    ),
    // The wrapped DEK. A version that the key never had cannot have wrapped it.
    (Text::Is("cipher: message authentication failed"), KmsErrorClass::InvalidWrappedDek),
    (
        Text::Is("failed to RSA decrypt the ciphertext: crypto/rsa: decryption error"),
        KmsErrorClass::InvalidWrappedDek,
    ),
    (Text::Is("invalid ciphertext length"), KmsErrorClass::InvalidWrappedDek),
    (Text::Is("invalid ciphertext: could not decode base64"), KmsErrorClass::InvalidWrappedDek),
    (Text::Is("invalid ciphertext: version is too new"), KmsErrorClass::InvalidWrappedDek),
    // The server.
    (Text::Is("Vault is sealed"), KmsErrorClass::Sealed),
    // OpenBao from 2.6 on.
    (Text::Is("namespace is sealed"), KmsErrorClass::Sealed),
    (Text::Begins("no handler for route "), KmsErrorClass::Misconfigured),
    (Text::Is("1 error occurred:\n\t* unsupported path\n\n"), KmsErrorClass::Misconfigured),
];

/// The meaning of the text of one item's error.
pub(super) fn of_text(text: &str) -> Option<KmsErrorClass> {
    TEXTS.iter().find_map(|(known, class)| {
        let matches = match known {
            Text::Is(whole) => text == *whole,
            Text::Begins(start) => text.starts_with(start),
        };
        matches.then_some(*class)
    })
}

/// The error of an answer that failed as a whole.
pub(super) fn of_reply(reply: &Reply) -> KmsError {
    #[derive(Deserialize)]
    struct Refusal {
        errors: Vec<String>,
    }

    let texts =
        serde_json::from_slice::<Refusal>(&reply.body).map(|refusal| refusal.errors).unwrap_or_default();
    let class = match reply.status {
        // Only Vault's own answer counts as a refusal of the key: a proxy has a 403 of its own.
        401 | 403 if texts.is_empty() => KmsErrorClass::Internal,
        429 => KmsErrorClass::Throttled,
        status => texts.iter().find_map(|text| of_text(text)).unwrap_or(match status {
            401 | 403 => KmsErrorClass::AccessDenied,
            // Redirects are not followed (see `transport`); the others mean a wrong address or
            // mount.
            300..=399 | 404 | 405 | 413 => KmsErrorClass::Misconfigured,
            // A proxy in front of Vault does not reach it.
            502..=504 => KmsErrorClass::Unreachable,
            _ => KmsErrorClass::Internal,
        }),
    };
    KmsError::answered(class, reply.status, None)
}

/// The error of a login that was refused: whatever the text, Vault does not accept our credential.
/// A locked-out role and a missing mount both read `permission denied`.
pub(super) fn of_login(reply: &Reply) -> KmsError {
    let error = of_reply(reply);
    match (reply.status, error.class) {
        (400 | 401, _) | (403, KmsErrorClass::AccessDenied) => {
            KmsError { class: KmsErrorClass::CredentialInvalid, ..error }
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use zeroize::Zeroizing;

    use super::*;

    fn class(status: u16, body: &str) -> KmsErrorClass {
        of_reply(&Reply { status, headers: HeaderMap::new(), body: Zeroizing::new(body.as_bytes().to_vec()) })
            .class
    }

    #[test]
    fn the_type_that_is_never_created_is_in_the_table() {
        let text = format!("key type {TYPE_THAT_IS_NEVER_CREATED} not supported for this operation");
        assert_eq!(of_text(&text), Some(KmsErrorClass::KeyNotFound));
    }

    #[test]
    fn a_proxys_refusal_is_not_the_keys() {
        assert_eq!(class(403, "<html>Forbidden</html>"), KmsErrorClass::Internal);
        assert_eq!(class(503, "<html>Sorry</html>"), KmsErrorClass::Unreachable);
        assert_eq!(class(307, ""), KmsErrorClass::Misconfigured);
    }

    #[test]
    fn an_unknown_text_is_judged_by_its_status() {
        assert_eq!(
            class(403, r#"{"errors":["control group authorization is needed"]}"#),
            KmsErrorClass::AccessDenied
        );
        assert_eq!(class(400, r#"{"errors":["what is this"]}"#), KmsErrorClass::Internal);
        assert_eq!(class(500, r#"{"errors":["storage is full"]}"#), KmsErrorClass::Internal);
    }

    #[test]
    fn a_login_in_a_locked_or_sealed_namespace_blames_no_credential() {
        let of_login = |body: &str| {
            let reply = Reply {
                status: 503,
                headers: HeaderMap::new(),
                body: Zeroizing::new(body.as_bytes().to_vec()),
            };
            super::of_login(&reply).class
        };
        let locked = r#"{"errors":["API access to this namespace has been locked by an administrator - \"ns1/\" must be unlocked to gain access."]}"#;
        assert_eq!(of_login(locked), KmsErrorClass::AccessDenied);
        assert_eq!(of_login(r#"{"errors":["namespace is sealed"]}"#), KmsErrorClass::Sealed);
    }
}
