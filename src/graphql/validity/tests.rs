//! The smallest documents that async-graphql's validation judged wrongly, and the texts of faults.

use async_graphql::Variables;
use serde_json::{Value, json};

use super::super::cost::Budget;
use super::super::parser::parse;
use super::super::schema::schema;
use super::{Fault, Validity};

fn faults(text: &str) -> Vec<Fault> {
    let document = parse(text, &Budget::ANONYMOUS).unwrap();
    Validity::of(&schema()).of_document(&document).err().unwrap_or_default()
}

fn of_variables(text: &str, operation: Option<&str>, variables: Value) -> Vec<Fault> {
    let document = parse(text, &Budget::ANONYMOUS).unwrap();
    let validity = Validity::of(&schema());
    assert_eq!(validity.of_document(&document), Ok(()), "{text}");
    let variables = Variables::from_json(variables);
    validity.of_variables(&document, operation, &variables).err().unwrap_or_default()
}

#[test]
fn a_fault_describes_what_is_not_valid_and_where() {
    for (text, what, field) in [
        // A list of an unknown type: async-graphql panicked.
        ("query($a: [T!] = [{}]) { byokRevealMany(items: $a) { value } }", "Unknown type \"T\"", None),
        // A nullable variable in a non-null position, also in a list and in an object.
        (
            "query($a: String) { byokReveal(ciphertext: $a) { value } }",
            "Variable \"$a\" of type \"String\" used in position expecting type \"String!\"",
            Some("byokReveal.ciphertext"),
        ),
        (
            "query($a: String = null) { byokReveal(ciphertext: $a) { value } }",
            "Variable \"$a\" of type \"String\" used in position expecting type \"String!\"",
            Some("byokReveal.ciphertext"),
        ),
        (
            "query($a: String) { byokRevealMany(items: [{ciphertext: \"\"}, {ciphertext: $a}]) { value } }",
            "Variable \"$a\" of type \"String\" used in position expecting type \"String!\"",
            Some("byokRevealMany.items[1].ciphertext"),
        ),
        (
            "query($a: Boolean) { byokHealth { status @skip(if: $a) } }",
            "Variable \"$a\" of type \"Boolean\" used in position expecting type \"Boolean!\"",
            Some("skip.if"),
        ),
        (
            "query($a: Int!) { ...F } fragment F on Query { byokReveal(ciphertext: $a) { value } }",
            "Variable \"$a\" of type \"Int!\" used in position expecting type \"String!\"",
            Some("byokReveal.ciphertext"),
        ),
        // Arguments of directives.
        (
            "{ byokHealth { status @skip(if: \"true\") } }",
            "Invalid value for argument \"if\", expected type \"Boolean!\"",
            Some("skip.if"),
        ),
        (
            "{ byokHealth { status @skip(if: true, x: 1) } }",
            "Unknown argument \"x\" on directive \"skip\"",
            None,
        ),
        (
            "{ byokHealth { status @deprecated } }",
            "Directive \"deprecated\" may not be used on \"FIELD\"",
            None,
        ),
        (
            "query($a: Int @skip(if: true)) { byokAudit(first: $a) { edges { cursor } } }",
            "Directive \"skip\" may not be used on \"VARIABLE_DEFINITION\"",
            None,
        ),
        // A number instead of an object, and a list instead of a value.
        (
            "{ byokAudit(filter: 7) { edges { cursor } } }",
            "Invalid value for argument \"filter\", expected type \"ByokAuditFilter\"",
            Some("byokAudit.filter"),
        ),
        (
            "query($a: ID) { byokRotation(id: [$a]) { state } }",
            "Invalid value for argument \"id\", expected type \"ID!\"",
            Some("byokRotation.id"),
        ),
        // A string is an enum value only in a variable.
        (
            "{ byokAudit(filter: {operation: \"AUDIT\"}) { edges { cursor } } }",
            "Invalid value for argument \"filter.operation\", expected type \"ByokOperation\"",
            Some("byokAudit.filter.operation"),
        ),
        (
            "query($f: ByokAuditFilter = {operation: \"AUDIT\"}) { byokAudit(filter: $f) { edges { cursor } } }",
            "Invalid default value for variable \"$f.operation\", expected type \"ByokOperation\"",
            Some("$f.operation"),
        ),
        ("{ __typename { x } }", "Field \"__typename\" has neither arguments nor a selection", None),
        (
            "{ a: byokHealth { status } a: byokAuditCheckpoint { size } }",
            "Fields \"a\" conflict because \"byokHealth\" and \"byokAuditCheckpoint\" are different fields",
            None,
        ),
        (
            "{ byokHealth { a: status } ...F } fragment F on Query { byokHealth { a: database } }",
            "Fields \"a\" conflict because \"status\" and \"database\" are different fields",
            None,
        ),
        ("subscription { byokHealth { status } }", "There is no root for the operation", None),
    ] {
        let faults = faults(text);
        let found = faults.iter().find(|fault| fault.what == what);
        let found = found.unwrap_or_else(|| panic!("{text}: {faults:?}"));
        assert_eq!(found.field.as_deref(), field, "{text}");
        assert!(found.at.line > 0, "{text}");
    }
}

#[test]
fn valid_documents_have_no_faults() {
    for text in [
        "query($a: String! = \"\") { byokReveal(ciphertext: $a) { value } }",
        "query($a: String = \"\") { byokReveal(ciphertext: $a) { value } }",
        "{ byokRevealMany(items: {ciphertext: \"\", encoding: UTF8}) { value } }",
        "query($e: ByokEncoding) { byokRevealMany(items: [{ciphertext: \"\", encoding: $e}]) { value } }",
        "{ byokReveal(ciphertext: \"\", context: {encoding: \"UTF8\"}) { value } }",
        "query($a: String) { byokReveal(ciphertext: \"\", context: {any: [$a]}) { value } }",
        "{ byokRotation(id: 7) { state } a: __typename }",
        "{ byokHealth { status } byokHealth { database ...F ...F } } fragment F on ByokHealth { status }",
        "query A($a: Int) { byokAudit(first: $a) { ...P } } query B { byokAudit { ...P } }
         fragment P on ByokAuditConnection { pageInfo { endCursor } }",
    ] {
        assert_eq!(faults(text), [], "{text}");
    }
}

#[test]
fn a_variable_is_of_its_type() {
    let many = "query($i: [ByokDecryptItem!]!, $f: Int) { byokRevealMany(items: $i) { value } byokAudit(first: $f) { edges { cursor } } }";
    for (variables, expected) in [
        (json!({}), Some("Variable \"$i\" is required but not provided")),
        (json!({"i": null}), Some("Variable \"$i\" is required but not provided")),
        (json!({"i": 7}), Some("Invalid value for variable \"$i\", expected type \"ByokDecryptItem!\"")),
        (
            json!({"i": [{"ciphertext": "", "encoding": "HEX"}]}),
            Some("Invalid value for variable \"$i[0].encoding\", expected type \"ByokEncoding\""),
        ),
        (
            json!({"i": [{}]}),
            Some(
                "Invalid value for variable \"$i[0].ciphertext\", field \"ciphertext\" of type \"String!\" is required but not provided",
            ),
        ),
        (
            json!({"i": [{"ciphertext": "", "C4N4RY": ""}]}),
            Some("Invalid value for variable \"$i[0]\", unknown field"),
        ),
        (json!({"i": [], "f": 1.5}), Some("Invalid value for variable \"$f\", expected type \"Int\"")),
        (json!({"i": {"ciphertext": "", "encoding": "UTF8"}, "f": null}), None),
        (json!({"i": [], "more": 1}), None),
    ] {
        let faults = of_variables(many, None, variables.clone());
        assert_eq!(faults.first().map(|fault| fault.what.as_str()), expected, "{variables}");
    }
}

#[test]
fn an_operation_is_found_by_its_name() {
    let two = "query A { __typename } query B($b: Int!) { byokAudit(first: $b) { edges { cursor } } }";
    assert_eq!(of_variables(two, Some("A"), json!({})), []);
    for (text, name, what) in [
        (two, None, "Operation name required in request"),
        (two, Some("C"), "Unknown operation named"),
        (two, Some("B"), "Variable \"$b\" is required but not provided"),
        ("{ __typename }", Some("A"), "Unknown operation named"),
    ] {
        assert_eq!(of_variables(text, name, json!({}))[0].what, what);
    }
}

#[test]
fn faults_are_few_and_long_names_are_cut() {
    let many: String = (0..100).map(|n| format!("a{n} ")).collect();
    assert_eq!(faults(&format!("{{ {many} }}")).len(), super::MAX_FAULTS);
    assert!(faults(&format!("{{ {} }}", "x".repeat(1_000)))[0].what.len() < 200);
}
