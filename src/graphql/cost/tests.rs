//! The cost of documents, and the budgets that refuse them.

use std::fmt::Write as _;

use serde_json::json;

use super::super::parser::{ParseError, parse};
use super::*;

const ITEMS: usize = 10_000;

fn budget() -> Budget {
    Budget::authenticated(ITEMS, 1 << 20)
}

fn cost(text: &str, budget: &Budget) -> Result<QueryCost, OverBudget> {
    cost_of(&parse(text, budget).unwrap(), budget)
}

fn code(text: &str) -> Option<ErrorCode> {
    cost(text, &budget()).err().map(|excess| excess.refusal.code)
}

/// The bytes that the copies of all arguments take, or the code of the refusal.
fn with(text: &str, variables: serde_json::Value) -> Result<usize, ErrorCode> {
    let cost = cost(text, &budget()).map_err(|excess| excess.refusal.code)?;
    cost.check_with(&Variables::from_json(variables), &budget()).map_err(|excess| excess.refusal.code)
}

fn needs_identity(text: &str) -> bool {
    cost(text, &budget()).unwrap().needs_identity
}

#[test]
fn introspection_and_health_need_no_identity() {
    assert!(!needs_identity("{__schema{types{name}} __typename h:byokHealth{status}}"));
    assert!(!needs_identity("query Q{...F} fragment F on Query{byokHealth{status}}"));
    assert!(needs_identity("{byokHealth:byokAudit{edges{cursor}}}"));
    assert!(needs_identity("{...F} fragment F on Query{... on Query{byokReveal(ciphertext:\"\"){value}}}"));
    assert!(needs_identity("query A{byokHealth{status}} mutation B{byokRotate{id}}"));
}

#[test]
fn the_operations_of_the_roots_are_known() {
    let operations = |text: &str| cost(text, &budget()).unwrap().operations;
    assert_eq!(operations("{byokHealth{status}}"), []);
    assert_eq!(
        operations(
            "{a:byokReveal(ciphertext:\"\"){value} b:byokRevealMany(items:[]){value} byokAudit{edges{cursor}}}"
        ),
        [Some(Operation::Reveal), Some(Operation::Audit)]
    );
    assert_eq!(operations("{byokNothing}"), [None]);
}

fn join(rows: usize, arguments: &str) -> String {
    let mut text = String::new();
    (0..rows).for_each(|n| {
        write!(text, "f{n}:byokReveal({arguments}){{__typename value form error{{code message retryable}}}}")
            .unwrap()
    });
    text
}

#[test]
fn the_largest_join_passes_and_one_more_row_does_not() {
    let of = |rows| format!("{{{}}}", join(rows, "ciphertext:\"x\""));
    assert_eq!(code(&of(ITEMS)), None);
    assert_eq!(code(&of(ITEMS + 1)), Some(ErrorCode::TooManyItems));
}

#[test]
fn items_count_over_all_roots() {
    let many = |lists: &[usize]| {
        let list = |length: &usize| format!("[{}]", "{ciphertext:\"\"}".repeat(*length));
        let roots = lists.iter().enumerate();
        let roots = roots.map(|(n, length)| format!("r{n}:byokRevealMany(items:{}){{value}}", list(length)));
        format!("{{{}}}", roots.collect::<String>())
    };
    assert_eq!(code(&many(&[ITEMS])), None);
    assert_eq!(code(&many(&[5_000, 5_000])), None);
    assert_eq!(code(&many(&[5_000, 5_001])), Some(ErrorCode::TooManyItems));
    let items = |length: usize| json!({ "i": vec![json!({ "ciphertext": "" }); length] });
    let twice =
        "query($i:[ByokDecryptItem!]!){a:byokRevealMany(items:$i){value} b:byokRevealMany(items:$i){value}}";
    assert!(with(twice, items(5_000)).is_ok());
    assert_eq!(with(twice, items(5_001)), Err(ErrorCode::TooManyItems));
    let beside = format!(
        "query($i:[ByokDecryptItem!]!){{byokRevealMany(items:$i){{value}}{}}}",
        join(5_000, "ciphertext:\"x\"")
    );
    assert!(with(&beside, items(5_000)).is_ok());
    assert_eq!(with(&beside, items(5_001)), Err(ErrorCode::TooManyItems));
}

#[test]
fn a_variable_counts_as_often_as_it_is_used() {
    let text = "x".repeat(200_000);
    let used = |times| format!("query($t:String!){{{}}}", join(times, "ciphertext:$t"));
    assert!(with(&used(5), json!({ "t": text })).unwrap() > 1_000_000);
    assert_eq!(with(&used(6), json!({ "t": text })), Err(ErrorCode::BodyTooLarge));
    assert_eq!(with(&used(9_000), json!({ "t": text })), Err(ErrorCode::BodyTooLarge));
    let list = json!({ "t": vec![1; 100_000] });
    assert!(with(&used(7), list.clone()).is_ok());
    assert_eq!(with(&used(8), list), Err(ErrorCode::TooManyItems));
    let default = format!("query($t:String=\"{text}\"){{{}}}", join(6, "ciphertext:$t"));
    assert_eq!(with(&default, json!({})), Err(ErrorCode::BodyTooLarge));
    assert!(with(&default, json!({ "t": "x" })).is_ok());
    let directives = format!("query($t:Boolean!){{{}}}", "byokHealth@skip(if:$t){status}".repeat(6));
    assert_eq!(with(&directives, json!({ "t": text })), Err(ErrorCode::BodyTooLarge));
}

#[test]
fn a_text_counts_as_often_as_fragments_repeat_it() {
    let spread = |times: usize| {
        format!(
            "{{{}}} fragment F on Query{{byokReveal(ciphertext:\"{}\"){{value}}}}",
            "...F ".repeat(times),
            "x".repeat(200_000)
        )
    };
    assert_eq!(code(&spread(5)), None);
    assert_eq!(code(&spread(6)), Some(ErrorCode::BodyTooLarge));
}

#[test]
fn a_value_is_not_answered_over_and_over() {
    let aliases = |count: usize| (0..count).map(|n| format!("v{n}:value ")).collect::<String>();
    let one = |count| format!("{{byokReveal(ciphertext:\"x\"){{{}}}}}", aliases(count));
    assert_eq!((code(&one(32)), code(&one(33))), (None, Some(ErrorCode::QueryInvalid)));
    let spread = "{byokReveal(ciphertext:\"x\"){...F ...F ...F ...F ...F}} fragment F on ByokRevealed{a:value b:value c:value d:value e:value f:value}";
    assert_eq!(code(spread), Some(ErrorCode::QueryInvalid));
    let many = format!(
        "query($i:[ByokDecryptItem!]!){{byokRevealMany(items:$i){{{}}}}}",
        aliases(20).replace(":value", ":form")
    );
    let items = |length: usize| json!({ "i": vec![json!({ "ciphertext": "" }); length] });
    assert!(with(&many, items(8_000)).is_ok());
    assert_eq!(with(&many, items(9_000)), Err(ErrorCode::QueryInvalid));
}

#[test]
fn each_copy_of_a_long_value_is_counted_by_its_parts() {
    let aliases = |count: usize| (0..count).map(|n| format!("v{n}:plaintext ")).collect::<String>();
    let many = |count| {
        format!(
            "mutation($i:[ByokDecryptItem!]!){{byokDecryptMany(items:$i){{keyVersion {}}}}}",
            aliases(count)
        )
    };
    let items = json!({ "i": [{ "ciphertext": "x".repeat(200_000) }] });
    assert!(with(&many(1), items.clone()).unwrap() < 210_000);
    assert!(with(&many(5), items.clone()).unwrap() > 1_000_000);
    assert_eq!(with(&many(6), items.clone()), Err(ErrorCode::BodyTooLarge));
    let spread = format!(
        "mutation($i:[ByokDecryptItem!]!){{byokDecryptMany(items:$i){{...F ...F}}}} fragment F on ByokDecryptResult{{{}}}",
        aliases(3)
    );
    assert_eq!(with(&spread, items), Err(ErrorCode::BodyTooLarge));
}

#[test]
fn what_the_log_holds_is_not_answered_over_and_over() {
    let of = |items: &str| format!("{{byokAudit{{edges{{node{{id recordId:id items{{{items}}}}}}}}}}}");
    assert_eq!(code(&of("recordId dekId")), Some(ErrorCode::QueryInvalid), "id is selected twice");
    let of = |items: &str| format!("{{byokAudit{{edges{{node{{id items{{{items}}}}}}}}}}}");
    assert_eq!(code(&of("recordId dekId outcome")), None);
    assert_eq!(code(&of("a:recordId b:recordId")), Some(ErrorCode::QueryInvalid));
    let spread = of("recordId ...F") + "fragment F on ByokAuditItem{recordId}";
    assert_eq!(code(&spread), None, "it is the same value in the answer");
    let spread = of("recordId ...F") + "fragment F on ByokAuditItem{r:recordId}";
    assert_eq!(code(&spread), Some(ErrorCode::QueryInvalid));
    let pages = |count: usize| {
        format!(
            "{{{}}}",
            (0..count).map(|n| format!("p{n}:byokAudit{{edges{{cursor}}}}")).collect::<String>()
        )
    };
    assert_eq!((code(&pages(4)), code(&pages(5))), (None, Some(ErrorCode::QueryInvalid)));
}

#[test]
fn fragments_that_unfold_without_end_are_refused() {
    let mut bomb = String::from("{...F0}");
    (0..30).for_each(|n| write!(bomb, "fragment F{n} on Query{{...F{0} ...F{0}}}", n + 1).unwrap());
    bomb.push_str("fragment F30 on Query{__typename}");
    assert_eq!(code(&bomb), Some(ErrorCode::TooManyItems));
    assert_eq!(
        code(&bomb.replace("on Query", "on T").replacen("{", "{byokHealth{", 1).replacen("}", "}}", 1)),
        Some(ErrorCode::QueryInvalid)
    );
    assert_eq!(
        code("{...A} fragment A on Query{...B} fragment B on Query{...A}"),
        Some(ErrorCode::QueryInvalid)
    );
    assert_eq!(code("{__typename} fragment A on Query{...A}"), Some(ErrorCode::QueryInvalid));
}

#[test]
fn introspection_that_multiplies_is_refused() {
    let nested = |levels: usize| {
        format!(
            "{{__schema{{types{}name{}}}}}",
            "{fields{type".repeat(levels) + "{",
            "}}".repeat(levels) + "}"
        )
    };
    assert_eq!(code(&nested(2)), None);
    assert_eq!(code(&nested(5)), Some(ErrorCode::QueryInvalid));
    let wide: String = (0..2_000).map(|n| format!("a{n}:name ")).collect();
    assert_eq!(code(&format!("{{__schema{{types{{fields{{{wide}}}}}}}}}")), Some(ErrorCode::QueryInvalid));
}

#[test]
fn strangers_get_a_handful_of_roots_and_short_documents() {
    let unknown = |text: &str| match parse(text, &Budget::ANONYMOUS) {
        Ok(document) => cost_of(&document, &Budget::ANONYMOUS).err().map(|excess| excess.refusal.code),
        Err(ParseError::OverBudget(code)) => Some(code),
        Err(ParseError::Syntax(_)) => None,
    };
    let roots =
        |count: usize| format!("{{{}}}", (0..count).map(|n| format!("a{n}:__typename ")).collect::<String>());
    assert_eq!((unknown(&roots(8)), unknown(&roots(9))), (None, Some(ErrorCode::TooManyItems)));
    let health: String = (0..600).map(|n| format!("a{n}:status ")).collect();
    assert_eq!(unknown(&format!("{{byokHealth{{{health}}}}}")), Some(ErrorCode::QueryInvalid));
}
