//! Rules that the validation of async-graphql lacks (GraphQL of October 2021, sections 5.3.3, 5.6.1 and 6.1.2).

use async_graphql::parser::types::{
    DocumentOperations, ExecutableDocument, OperationDefinition, Selection, SelectionSet,
};
use async_graphql::{Name, Pos, Positioned, Value as Variable, Variables};
use async_graphql_value::Value;

use crate::model::{ErrorCode, Refusal};

use super::explained::cut;

/// The inputs that are enums; no other input has one of these names, and inside of a context no name means anything.
pub(super) const ENUMS: [&str; 3] = ["encoding", "operation", "outcome"];
/// The input that takes any JSON.
pub(super) const ANY_JSON: &str = "context";

/// A rule that a document breaks, and where.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) refusal: Refusal,
    pub(super) place: Pos,
}

/// Looks for what the validation passes over: a string for an enum, a selection on `__typename`, and in the operation that is to
/// run, a variable without the value that it must have.
///
/// # Errors
/// The first rule that is broken.
pub(super) fn check(
    document: &ExecutableDocument,
    operation_name: Option<&str>,
    variables: &Variables,
) -> Result<(), Broken> {
    for (_, operation) in document.operations.iter() {
        defaults(&operation.node)?;
        selections(&operation.node.selection_set.node)?;
    }
    for fragment in document.fragments.values() {
        selections(&fragment.node.selection_set.node)?;
    }
    let runs = match (&document.operations, operation_name) {
        (DocumentOperations::Single(operation), _) => Some(operation),
        (DocumentOperations::Multiple(named), Some(name)) => named.get(name),
        (DocumentOperations::Multiple(named), None) => named.values().next().filter(|_| named.len() == 1),
    };
    runs.map_or(Ok(()), |operation| required(&operation.node, variables))
}

fn required(operation: &OperationDefinition, variables: &Variables) -> Result<(), Broken> {
    for definition in &operation.variable_definitions {
        let Positioned { node: definition, pos } = definition;
        let must = !definition.var_type.node.nullable && definition.default_value.is_none();
        if must && matches!(variables.get(&definition.name.node), None | Some(Variable::Null)) {
            let name = cut(&definition.name.node);
            return broken(*pos, format!("Variable \"${name}\" is required but not provided"));
        }
    }
    Ok(())
}

/// Default values of variables; what type one has says its name.
fn defaults(operation: &OperationDefinition) -> Result<(), Broken> {
    for Positioned { node: definition, .. } in &operation.variable_definitions {
        if let Some(Positioned { node: value, pos }) = &definition.default_value {
            let type_name = definition.var_type.node.to_string();
            let bare = type_name.trim_matches(['[', ']', '!']);
            let enumerated = bare.strip_prefix("Byok").unwrap_or_default();
            let name = match ENUMS.into_iter().find(|name| enumerated.eq_ignore_ascii_case(name)) {
                Some(name) => name,
                None if bare == "jsonb" => ANY_JSON,
                None => "",
            };
            input(name, &value.clone().into_value(), *pos)?;
        }
    }
    Ok(())
}

fn selections(set: &SelectionSet) -> Result<(), Broken> {
    for selection in &set.items {
        match &selection.node {
            Selection::Field(Positioned { node: field, pos }) => {
                let inner = &field.selection_set.node;
                if field.name.node == "__typename" && !(inner.items.is_empty() && field.arguments.is_empty())
                {
                    let why = "Field \"__typename\" has neither arguments nor a selection";
                    return broken(*pos, why.to_owned());
                }
                for (Positioned { node: name, .. }, Positioned { node: value, pos }) in &field.arguments {
                    input(name, value, *pos)?;
                }
                selections(inner)?;
            }
            Selection::InlineFragment(fragment) => selections(&fragment.node.selection_set.node)?,
            Selection::FragmentSpread(_) => {}
        }
    }
    Ok(())
}

/// The value that stands in the document for an input.
fn input(name: &str, value: &Value, place: Pos) -> Result<(), Broken> {
    match value {
        Value::String(_) if ENUMS.contains(&name) => {
            broken(place, format!("\"{name}\" is an enum: its values are written without quotes"))
        }
        Value::List(items) => items.iter().try_for_each(|item| input(name, item, place)),
        Value::Object(pairs) if name != ANY_JSON => {
            pairs.iter().try_for_each(|(name, value): (&Name, _)| input(name, value, place))
        }
        _ => Ok(()),
    }
}

fn broken(place: Pos, what: String) -> Result<(), Broken> {
    let code = ErrorCode::QueryInvalid;
    Err(Broken { refusal: Refusal::because(code, format!("{} {what}.", code.message())), place })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::budget::Budget;
    use super::super::parser::parse;
    use super::*;

    fn said(text: &str, operation: Option<&str>, variables: serde_json::Value) -> Option<String> {
        let document = parse(text, &Budget::OF_UNKNOWN).unwrap();
        let checked = check(&document, operation, &Variables::from_json(variables));
        checked.err().map(|broken| broken.refusal.message.into_owned())
    }

    #[test]
    fn a_string_is_no_enum_unless_it_is_a_variable() {
        for bad in [
            "mutation { byokEncrypt(plaintext: \"\", encoding: \"UTF8\") { ciphertext } }",
            "{ byokRevealMany(items: [{ciphertext: \"\", encoding: \"UTF8\"}]) { value } }",
            "{ byokAudit(filter: {operation: \"AUDIT\"}) { edges { cursor } } }",
            "{ ...F } fragment F on Query { byokAudit(filter: {outcome: \"OK\"}) { edges { cursor } } }",
            "query($e: ByokEncoding = \"UTF8\") { __typename }",
            "query($f: ByokAuditFilter = {operation: \"AUDIT\"}) { __typename }",
        ] {
            assert!(said(bad, None, json!({})).is_some_and(|said| said.contains("enum")), "{bad}");
        }
        for good in [
            "mutation { byokEncrypt(plaintext: \"\", encoding: UTF8) { ciphertext } }",
            "{ byokReveal(ciphertext: \"\", context: {encoding: \"UTF8\"}) { value } }",
            "query($c: jsonb = {encoding: \"UTF8\"}) { __typename }",
            "query($s: String = \"UTF8\") { __typename }",
            "query($e: ByokEncoding) { byokRevealMany(items: [{ciphertext: \"\", encoding: $e}]) { value } }",
        ] {
            assert_eq!(said(good, None, json!({"e": "UTF8"})), None, "{good}");
        }
    }

    #[test]
    fn the_name_of_a_type_has_no_parts() {
        assert!(said("{ __typename { x } }", None, json!({})).is_some());
        assert!(said("{ byokHealth { __typename(a: 1) } }", None, json!({})).is_some());
        assert_eq!(said("{ a: __typename byokHealth { __typename } }", None, json!({})), None);
    }

    #[test]
    fn a_variable_that_must_have_a_value_has_one() {
        let both =
            "query A($a: String!) { __typename } query B($b: String! = \"\", $c: String) { __typename }";
        for (operation, variables, expected) in [
            (Some("A"), json!({}), true),
            (Some("A"), json!({"a": null}), true),
            (Some("A"), json!({"a": ""}), false),
            (Some("B"), json!({}), false),
            // Which runs, nobody knows; async-graphql refuses it.
            (None, json!({}), false),
        ] {
            let said = said(both, operation, variables);
            assert_eq!(
                said.is_some_and(|said| said.contains("\"$a\" is required")),
                expected,
                "{operation:?}"
            );
        }
        assert!(said("query($a: [Int]!) { __typename }", None, json!({})).is_some());
    }
}
