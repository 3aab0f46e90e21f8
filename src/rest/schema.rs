//! JSON schemas of what cannot derive them: names out of closed lists, the table of error codes,
//! and the ways in which our schemas differ from what is derived.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use crate::app::HealthStatus;
use crate::model::{ErrorCode, JobState, Operation, Outcome, Posture, Source};

/// A generator of the schemas of types, for `components/schemas` of an OpenAPI document.
pub(super) fn generator() -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    settings.with_transform(without_rust_types).into_generator()
}

/// Removes the formats of numbers, which name Rust's types, and the types of enumerated values,
/// which the values show.
fn without_rust_types(schema: &mut Schema) {
    if schema.get("format").is_some_and(|format| format != "date-time") {
        schema.remove("format");
    }
    if schema.get("enum").is_some() {
        schema.remove("type");
    }
    transform_subschemas(&mut without_rust_types, schema);
}

/// Makes a schema promise only these members. All others may be left out, even where this version
/// of the server always sends them.
pub(super) fn promises(members: &[&str]) -> impl Fn(&mut Schema) {
    let members: Vec<Value> = members.iter().map(|&member| member.into()).collect();
    move |schema| {
        schema.remove("required");
        if !members.is_empty() {
            schema.insert("required".to_owned(), members.clone().into());
        }
    }
}

/// Says of the variants of an untagged enum that a value is exactly one of them.
pub(super) fn one_of(schema: &mut Schema) {
    if let Some(variants) = schema.remove("anyOf") {
        schema.insert("oneOf".to_owned(), variants);
    }
}

/// Implements [`JsonSchema`] for an enum by the names that callers see.
macro_rules! named {
    ($($type:ident: $names:expr;)+) => {$(
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "enum": $names })
            }
        }
    )+};
}

named! {
    Operation: Operation::ALL.map(Operation::as_str);
    Outcome: Outcome::every().into_iter().map(Outcome::as_str).collect::<Vec<_>>();
    JobState: JobState::ALL.map(JobState::as_str);
    Posture: Posture::ALL.map(Posture::as_str);
    Source: ["cache", "kms"];
    HealthStatus: HealthStatus::ALL.map(HealthStatus::as_str);
}

impl JsonSchema for ErrorCode {
    fn schema_name() -> Cow<'static, str> {
        "ErrorCode".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<_> = Self::ALL.iter().map(|code| code.as_str()).collect();
        json_schema!({ "enum": names, "description": code_table() })
    }
}

fn code_table() -> String {
    let line = |code: &ErrorCode| {
        let retry = if code.retryable() { "a retry may help" } else { "a retry does not help" };
        format!(
            "- `{}` ({}, {retry}): {} {}",
            code.as_str(),
            code.http_status(),
            code.message(),
            code.remedy()
        )
    };
    ErrorCode::ALL.iter().map(line).collect::<Vec<_>>().join("\n")
}
