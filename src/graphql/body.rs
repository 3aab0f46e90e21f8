//! Reads the JSON of a request (GraphQL over HTTP, section 5.1). Keys that the protocol does not know are passed over.

use std::fmt;

use async_graphql::indexmap::IndexMap;
use async_graphql::{Name, Value, Variables};
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::model::{ErrorCode, Refusal};

/// A request.
pub(super) struct Body {
    /// The document's text.
    pub(super) query: String,
    /// Which of its operations to run.
    pub(super) operation_name: Option<String>,
    /// The values of its variables.
    pub(super) variables: Variables,
}

/// The request that `json` is.
///
/// # Errors
/// `REQUEST_MALFORMED`. A key that stands twice in an object is refused: two readers of it would see two values.
pub(super) fn read(json: &[u8]) -> Result<Body, Refusal> {
    let malformed = |what| Refusal::because(ErrorCode::RequestMalformed, what);
    if json.trim_ascii_start().first() == Some(&b'[') {
        return Err(malformed("Batches of operations are not taken: send one request for each."));
    }
    serde_json::from_slice(json)
        .map_err(|_| malformed("The body is not a JSON object with a GraphQL `query`."))
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Body;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Body, A::Error> {
                let (mut query, mut operation_name, mut variables) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    let again = match key.as_str() {
                        "query" => query.replace(map.next_value()?).is_some(),
                        "operationName" => operation_name.replace(map.next_value()?).is_some(),
                        "variables" => variables.replace(map.next_value::<Option<Pairs>>()?).is_some(),
                        _ => map.next_value::<IgnoredAny>().map(|_| false)?,
                    };
                    if again {
                        return Err(A::Error::duplicate_field("a key of the request"));
                    }
                }
                Ok(Body {
                    query: query.ok_or_else(|| A::Error::missing_field("query"))?,
                    operation_name: operation_name.flatten(),
                    variables: match variables.flatten() {
                        Some(Pairs(pairs)) => Variables::from_value(Value::Object(pairs)),
                        None => Variables::default(),
                    },
                })
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

/// An object in which no key stands twice.
struct Pairs(IndexMap<Name, Value>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Json::deserialize(deserializer)?.0 {
            Value::Object(pairs) => Ok(Self(pairs)),
            _ => Err(D::Error::custom("not an object")),
        }
    }
}

/// A value without such an object anywhere.
struct Json(Value);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E: Error>(self) -> Result<Json, E> {
                Ok(Json(Value::Null))
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Json, E> {
                Ok(Json(Value::Boolean(value)))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Json, E> {
                Ok(Json(Value::Number(value.into())))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Json, E> {
                Ok(Json(Value::Number(value.into())))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Json, E> {
                Ok(Json(value.into()))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Json, E> {
                Ok(Json(Value::String(value.to_owned())))
            }

            fn visit_string<E: Error>(self, value: String) -> Result<Json, E> {
                Ok(Json(Value::String(value)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
                let mut items = Vec::new();
                while let Some(Json(item)) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Json(Value::List(items)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut pairs = IndexMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let Json(value) = map.next_value()?;
                    if pairs.insert(Name::new(key), value).is_some() {
                        return Err(A::Error::custom("a key stands twice"));
                    }
                }
                Ok(Json(Value::Object(pairs)))
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_protocol_does_not_know_is_passed_over() {
        let json = br#"{"query":"{a}","operationName":null,"extensions":{"x":[1]},"id":7}"#;
        let body = read(json).unwrap();
        assert_eq!(body.query, "{a}");
        assert_eq!(body.operation_name, None);
        assert!(body.variables.is_empty());
    }

    #[test]
    fn variables_are_taken_as_they_are() {
        let body =
            read(r#"{"query":"","variables":{"a":{"not a name":["ż",1,-2,0.5,true,null]}}}"#.as_bytes())
                .unwrap();
        let value = serde_json::to_value(&body.variables).unwrap();
        assert_eq!(value, serde_json::json!({"a": {"not a name": ["ż", 1, -2, 0.5, true, null]}}));
        assert!(read(br#"{"query":"","variables":null}"#).unwrap().variables.is_empty());
    }

    #[test]
    fn what_is_no_request_is_malformed() {
        let deep =
            format!(r#"{{"query":"","variables":{{"a":{}1{}}}}}"#, "[".repeat(10_000), "]".repeat(10_000));
        for bad in [
            &b""[..],
            b"{",
            b"null",
            b"\"{a}\"",
            b"{}",
            br#"{"query":1}"#,
            br#"{"query":"{a}"} x"#,
            br#"{"query":"{a}","query":"{b}"}"#,
            br#"{"query":"{a}","variables":[]}"#,
            br#"{"query":"{a}","variables":"{}"}"#,
            br#"{"query":"{a}","variables":{"a":1,"a":1}}"#,
            br#"{"query":"{a}","variables":{"a":{"b":"x","b":"y"}}}"#,
            br#"{"query":"{a}","operationName":1}"#,
            b"{\"query\":\"\xff\"}",
            deep.as_bytes(),
        ] {
            assert_eq!(read(bad).err().map(|refusal| refusal.code), Some(ErrorCode::RequestMalformed));
        }
    }

    #[test]
    fn a_batch_is_told_why_it_is_refused() {
        assert!(read(br#" [{"query":"{a}"}]"#).err().unwrap().message.contains("Batches"));
    }
}
