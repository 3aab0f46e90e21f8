//! Validation of values against their types (GraphQL of October 2021, sections 5.6 and 6.1.2).

use async_graphql::indexmap::IndexMap;
use async_graphql::parser::types::{BaseType, Type};
use async_graphql::{Name, Value as Variable};
use async_graphql_value::{Number, Value};

use super::super::scalars::{is_any_json, is_timestamp};
use super::types::{Definition, Inputs, Types, name_of};

/// A value of a document or of a variable, by its kind.
pub(super) enum Shape<'a, V> {
    Null,
    Boolean,
    Number(&'a Number),
    Text(&'a str),
    /// A bare name, which only a document has.
    Enum(&'a str),
    List(&'a [V]),
    Object(&'a IndexMap<Name, V>),
    /// A variable, whose value is validated by itself.
    Variable,
    /// A value that occurs neither in documents nor in variables.
    Other,
}

/// A value of a document or of a variable.
pub(super) trait Input: Sized {
    /// Whether a string can be an enum value, as in JSON, which has no other way to write one.
    const TEXT_IS_ENUM: bool;

    fn shape(&self) -> Shape<'_, Self>;

    /// Whether the value is JSON, without bare names.
    fn is_json(&self) -> bool;
}

impl Input for Value {
    const TEXT_IS_ENUM: bool = false;

    fn shape(&self) -> Shape<'_, Self> {
        match self {
            Self::Null => Shape::Null,
            Self::Boolean(_) => Shape::Boolean,
            Self::Number(number) => Shape::Number(number),
            Self::String(text) => Shape::Text(text),
            Self::Enum(name) => Shape::Enum(name),
            Self::List(items) => Shape::List(items),
            Self::Object(pairs) => Shape::Object(pairs),
            Self::Variable(_) => Shape::Variable,
            Self::Binary(_) => Shape::Other,
        }
    }

    fn is_json(&self) -> bool {
        match self {
            Self::Null | Self::Number(_) | Self::String(_) | Self::Boolean(_) | Self::Variable(_) => true,
            Self::Enum(_) | Self::Binary(_) => false,
            Self::List(items) => items.iter().all(Self::is_json),
            Self::Object(pairs) => pairs.values().all(Self::is_json),
        }
    }
}

impl Input for Variable {
    const TEXT_IS_ENUM: bool = true;

    fn shape(&self) -> Shape<'_, Self> {
        match self {
            Self::Null => Shape::Null,
            Self::Boolean(_) => Shape::Boolean,
            Self::Number(number) => Shape::Number(number),
            Self::String(text) => Shape::Text(text),
            Self::Enum(name) => Shape::Enum(name),
            Self::List(items) => Shape::List(items),
            Self::Object(pairs) => Shape::Object(pairs),
            Self::Binary(_) => Shape::Other,
        }
    }

    fn is_json(&self) -> bool {
        is_any_json(self)
    }
}

/// A fault of a value, with the path to it: `.name` and `[index]`, with the schema's names alone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) path: String,
    pub(super) what: String,
}

impl Wrong {
    fn at(self, step: &str) -> Self {
        Self { path: format!("{step}{}", self.path), ..self }
    }
}

/// Validates `value` against the type `kind`; a variable in it is taken to be valid.
///
/// # Errors
/// The first fault.
pub(super) fn check(types: &Types, kind: &Type, value: &impl Input) -> Result<(), Wrong> {
    match (value.shape(), &kind.base) {
        (Shape::Variable, _) => Ok(()),
        (Shape::Null, _) if kind.nullable => Ok(()),
        (Shape::Null, _) => expected(kind),
        (Shape::List(items), BaseType::List(inner)) => {
            for (index, item) in items.iter().enumerate() {
                check(types, inner, item).map_err(|wrong| wrong.at(&format!("[{index}]")))?;
            }
            Ok(())
        }
        // A single value is coerced to a list of it.
        (_, BaseType::List(inner)) => check(types, inner, value),
        (shape, BaseType::Named(name)) => match (types.get(name), shape) {
            (Some(Definition::Input(fields)), Shape::Object(pairs)) => check_object(types, fields, pairs),
            (Some(Definition::Enum(names)), Shape::Enum(word)) if names.contains(word) => Ok(()),
            (Some(Definition::Enum(names)), Shape::Text(word))
                if is_enum_as_text(value) && names.contains(word) =>
            {
                Ok(())
            }
            (Some(Definition::Scalar), shape) if is_scalar(name, &shape, value) => Ok(()),
            _ => expected(kind),
        },
    }
}

fn is_enum_as_text<V: Input>(_: &V) -> bool {
    V::TEXT_IS_ENUM
}

fn check_object<V: Input>(types: &Types, fields: &Inputs, pairs: &IndexMap<Name, V>) -> Result<(), Wrong> {
    for (name, field) in fields {
        match pairs.get(name.as_str()) {
            Some(value) => {
                check(types, &field.kind, value).map_err(|wrong| wrong.at(&format!(".{name}")))?;
            }
            None if field.is_required() => {
                let what =
                    format!("field \"{name}\" of type \"{}\" is required but not provided", field.kind);
                return Err(Wrong { path: format!(".{name}"), what });
            }
            None => {}
        }
    }
    if pairs.keys().all(|name| fields.contains_key(name.as_str())) {
        Ok(())
    } else {
        // The name is not quoted: it can be a value that a caller put in the wrong position.
        Err(Wrong { path: String::new(), what: "unknown field".to_owned() })
    }
}

fn is_scalar<V: Input>(name: &str, shape: &Shape<'_, V>, value: &V) -> bool {
    match (name, shape) {
        ("jsonb", _) => value.is_json(),
        ("String" | "ID", Shape::Text(_)) | ("Boolean", Shape::Boolean) | ("Float", Shape::Number(_)) => true,
        ("timestamptz", Shape::Text(text)) => is_timestamp(text),
        ("Int", Shape::Number(number)) => number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
        ("ID", Shape::Number(number)) => number.is_i64() || number.is_u64(),
        ("bigint", Shape::Number(number)) => number.is_u64(),
        _ => false,
    }
}

fn expected(kind: &Type) -> Result<(), Wrong> {
    Err(Wrong { path: String::new(), what: format!("expected type \"{kind}\"") })
}

/// Whether values of the type can be given; `None` if there is no such type.
pub(super) fn is_input(types: &Types, kind: &Type) -> Option<bool> {
    types.get(name_of(kind)).map(|definition| !matches!(definition, Definition::Object(_)))
}
