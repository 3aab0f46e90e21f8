//! Parsing of bodies: complete, up to the limit, as JSON. No error message contains a part of the
//! body.

use std::borrow::Cow;
use std::marker::PhantomData;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_path_to_error::Segment;

use crate::app::{Room, write_json};
use crate::model::{ErrorCode, Refusal};

use super::Front;
use super::problem::problem;

/// Reads a body, up to the limit. Only after authentication, so that a caller without identity
/// cannot make the server hold megabytes.
async fn collect(front: &Front, body: Body) -> Result<Bytes, Refusal> {
    match Limited::new(body, front.app.limits().body_bytes).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ErrorCode::BodyTooLarge.into()),
        Err(_) => Err(malformed("The body did not arrive completely.")),
    }
}

/// Reads a JSON body of type `T`.
pub(super) async fn read<T: DeserializeOwned>(front: &Front, body: Body) -> Result<T, Refusal> {
    parse(&collect(front, body).await?)
}

/// Reads a JSON body of type `T`, or returns the default if the body is empty.
pub(super) async fn read_or_default<T: DeserializeOwned + Default>(
    front: &Front,
    body: Body,
) -> Result<T, Refusal> {
    let bytes = collect(front, body).await?;
    if bytes.is_empty() { Ok(T::default()) } else { parse(&bytes) }
}

fn malformed(why: &'static str) -> Refusal {
    Refusal::because(ErrorCode::RequestMalformed, why)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    if bytes.is_empty() {
        return Err(malformed("The request has no body."));
    }
    if std::str::from_utf8(bytes).is_err() {
        return Err(malformed("The body is not UTF-8."));
    }
    let read = serde_json::from_slice(bytes).map(|Object(value)| value);
    read.map_err(|error| match error.classify() {
        serde_json::error::Category::Data => invalid_body::<T>(bytes),
        serde_json::error::Category::Eof
        | serde_json::error::Category::Io
        | serde_json::error::Category::Syntax => malformed("The body is not JSON."),
    })
}

/// The names of all fields of bodies. Other keys are not shown in errors, since callers choose
/// them.
const NAMES: [&str; 8] =
    ["items", "plaintext", "ciphertext", "context", "record_id", "field", "encoding", "dry_run"];

/// The refusal of JSON that is not a body of type `T`, with the path to the fault. Parses the body
/// a second time to find it, so that valid bodies do not pay for the tracking of paths.
fn invalid_body<T: DeserializeOwned>(bytes: &[u8]) -> Refusal {
    let unspecific = malformed("The body is not an object with the fields that this operation accepts.");
    let deserializer = &mut serde_json::Deserializer::from_slice(bytes);
    let Err(error) = serde_path_to_error::deserialize::<_, Object<T>>(deserializer) else {
        return unspecific;
    };
    let (mut path, mut is_known) = (String::new(), true);
    for segment in error.path() {
        match segment {
            Segment::Seq { index } => path.push_str(&format!("[{index}]")),
            Segment::Map { key } if NAMES.contains(&key.as_str()) => join(&mut path, key),
            Segment::Map { .. } | Segment::Enum { .. } | Segment::Unknown => {
                is_known = false;
                break;
            }
        }
    }
    // Of serde's own message, only a known name is passed on.
    let message = error.inner().to_string();
    let named = |sentence: &str| {
        let name = message.strip_prefix(sentence)?.split('`').next()?;
        NAMES.into_iter().find(|known| is_known && *known == name)
    };
    let why = match (named("missing field `"), named("duplicate field `")) {
        (Some(name), _) => {
            join(&mut path, name);
            format!("The field `{path}` is missing.")
        }
        (None, Some(name)) => {
            join(&mut path, name);
            format!("The field `{path}` is present twice.")
        }
        (None, None) if is_known && path.is_empty() => return unspecific,
        (None, None) if is_known => {
            format!("The field `{path}` is not of the type that this operation accepts.")
        }
        (None, None) if path.is_empty() => {
            "The body has a field that this operation does not accept.".to_owned()
        }
        (None, None) => format!("`{path}` has a field that this operation does not accept."),
    };
    let refusal = Refusal::because(ErrorCode::RequestMalformed, why);
    if path.is_empty() { refusal } else { refusal.at(path) }
}

fn join(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

/// A struct that is read from a JSON object only. Serde also accepts a list of the field values for
/// a struct, so that `[]` would be a body without any field.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Members(PhantomData))
    }
}

/// A JSON answer that no cache may store.
pub(super) fn answer(status: u16, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => text_answer(status, bytes.into()),
        Err(_) => problem(&ErrorCode::Internal.into()),
    }
}

/// A JSON answer that may be long, written within the bytes that `room` grants.
///
/// # Errors
/// The refusals of [`write_json`].
pub(super) fn answer_within(room: &dyn Room, value: &impl Serialize) -> Result<Response, Refusal> {
    write_json(value, room).map(|bytes| text_answer(200, bytes.into()))
}

/// A JSON text as an answer that no cache may store.
pub(super) fn text_answer(status: u16, text: Bytes) -> Response {
    let status = axum::http::StatusCode::from_u16(status).unwrap_or_default();
    let mut response = (status, text).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The `context` of a body. Detects a duplicate key, of which `serde_json`'s own map would drop
/// one.
#[derive(Default)]
pub(super) struct ContextField {
    value: Value,
    has_duplicate: bool,
}

impl ContextField {
    /// The value to make a context of.
    pub(super) fn value(&self) -> Result<&Value, Refusal> {
        if self.has_duplicate {
            return Err(Refusal::because(ErrorCode::ContextInvalid, "A context key is present twice."));
        }
        Ok(&self.value)
    }
}

impl<'de> Deserialize<'de> for ContextField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = ContextField;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a context")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ContextField, A::Error> {
                let mut pairs = serde_json::Map::new();
                let mut has_duplicate = false;
                while let Some((key, TextOrNone(text))) = map.next_entry()? {
                    has_duplicate |= pairs.insert(key, text.map_or(Value::Null, Value::String)).is_some();
                }
                Ok(ContextField { value: Value::Object(pairs), has_duplicate })
            }

            fn visit_unit<E>(self) -> Result<ContextField, E> {
                Ok(ContextField::default())
            }

            fn visit_str<E>(self, _: &str) -> Result<ContextField, E> {
                Ok(not_an_object())
            }

            fn visit_bool<E>(self, _: bool) -> Result<ContextField, E> {
                Ok(not_an_object())
            }

            fn visit_i64<E>(self, _: i64) -> Result<ContextField, E> {
                Ok(not_an_object())
            }

            fn visit_u64<E>(self, _: u64) -> Result<ContextField, E> {
                Ok(not_an_object())
            }

            fn visit_f64<E>(self, _: f64) -> Result<ContextField, E> {
                Ok(not_an_object())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ContextField, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(not_an_object())
            }
        }
        deserializer.deserialize_any(Pairs)
    }
}

impl JsonSchema for ContextField {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Context".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["object", "null"], "additionalProperties": { "type": "string" }, "maxProperties": 64,
            "description": "The context that the ciphertext is bound to; needed again to decrypt. Must contain `record_id`, which to encrypt has at most 512 bytes.",
            "examples": [{ "record_id": "user-123" }],
        })
    }
}

/// A text; other values, which no context may hold, are skipped without being built.
struct TextOrNone(Option<String>);

impl<'de> Deserialize<'de> for TextOrNone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = TextOrNone;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E>(self, text: &str) -> Result<TextOrNone, E> {
                Ok(TextOrNone(Some(text.to_owned())))
            }

            fn visit_unit<E>(self) -> Result<TextOrNone, E> {
                Ok(TextOrNone(None))
            }

            fn visit_bool<E>(self, _: bool) -> Result<TextOrNone, E> {
                Ok(TextOrNone(None))
            }

            fn visit_i64<E>(self, _: i64) -> Result<TextOrNone, E> {
                Ok(TextOrNone(None))
            }

            fn visit_u64<E>(self, _: u64) -> Result<TextOrNone, E> {
                Ok(TextOrNone(None))
            }

            fn visit_f64<E>(self, _: f64) -> Result<TextOrNone, E> {
                Ok(TextOrNone(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<TextOrNone, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(TextOrNone(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TextOrNone, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(TextOrNone(None))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// A value that is not an object: the context is refused with its own code, not as an unknown
/// field.
fn not_an_object() -> ContextField {
    ContextField { value: Value::Bool(false), has_duplicate: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Optional {
        one: Option<bool>,
    }

    #[derive(Deserialize)]
    struct Items {
        items: Vec<Object<Optional>>,
    }

    #[test]
    fn only_an_object_is_a_body() {
        assert_eq!(parse::<Optional>(b" {} ").unwrap(), Optional { one: None });
        assert_eq!(parse::<Optional>(br#"{"one":true}"#).unwrap(), Optional { one: Some(true) });
        for bad in ["[]", "[true]", "null", "true", "7", "\"one\"", r#"{"two":1}"#] {
            let refusal = parse::<Optional>(bad.as_bytes()).unwrap_err();
            assert_eq!(refusal.code, ErrorCode::RequestMalformed, "{bad}");
        }
    }

    #[test]
    fn a_fault_of_a_body_is_named_without_quoting_the_body() {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only the faults are checked")]
        struct Item {
            plaintext: String,
            #[serde(default)]
            context: ContextField,
            encoding: Option<bool>,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only the faults are checked")]
        struct Many {
            items: Vec<Object<Item>>,
        }
        for (bad, field, expected) in [
            (
                r#"{"items":[{"plaintext":"","encoding":"C4N4RY"}]}"#,
                Some("items[0].encoding"),
                "not of the type",
            ),
            (r#"{"items":[{"plaintext":""},{"encoding":true}]}"#, Some("items[1].plaintext"), "is missing"),
            (r#"{"items":[{"plaintext":"","C4N4RY":1}]}"#, Some("items[0]"), "does not accept"),
            (
                r#"{"items":[{"plaintext":"","plaintext":""}]}"#,
                Some("items[0].plaintext"),
                "is present twice",
            ),
            (r#"{"items":[[]]}"#, Some("items[0]"), "not of the type"),
            (r#"{"items":"C4N4RY"}"#, Some("items"), "not of the type"),
            (r#"{"items":[],"missing field `items`":"C4N4RY"}"#, None, "does not accept"),
            ("{}", Some("items"), "is missing"),
            ("[]", None, "not an object"),
        ] {
            let refusal = parse::<Many>(bad.as_bytes()).err().unwrap();
            assert_eq!(refusal.field(), field, "{bad}");
            assert!(refusal.message.contains(expected) && !refusal.message.contains("C4N4RY"), "{refusal:?}");
        }
    }

    #[test]
    fn only_an_object_is_an_item() {
        let read = |items: &str| parse::<Items>(format!(r#"{{"items":{items}}}"#).as_bytes());
        assert_eq!(read("[{},{}]").unwrap().items.len(), 2);
        for bad in ["{}", "[[]]", "[[true]]", "[null]"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
