//! Scalars with the names of Hasura's own, since it joins a column to an argument by the name of
//! the type.

use async_graphql::{InputType, InputValueError, InputValueResult, Scalar, ScalarType, Value};
use std::borrow::Cow;
use zeroize::Zeroizing;

use crate::model::Timestamp;

/// Any JSON value. A context must be a flat object whose values are strings.
pub(super) struct Jsonb(pub(super) serde_json::Value);

/// Any JSON value. A context must be a flat object whose values are strings.
#[Scalar(name = "jsonb")]
impl ScalarType for Jsonb {
    fn parse(value: Value) -> InputValueResult<Self> {
        if is_any_json(&value) {
            value.into_json().map(Self).map_err(|_| InputValueError::custom("not JSON"))
        } else {
            Err(InputValueError::custom("not JSON"))
        }
    }

    fn is_valid(value: &Value) -> bool {
        is_any_json(value)
    }

    fn to_value(&self) -> Value {
        Value::from_json(self.0.clone()).unwrap_or_default()
    }
}

/// Whether a value is JSON. A bare name in a document is an enum value, which JSON does not have.
pub(super) fn is_any_json(value: &Value) -> bool {
    match value {
        Value::Null | Value::Number(_) | Value::String(_) | Value::Boolean(_) => true,
        Value::Enum(_) | Value::Binary(_) => false,
        Value::List(items) => items.iter().all(is_any_json),
        Value::Object(pairs) => pairs.values().all(is_any_json),
    }
}

/// A time, in RFC 3339.
#[derive(Clone, Copy)]
pub(super) struct Timestamptz(pub(super) Timestamp);

/// A time, in RFC 3339.
#[Scalar(name = "timestamptz")]
impl ScalarType for Timestamptz {
    fn parse(value: Value) -> InputValueResult<Self> {
        timestamp(&value).map(Self).ok_or_else(|| InputValueError::custom("not RFC 3339"))
    }

    fn is_valid(value: &Value) -> bool {
        timestamp(value).is_some()
    }

    fn to_value(&self) -> Value {
        Value::String(self.0.to_string())
    }
}

/// Whether a text is a time.
pub(super) fn is_timestamp(text: &str) -> bool {
    Timestamp::parse(text).is_some()
}

fn timestamp(value: &Value) -> Option<Timestamp> {
    match value {
        Value::String(text) => Timestamp::parse(text),
        _ => None,
    }
}

/// A count that may go beyond the 32 bits of `Int`; a JSON number.
#[derive(Clone, Copy)]
pub(super) struct Bigint(pub(super) u64);

/// A count that may go beyond the 32 bits of `Int`; a JSON number.
#[Scalar(name = "bigint")]
impl ScalarType for Bigint {
    fn parse(value: Value) -> InputValueResult<Self> {
        match &value {
            Value::Number(number) => number.as_u64().map(Self),
            _ => None,
        }
        .ok_or_else(|| InputValueError::custom("not a count"))
    }

    fn to_value(&self) -> Value {
        Value::Number(self.0.into())
    }
}

/// A secret `String`, wiped when dropped.
pub(super) struct Secret(pub(super) Zeroizing<String>);

impl InputType for Secret {
    type RawValueType = str;

    fn type_name() -> Cow<'static, str> {
        <String as InputType>::type_name()
    }

    fn create_type_info(registry: &mut async_graphql::registry::Registry) -> String {
        <String as InputType>::create_type_info(registry)
    }

    fn parse(value: Option<Value>) -> InputValueResult<Self> {
        match value {
            Some(Value::String(text)) => Ok(Self(Zeroizing::new(text))),
            _ => Err(InputValueError::custom("not a string")),
        }
    }

    /// Only called for default values, of which there are none.
    fn to_value(&self) -> Value {
        Value::Null
    }

    fn as_raw_value(&self) -> Option<&str> {
        None
    }
}
