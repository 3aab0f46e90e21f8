//! The JSON of a request (GraphQL over HTTP, section 5.1). Unknown keys are ignored.

use std::cell::Cell;
use std::fmt;

use async_graphql::indexmap::IndexMap;
use async_graphql::{Name, Value, Variables};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::model::{ErrorCode, Refusal};

/// A request.
pub(super) struct Body {
    /// The document's text.
    pub(super) query: String,
    /// The name of the operation to run.
    pub(super) operation_name: Option<String>,
    /// The values of its variables.
    pub(super) variables: Variables,
}

/// Parses a request whose variables hold at most this many values: a value in memory takes many
/// times as much as in the body.
///
/// # Errors
/// `REQUEST_MALFORMED`, or `TOO_MANY_ITEMS` for more values. A duplicate key in an object is
/// refused: two parsers could take different values.
pub(super) fn read(json: &[u8], values: usize) -> Result<Body, Refusal> {
    let malformed = |what| Refusal::because(ErrorCode::RequestMalformed, what);
    if json.trim_ascii_start().first() == Some(&b'[') {
        return Err(malformed(
            "Batches of operations are not supported: send one request for each operation.",
        ));
    }
    let budget = ValueBudget { left: Cell::new(values), exceeded: Cell::new(false) };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let body = deserializer.deserialize_map(Keys(&budget)).and_then(|body| deserializer.end().map(|()| body));
    body.map_err(|_| {
        if budget.exceeded.get() {
            ErrorCode::TooManyItems.into()
        } else {
            malformed("The body is not a JSON object with a GraphQL `query`.")
        }
    })
}

/// The number of values that may follow.
struct ValueBudget {
    left: Cell<usize>,
    exceeded: Cell<bool>,
}

impl ValueBudget {
    fn take<E: Error>(&self) -> Result<(), E> {
        match self.left.get().checked_sub(1) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.exceeded.set(true);
                Err(E::custom("too many values"))
            }
        }
    }
}

/// Reads the object of the request.
struct Keys<'a>(&'a ValueBudget);

impl<'de> Visitor<'de> for Keys<'_> {
    type Value = Body;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Body, A::Error> {
        let (mut query, mut operation_name, mut variables) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let is_duplicate = match key.as_str() {
                "query" => query.replace(map.next_value()?).is_some(),
                "operationName" => operation_name.replace(map.next_value()?).is_some(),
                "variables" => variables.replace(map.next_value_seed(Json(self.0))?).is_some(),
                _ => map.next_value::<IgnoredAny>().map(|_| false)?,
            };
            if is_duplicate {
                return Err(A::Error::duplicate_field("a key of the request"));
            }
        }
        Ok(Body {
            query: query.ok_or_else(|| A::Error::missing_field("query"))?,
            operation_name: operation_name.flatten(),
            variables: match variables {
                Some(pairs @ Value::Object(_)) => Variables::from_value(pairs),
                None | Some(Value::Null) => Variables::default(),
                Some(_) => return Err(A::Error::custom("not an object")),
            },
        })
    }
}

/// Reads a value whose objects have no duplicate keys.
#[derive(Clone, Copy)]
struct Json<'a>(&'a ValueBudget);

impl<'de> DeserializeSeed<'de> for Json<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.0.take()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Json<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Boolean(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    /// serde_json reads `-0` as a float; in GraphQL it is an integer.
    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(if value == 0.0 { Value::Number(0.into()) } else { value.into() })
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut pairs = IndexMap::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(self)?;
            if pairs.insert(Name::new(key), value).is_some() {
                return Err(A::Error::custom("duplicate key"));
            }
        }
        Ok(Value::Object(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &[u8]) -> Result<Body, Refusal> {
        super::read(json, 100_000)
    }

    #[test]
    fn unknown_keys_are_ignored() {
        let json = br#"{"query":"{a}","operationName":null,"extensions":{"x":[1]},"id":7}"#;
        let body = read(json).unwrap();
        assert_eq!(body.query, "{a}");
        assert_eq!(body.operation_name, None);
        assert!(body.variables.is_empty());
    }

    #[test]
    fn variables_keep_their_values() {
        let body =
            read(r#"{"query":"","variables":{"a":{"not a name":["ż",1,-2,0.5,-0,true,null]}}}"#.as_bytes())
                .unwrap();
        let value = serde_json::to_value(&body.variables).unwrap();
        assert_eq!(value, serde_json::json!({"a": {"not a name": ["ż", 1, -2, 0.5, 0, true, null]}}));
        assert!(read(br#"{"query":"","variables":null}"#).unwrap().variables.is_empty());
    }

    #[test]
    fn anything_but_a_request_is_malformed() {
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
    fn a_batch_is_refused_with_a_reason() {
        assert!(read(br#" [{"query":"{a}"}]"#).err().unwrap().message.contains("Batches"));
    }

    #[test]
    fn values_are_not_built_past_the_bound() {
        let list =
            |count: usize| format!(r#"{{"query":"","variables":{{"a":[{}1]}}}}"#, "1,".repeat(count - 1));
        // The object of the variables and the list count as well.
        assert!(super::read(list(98).as_bytes(), 100).is_ok());
        let refused = super::read(list(99).as_bytes(), 100).err().map(|refusal| refusal.code);
        assert_eq!(refused, Some(ErrorCode::TooManyItems));
    }
}
