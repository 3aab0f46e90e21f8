//! Whether a value is one of its type (GraphQL of October 2021, sections 5.6 and 6.1.2).

use async_graphql::indexmap::IndexMap;
use async_graphql::parser::types::{BaseType, Type};
use async_graphql::{Name, Value as Variable};
use async_graphql_value::{Number, Value};

use super::super::scalars::{is_any_json, is_moment};
use super::types::{Definition, Inputs, Types, name_of};

/// A value, wherever it stands.
pub(super) enum Shape<'a, V> {
    Null,
    Boolean,
    Number(&'a Number),
    Text(&'a str),
    /// A bare name, which only a document has.
    Word(&'a str),
    List(&'a [V]),
    Object(&'a IndexMap<Name, V>),
    /// What a variable holds, which is looked at where the variable is.
    Variable,
    /// What neither documents nor variables hold.
    Other,
}

/// A value of a document or of a variable.
pub(super) trait Input: Sized {
    /// Whether a text stands for an enum's value: only JSON has no other way to write one.
    const TEXT_IS_WORD: bool;

    fn shape(&self) -> Shape<'_, Self>;

    /// Whether it is JSON, and holds no bare name.
    fn is_json(&self) -> bool;
}

impl Input for Value {
    const TEXT_IS_WORD: bool = false;

    fn shape(&self) -> Shape<'_, Self> {
        match self {
            Self::Null => Shape::Null,
            Self::Boolean(_) => Shape::Boolean,
            Self::Number(number) => Shape::Number(number),
            Self::String(text) => Shape::Text(text),
            Self::Enum(name) => Shape::Word(name),
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
    const TEXT_IS_WORD: bool = true;

    fn shape(&self) -> Shape<'_, Self> {
        match self {
            Self::Null => Shape::Null,
            Self::Boolean(_) => Shape::Boolean,
            Self::Number(number) => Shape::Number(number),
            Self::String(text) => Shape::Text(text),
            Self::Enum(name) => Shape::Word(name),
            Self::List(items) => Shape::List(items),
            Self::Object(pairs) => Shape::Object(pairs),
            Self::Binary(_) => Shape::Other,
        }
    }

    fn is_json(&self) -> bool {
        is_any_json(self)
    }
}

/// What is wrong with a value, and where in it: `.name` and `[index]`, of which names are the schema's alone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) place: String,
    pub(super) what: String,
}

impl Wrong {
    fn at(self, step: &str) -> Self {
        Self { place: format!("{step}{}", self.place), ..self }
    }
}

/// Whether `value` is one of `kind`; what a variable stands for is taken to be.
///
/// # Errors
/// The first thing that is not as it must be.
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
        // One value stands for a list of it.
        (_, BaseType::List(inner)) => check(types, inner, value),
        (shape, BaseType::Named(name)) => match (types.get(name), shape) {
            (Some(Definition::Input(fields)), Shape::Object(pairs)) => check_object(types, fields, pairs),
            (Some(Definition::Enum(names)), Shape::Word(word)) if names.contains(word) => Ok(()),
            (Some(Definition::Enum(names)), Shape::Text(word)) if is_word(value) && names.contains(word) => {
                Ok(())
            }
            (Some(Definition::Scalar), shape) if is_scalar(name, &shape, value) => Ok(()),
            _ => expected(kind),
        },
    }
}

fn is_word<V: Input>(_: &V) -> bool {
    V::TEXT_IS_WORD
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
                return Err(Wrong { place: format!(".{name}"), what });
            }
            None => {}
        }
    }
    match pairs.keys().all(|name| fields.contains_key(name.as_str())) {
        true => Ok(()),
        // It may be a value that stands in the wrong place.
        false => Err(Wrong { place: String::new(), what: "unknown field".to_owned() }),
    }
}

fn is_scalar<V: Input>(name: &str, shape: &Shape<'_, V>, value: &V) -> bool {
    match (name, shape) {
        ("jsonb", _) => value.is_json(),
        ("String" | "ID", Shape::Text(_)) | ("Boolean", Shape::Boolean) | ("Float", Shape::Number(_)) => true,
        ("timestamptz", Shape::Text(text)) => is_moment(text),
        ("Int", Shape::Number(number)) => number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
        ("ID", Shape::Number(number)) => number.is_i64() || number.is_u64(),
        ("bigint", Shape::Number(number)) => number.is_u64(),
        _ => false,
    }
}

fn expected(kind: &Type) -> Result<(), Wrong> {
    Err(Wrong { place: String::new(), what: format!("expected type \"{kind}\"") })
}

/// Whether there is such a type, and values of it can be given.
pub(super) fn is_input(types: &Types, kind: &Type) -> Option<bool> {
    types.get(name_of(kind)).map(|definition| !matches!(definition, Definition::Object(_)))
}
