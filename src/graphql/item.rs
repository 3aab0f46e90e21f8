//! Conversion of arguments into items of the use cases, and of their results into types of the
//! schema.

use async_graphql::{Enum, ID, InputObject, SimpleObject};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::app::{DecryptItem, Decrypted, EncryptItem, Encrypted, Plaintext, context_of};
use crate::model::{ErrorCode, Refusal};

use super::error::ItemError;
use super::scalars::{Jsonb, Secret};

/// How a plaintext is written as a string.
#[derive(Clone, Copy, Default, PartialEq, Eq, Enum)]
#[graphql(name = "ByokEncoding")]
pub(super) enum Encoding {
    /// As text: the default.
    #[default]
    #[graphql(name = "UTF8")]
    Utf8,
    /// As bytes, in standard base64 with padding (RFC 4648, section 4).
    #[graphql(name = "BASE64")]
    Base64,
}

/// The form in which a value is answered.
#[derive(Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(name = "ByokForm")]
pub(super) enum Form {
    /// As it was encrypted.
    Plain,
}

/// A value to encrypt.
#[derive(InputObject)]
#[graphql(name = "ByokEncryptItem")]
pub(super) struct EncryptArguments {
    /// The value.
    #[graphql(secret)]
    pub(super) plaintext: Secret,
    /// The record that the value belongs to; the same as `record_id` in the context.
    pub(super) record_id: Option<ID>,
    /// The field of the record; the same as `field` in the context.
    pub(super) field: Option<String>,
    /// What the ciphertext is bound to: a flat object of strings, needed again to decrypt.
    pub(super) context: Option<Jsonb>,
    /// How the plaintext is written; UTF8 when absent.
    pub(super) encoding: Option<Encoding>,
}

impl EncryptArguments {
    /// The item for the use case.
    ///
    /// # Errors
    /// The arguments do not make an item.
    pub(super) fn into_item(self) -> Result<EncryptItem, Refusal> {
        let context = context_of(
            self.record_id.as_deref().map(String::as_str),
            self.field.as_deref(),
            pairs(&self.context),
        )?;
        let Secret(mut text) = self.plaintext;
        let plaintext = match self.encoding.unwrap_or_default() {
            Encoding::Utf8 => Ok(Plaintext::new(std::mem::take(&mut *text).into_bytes())),
            Encoding::Base64 => match STANDARD.decode(text.as_bytes()) {
                Ok(bytes) => Ok(Plaintext::new(bytes)),
                Err(_) => Err(ErrorCode::EncodingInvalid.into()),
            },
        };
        Ok(EncryptItem { plaintext, context })
    }
}

/// A ciphertext to decrypt.
#[derive(InputObject)]
#[graphql(name = "ByokDecryptItem")]
pub(super) struct DecryptArguments {
    /// The ciphertext, as encrypt returned it.
    pub(super) ciphertext: String,
    /// The record that the value belongs to; the same as `record_id` in the context.
    pub(super) record_id: Option<ID>,
    /// The field of the record; the same as `field` in the context.
    pub(super) field: Option<String>,
    /// What the ciphertext was bound to when it was made.
    pub(super) context: Option<Jsonb>,
    /// How to write the plaintext; UTF8 when absent.
    pub(super) encoding: Option<Encoding>,
}

impl DecryptArguments {
    /// The item for the use case.
    ///
    /// # Errors
    /// The arguments do not make an item.
    pub(super) fn into_item(self) -> Result<DecryptItem, Refusal> {
        let context = context_of(
            self.record_id.as_deref().map(String::as_str),
            self.field.as_deref(),
            pairs(&self.context),
        )?;
        Ok(DecryptItem { ciphertext: self.ciphertext, context })
    }
}

fn pairs(context: &Option<Jsonb>) -> Option<&serde_json::Value> {
    context.as_ref().map(|Jsonb(value)| value)
}

/// A plaintext as a string of the answer.
pub(super) fn encoded(plaintext: Plaintext, encoding: Option<Encoding>) -> Result<String, Refusal> {
    match encoding.unwrap_or_default() {
        Encoding::Utf8 => match plaintext.into_text() {
            Ok(text) => Ok(text.expose().to_owned()),
            Err(_) => Err(ErrorCode::NotText.into()),
        },
        Encoding::Base64 => Ok(STANDARD.encode(plaintext.expose())),
    }
}

/// The result of encrypting a value.
#[derive(SimpleObject)]
#[graphql(name = "ByokEncrypted")]
pub(super) struct EncryptedValue {
    /// The ciphertext to store, `byok:v1:…`.
    ciphertext: String,
    /// The version of the customer's key that wraps the record's data key.
    key_version: String,
}

impl From<Encrypted> for EncryptedValue {
    fn from(encrypted: Encrypted) -> Self {
        Self { ciphertext: encrypted.ciphertext, key_version: encrypted.key_version.to_string() }
    }
}

/// The result of one item to encrypt.
#[derive(Default, SimpleObject)]
#[graphql(name = "ByokEncryptResult")]
pub(super) struct EncryptResult {
    /// The ciphertext to store, `byok:v1:…`.
    ciphertext: Option<String>,
    /// The version of the customer's key that wraps the record's data key.
    key_version: Option<String>,
    /// Why there is no ciphertext.
    error: Option<ItemError>,
}

impl From<Result<Encrypted, Refusal>> for EncryptResult {
    fn from(result: Result<Encrypted, Refusal>) -> Self {
        match result.map(EncryptedValue::from) {
            Ok(EncryptedValue { ciphertext, key_version }) => {
                Self { ciphertext: Some(ciphertext), key_version: Some(key_version), error: None }
            }
            Err(refusal) => Self { error: Some(refusal.into()), ..Self::default() },
        }
    }
}

/// The result of decrypting a ciphertext.
#[derive(SimpleObject)]
#[graphql(name = "ByokDecrypted")]
pub(super) struct DecryptedValue {
    /// The value.
    plaintext: String,
    /// The version of the customer's key that wraps the record's data key.
    key_version: String,
}

impl DecryptedValue {
    /// The result with its plaintext in this encoding.
    pub(super) fn new(decrypted: Decrypted, encoding: Option<Encoding>) -> Result<Self, Refusal> {
        let key_version = decrypted.key_version.to_string();
        Ok(Self { plaintext: encoded(decrypted.plaintext, encoding)?, key_version })
    }
}

/// The result of one item to decrypt.
#[derive(Default, SimpleObject)]
#[graphql(name = "ByokDecryptResult")]
pub(super) struct DecryptResult {
    /// The value.
    plaintext: Option<String>,
    /// The version of the customer's key that wraps the record's data key.
    key_version: Option<String>,
    /// Why there is no value.
    error: Option<ItemError>,
}

impl DecryptResult {
    /// The result with its plaintext in this encoding.
    pub(super) fn new(result: Result<Decrypted, Refusal>, encoding: Option<Encoding>) -> Self {
        match result.and_then(|decrypted| DecryptedValue::new(decrypted, encoding)) {
            Ok(DecryptedValue { plaintext, key_version }) => {
                Self { plaintext: Some(plaintext), key_version: Some(key_version), error: None }
            }
            Err(refusal) => Self { error: Some(refusal.into()), ..Self::default() },
        }
    }
}

/// A revealed value, or why it was not revealed. A failure is data, since Hasura drops a whole join
/// for one error.
#[derive(Default, SimpleObject)]
#[graphql(name = "ByokRevealed")]
pub(super) struct Revealed {
    /// The value; null if it was not revealed.
    value: Option<String>,
    /// The form of the value.
    form: Option<Form>,
    /// Why there is no value.
    error: Option<ItemError>,
}

impl Revealed {
    /// The result with its plaintext in this encoding.
    pub(super) fn new(result: Result<Decrypted, Refusal>, encoding: Option<Encoding>) -> Self {
        match result.and_then(|decrypted| encoded(decrypted.plaintext, encoding)) {
            Ok(value) => Self { value: Some(value), form: Some(Form::Plain), error: None },
            Err(refusal) => Self { error: Some(refusal.into()), ..Self::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    fn plaintext(text: &str, encoding: Option<Encoding>) -> Result<Plaintext, Refusal> {
        let plaintext = Secret(Zeroizing::new(text.to_owned()));
        let arguments = EncryptArguments { plaintext, record_id: None, field: None, context: None, encoding };
        arguments.into_item()?.plaintext
    }

    #[test]
    fn only_padded_standard_base64_is_accepted() {
        let bytes = plaintext("/+8=", Some(Encoding::Base64)).ok().unwrap();
        assert_eq!(bytes.expose(), [0xff, 0xef]);
        for bad in ["/+8", "_-8=", "/+8= ", "/+9=", "ż"] {
            assert_eq!(
                plaintext(bad, Some(Encoding::Base64)).err().unwrap().code,
                ErrorCode::EncodingInvalid,
                "{bad}"
            );
        }
        assert_eq!(encoded(bytes, Some(Encoding::Base64)).unwrap(), "/+8=");
    }

    #[test]
    fn bytes_that_are_not_text_are_not_answered_as_text() {
        assert_eq!(plaintext("żółć", None).ok().unwrap().expose(), "żółć".as_bytes());
        assert_eq!(encoded(Plaintext::new(vec![0xff]), None).unwrap_err().code, ErrorCode::NotText);
    }
}
