//! The JSON of requests to encrypt and decrypt, and of the answers.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};

use crate::app::SecretText;
use crate::model::{ErrorCode, Refusal};

use super::body::{ContextField, Object};
use super::schema::{one_of, promises};

/// How bytes are written in JSON. Read from a string, since serde's own form of an enum also
/// accepts `{"UTF8": null}`.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum Encoding {
    /// As text.
    #[default]
    Utf8,
    /// Standard base64, padded (RFC 4648, section 4).
    Base64,
}

impl TryFrom<String> for Encoding {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, &'static str> {
        match name.as_str() {
            "UTF8" | "utf8" => Ok(Self::Utf8),
            "BASE64" | "base64" => Ok(Self::Base64),
            _ => Err("no such encoding"),
        }
    }
}

impl JsonSchema for Encoding {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Encoding".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": ["UTF8", "BASE64"] })
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EncryptRequest {
    pub(super) plaintext: String,
    #[serde(default)]
    pub(super) context: ContextField,
    /// The context key `record_id`.
    pub(super) record_id: Option<String>,
    /// The context key `field`.
    pub(super) field: Option<String>,
    /// How the plaintext is written in JSON; UTF8 when absent.
    pub(super) encoding: Option<Encoding>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EncryptManyRequest {
    #[schemars(with = "Vec<EncryptRequest>", length(min = 1))]
    pub(super) items: Vec<Object<EncryptRequest>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DecryptRequest {
    pub(super) ciphertext: String,
    #[serde(default)]
    pub(super) context: ContextField,
    /// The context key `record_id`.
    pub(super) record_id: Option<String>,
    /// The context key `field`.
    pub(super) field: Option<String>,
    /// How the plaintext is written in JSON; UTF8 when absent.
    pub(super) encoding: Option<Encoding>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DecryptManyRequest {
    #[schemars(with = "Vec<DecryptRequest>", length(min = 1))]
    pub(super) items: Vec<Object<DecryptRequest>>,
}

#[derive(JsonSchema, Serialize)]
pub(super) struct EncryptAnswer {
    #[schemars(regex(pattern = "^byok:v1:[A-Za-z0-9_-]+$"))]
    pub(super) ciphertext: String,
    pub(super) key_version: String,
}

#[derive(JsonSchema, Serialize)]
pub(super) struct EncryptManyAnswer {
    pub(super) items: Vec<ItemAnswer<EncryptAnswer>>,
}

#[derive(JsonSchema, Serialize)]
pub(super) struct DecryptAnswer {
    #[serde(serialize_with = "expose")]
    #[schemars(with = "String")]
    pub(super) plaintext: SecretText,
}

#[derive(JsonSchema, Serialize)]
pub(super) struct DecryptManyAnswer {
    pub(super) items: Vec<ItemAnswer<DecryptAnswer>>,
}

/// The answer to one of many items, or its error.
#[derive(JsonSchema, Serialize)]
#[serde(untagged)]
#[schemars(inline, transform = one_of)]
pub(super) enum ItemAnswer<T> {
    Done(T),
    Refused { error: ItemError },
}

#[derive(JsonSchema, Serialize)]
#[schemars(inline, transform = promises(&["code", "message", "retryable"]))]
pub(super) struct ItemError {
    #[schemars(with = "ErrorCode")]
    code: &'static str,
    message: String,
    retryable: bool,
    /// The wrong part of the request, if it can be named: a path of the names in this description
    /// and of indexes in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", extend("examples" = ["items[3].context"]))]
    field: Option<String>,
}

impl<T> From<Result<T, Refusal>> for ItemAnswer<T> {
    fn from(answer: Result<T, Refusal>) -> Self {
        match answer {
            Ok(value) => Self::Done(value),
            Err(refusal) => Self::Refused {
                error: ItemError {
                    field: refusal.field().map(str::to_owned),
                    code: refusal.code.as_str(),
                    message: refusal.message.into_owned(),
                    retryable: refusal.code.retryable(),
                },
            },
        }
    }
}

fn expose<S: Serializer>(secret: &SecretText, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose())
}
