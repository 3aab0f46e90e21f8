//! Extraction of roles and session variables from a token's claims, as by Hasura.
//!
//! A refusal may show names of claims, which come from the configuration or begin with `x-hasura-`,
//! but never a claim's value.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::path::Path;
use crate::model::{ErrorCode, Refusal};

const ALLOWED_ROLES: &str = "x-hasura-allowed-roles";
const DEFAULT_ROLE: &str = "x-hasura-default-role";

/// Where the Hasura claims are.
#[derive(Debug)]
pub(super) enum ClaimsRule {
    /// In one object.
    Namespace { at: Namespace, format: Format },
    /// Each at a path of its own (`claims_map`).
    Map { allowed: Mapped<Vec<String>>, default: Mapped<String>, variables: Vec<(String, Mapped<String>)> },
}

/// The location of that object.
#[derive(Debug)]
pub(super) enum Namespace {
    /// The name of a claim, taken literally, dots included.
    Key(String),
    Path(Path),
}

/// How the object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    /// A string that contains JSON.
    StringifiedJson,
}

/// A value of `claims_map`.
#[derive(Debug)]
pub(super) enum Mapped<T> {
    Literal(T),
    At { path: Path, default: Option<T> },
}

/// The claims that Hasura uses.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::auth) struct HasuraClaims {
    pub(in crate::auth) allowed: Vec<Arc<str>>,
    pub(in crate::auth) default: Arc<str>,
    /// The other `x-hasura-*` claims, with their names in lower case.
    pub(in crate::auth) variables: Vec<(String, String)>,
}

impl ClaimsRule {
    /// Reads the Hasura claims. `claims` is the token's whole claims set, an object.
    pub(super) fn read(&self, claims: &Value) -> Result<HasuraClaims, Refusal> {
        match self {
            Self::Namespace { at, format } => from_object(&*at.object(*format, claims)?),
            Self::Map { allowed, default, variables } => {
                let allowed = match allowed.find(claims) {
                    Found::Configured(literal) => {
                        literal.iter().map(|role| Arc::from(role.as_str())).collect()
                    }
                    Found::InToken(value) => roles(value)?,
                    Found::Missing => return Err(missing(ALLOWED_ROLES)),
                };
                let default = match default.find(claims) {
                    Found::Configured(literal) => Arc::from(literal.as_str()),
                    Found::InToken(value) => role(value)?,
                    Found::Missing => return Err(missing(DEFAULT_ROLE)),
                };
                let variables = variables.iter().map(|(name, mapped)| match mapped.find(claims) {
                    Found::Configured(literal) => Ok((name.clone(), literal.clone())),
                    Found::InToken(value) => variable(name.clone(), value),
                    Found::Missing => Err(invalid(format!("JWT claim from claims_map, {name} not found"))),
                });
                Ok(HasuraClaims { allowed, default, variables: variables.collect::<Result<_, _>>()? })
            }
        }
    }
}

impl Namespace {
    fn object<'v>(&self, format: Format, claims: &'v Value) -> Result<Cow<'v, Map<String, Value>>, Refusal> {
        let value = match self {
            Self::Key(name) => {
                claims.get(name).ok_or_else(|| invalid(format!("claims key: '{name}' not found")))?
            }
            Self::Path(path) => path.find(claims).ok_or_else(|| {
                invalid(format!("claims not found at claims_namespace_path: '{}'", path.as_str()))
            })?,
        };
        match (format, value) {
            (Format::Json, Value::Object(object)) => Ok(Cow::Borrowed(object)),
            (Format::Json, _) => Err(invalid("expecting a json object when claims_format is json")),
            (Format::StringifiedJson, Value::String(text)) => {
                serde_json::from_str(text).map(Cow::Owned).map_err(|_| {
                    // Hasura also quotes the text that it found; that is not shown here.
                    invalid(match self {
                        Self::Key(name) => {
                            format!("expecting stringified json at: 'claims_namespace {name}'")
                        }
                        Self::Path(path) => {
                            format!(
                                "expecting stringified json at: 'claims_namespace_path {}'",
                                path.as_str()
                            )
                        }
                    })
                })
            }
            (Format::StringifiedJson, _) => {
                Err(invalid("expecting a string when claims_format is stringified_json"))
            }
        }
    }
}

fn from_object(object: &Map<String, Value>) -> Result<HasuraClaims, Refusal> {
    let (mut allowed, mut default, mut variables) = (None, None, Vec::new());
    for (name, value) in object {
        let name = name.to_ascii_lowercase();
        match name.as_str() {
            ALLOWED_ROLES => allowed = Some(value),
            DEFAULT_ROLE => default = Some(value),
            _ if name.starts_with("x-hasura-") => variables.push((name, value)),
            _ => {}
        }
    }
    Ok(HasuraClaims {
        allowed: roles(allowed.ok_or_else(|| missing(ALLOWED_ROLES))?)?,
        default: role(default.ok_or_else(|| missing(DEFAULT_ROLE))?)?,
        variables: variables
            .into_iter()
            .map(|(name, value)| variable(name, value))
            .collect::<Result<_, _>>()?,
    })
}

enum Found<'m, 'v, T> {
    Configured(&'m T),
    InToken(&'v Value),
    Missing,
}

impl<T> Mapped<T> {
    fn find<'m, 'v>(&'m self, claims: &'v Value) -> Found<'m, 'v, T> {
        match self {
            Self::Literal(literal) => Found::Configured(literal),
            Self::At { path, default } => match (path.find(claims), default) {
                (Some(value), _) => Found::InToken(value),
                (None, Some(default)) => Found::Configured(default),
                (None, None) => Found::Missing,
            },
        }
    }
}

fn roles(value: &Value) -> Result<Vec<Arc<str>>, Refusal> {
    let refuse = |problem| invalid(format!("invalid {ALLOWED_ROLES}; should be a list of roles: {problem}"));
    let list = value.as_array().ok_or_else(|| refuse(expected("[]", "Array", value)))?;
    let role = |value: &Value| {
        value.as_str().map(Arc::from).ok_or_else(|| refuse(expected("Text", "String", value)))
    };
    list.iter().map(role).collect()
}

fn role(value: &Value) -> Result<Arc<str>, Refusal> {
    value.as_str().map(Arc::from).ok_or_else(|| {
        let problem = expected("Text", "String", value);
        invalid(format!("invalid {DEFAULT_ROLE}; should be a single role name: {problem}"))
    })
}

fn variable(name: String, value: &Value) -> Result<(String, String), Refusal> {
    match value {
        Value::String(text) => Ok((name, text.clone())),
        _ => Err(invalid(format!("x-hasura-* claims: {}", expected("Text", "String", value)))),
    }
}

/// The message of Hasura's JSON library.
fn expected(parsing: &str, kind: &str, value: &Value) -> String {
    let found = match value {
        Value::Null => "Null",
        Value::Bool(_) => "Boolean",
        Value::Number(_) => "Number",
        Value::String(_) => "String",
        Value::Array(_) => "Array",
        Value::Object(_) => "Object",
    };
    format!("parsing {parsing} failed, expected {kind}, but encountered {found}")
}

fn missing(claim: &str) -> Refusal {
    Refusal::because(ErrorCode::JwtMissingRoleClaims, format!("JWT claim does not contain {claim}"))
}

fn invalid(problem: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::because(ErrorCode::JwtInvalidClaims, problem)
}
