//! The parser, held against async-graphql's own where both read a text, and its limits.

use async_graphql::parser::parse_query;

use super::*;

fn budget() -> Budget {
    Budget::authenticated(100, 1 << 20)
}

fn parse(text: &str) -> Result<ExecutableDocument, ParseError> {
    super::parse(text, &budget())
}

/// Documents that both parsers must parse alike.
const GOOD: &[&str] = &[
    "{a}",
    "query Q($a: String! = \"x\", $b: [Int!]) @d(e: 1) { a(b: $a) { c } }",
    "mutation{byokDecrypt(ciphertext:\"byok:v1:AA\",recordId:7,context:{org:\"o\",n:null,l:[1,2.5e3,-1,ENUM,true,$v]}){plaintext}}",
    "{ a: b(c: \"\"\"\n    block\n      \"quoted\" end\n\n  \"\"\") ...F ... on T @include(if: $x) { d } ... @skip(if: false) { e } }\nfragment F on T @d { f }",
    "\u{feff}# a comment, with ünïcode\r\nquery A { a }\rquery B { b }\n",
    "{ a(b: \"tab\\t quote\\\" slash\\/ back\\\\ nl\\n \\u00e9 żółć\") }",
    "subscription S { s }",
    "{ query mutation fragment on: on type }",
    "{ a(b: \"\", c: \"\"\"\"\"\", d: [], e: {}) }",
];

#[test]
fn it_parses_as_async_graphqls_parser_does() {
    for text in GOOD {
        let ours =
            serde_json::to_value(parse(text).unwrap_or_else(|error| panic!("{text}: {error:?}"))).unwrap();
        let theirs = serde_json::to_value(parse_query(text).unwrap()).unwrap();
        assert_eq!(without_positions(ours), without_positions(theirs), "{text}");
    }
}

/// Removes positions: the parsers differ in the position of a compound node, which errors need only
/// roughly.
fn without_positions(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(mut map) => {
            map.remove("pos");
            map.into_iter().map(|(key, value)| (key, without_positions(value))).collect()
        }
        serde_json::Value::Array(items) => items.into_iter().map(without_positions).collect(),
        other => other,
    }
}

#[test]
fn an_error_has_the_position_where_the_document_becomes_invalid() {
    for (text, line, column) in [
        ("", 1, 1),
        ("{", 1, 2),
        ("{}", 1, 2),
        ("{a", 1, 3),
        ("{a(b:)}", 1, 6),
        ("{a(b:1 b}", 1, 9),
        ("{a()}", 1, 4),
        ("query(){a}", 1, 7),
        ("{a(b:\"x)}", 1, 6),
        ("{a(b:\"\\x\")}", 1, 6),
        ("{a(b:\"\\ud800\")}", 1, 6),
        ("{a(b:01)}", 1, 6),
        ("{a(b:1x)}", 1, 6),
        ("{a(b:1.)}", 1, 6),
        ("{a(b:1e999)}", 1, 6),
        ("{a} {b}", 1, 5),
        ("{a} query Q{b}", 1, 15),
        ("query Q{a} query Q{b}", 1, 12),
        ("fragment F on T{a}", 1, 19),
        ("fragment on on T{a}", 1, 10),
        ("{a} fragment F on T{a} fragment F on T{b}", 1, 24),
        ("query($a:Int=$b){a}", 1, 14),
        ("query($a:Int@d(e:[$b])){a}", 1, 18),
        ("{a(b:\"\\u{110000}\")}", 1, 6),
        ("{a(b:\"\\u{d83d}\")}", 1, 6),
        ("{a(b:\"\\u{}\")}", 1, 6),
        ("{a(b:\"\\u{+41}\")}", 1, 6),
        ("{a(b:\"\\u{41\")}", 1, 6),
        ("{\n  ż}", 2, 3),
        ("# żółć\n{a(b: \"żółć\" ?)}", 2, 14),
        ("type T{a:Int}", 1, 1),
        ("{a .. b}", 1, 4),
    ] {
        assert_eq!(
            parse(text).err(),
            Some(ParseError::Syntax(SyntaxError(Pos { line, column }))),
            "{text:?}"
        );
    }
}

#[test]
fn a_duplicate_key_in_an_object_is_refused() {
    assert!(parse("{a(b:{c:1,d:2})}").is_ok());
    assert!(parse("{a(b:{c:1,c:1})}").is_err());
}

#[test]
fn a_character_beyond_the_first_plane_has_two_escaped_forms() {
    for escaped in [r"\ud83d\ude00", r"\u{1F600}", r"\u{000001f600}"] {
        let document = parse(&format!("{{a(b:\"{escaped}\")}}")).unwrap();
        let text = serde_json::to_string(&document).unwrap();
        assert!(text.contains('😀'), "{text}");
    }
}

#[test]
fn definitions_may_be_described() {
    for good in [
        "\"An operation.\" query { a }",
        "\"\"\"Two\nlines.\"\"\" mutation M(\"A variable.\" $a: Int) { b(a: $a) }",
        "{ ...F } \"A fragment.\" fragment F on T { a }",
    ] {
        assert!(parse(good).is_ok(), "{good}");
    }
    for bad in
        ["\"short\" { a }", "{ a } \"of nothing\"", "\"two\" \"texts\" query { a }", "{ \"a field\" a }"]
    {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn minus_zero_is_an_integer() {
    let text = serde_json::to_string(&parse("{a(b:-0)}").unwrap()).unwrap();
    assert!(text.contains("0") && !text.contains("0.0"), "{text}");
}

#[test]
fn nesting_beyond_the_limit_is_refused_without_a_crash() {
    for (open, close) in [("{a", "}"), ("[", "]"), ("{a:", "}")] {
        let nested = |depth: usize| match open {
            "{a" => format!("{}{}", open.repeat(depth), close.repeat(depth)),
            _ => format!("{{a(b:{}1{})}}", open.repeat(depth), close.repeat(depth)),
        };
        assert!(parse(&nested(20)).is_ok(), "{open}");
        assert!(parse(&nested(100_000)).is_err(), "{open}");
    }
    assert!(parse(&format!("query($a:{}Int){{a}}", "[".repeat(100_000))).is_err());
    assert!(parse(&"...".repeat(100_000)).is_err());
}

#[test]
fn arguments_directives_and_fragments_are_limited() {
    let arguments = |count| format!("{{a({})}}", (0..count).map(|n| format!("b{n}:1 ")).collect::<String>());
    assert!(parse(&arguments(MAX_ARGUMENTS)).is_ok());
    assert!(parse(&arguments(MAX_ARGUMENTS + 1)).is_err());
    assert!(parse(&format!("{{a {}}}", "@d ".repeat(MAX_ARGUMENTS))).is_ok());
    assert!(parse(&format!("{{a {}}}", "@d ".repeat(MAX_ARGUMENTS + 1))).is_err());
    let fragments =
        |count| (0..count).map(|n| format!("fragment F{n} on T{{a}} ")).collect::<String>() + "{a}";
    assert!(parse(&fragments(MAX_FRAGMENTS)).is_ok());
    assert!(parse(&fragments(MAX_FRAGMENTS + 1)).is_err());
}

#[test]
fn a_document_is_not_built_past_the_budget() {
    let Budget { selections, values, .. } = budget();
    let fields = |count| format!("{{{}}}", "a ".repeat(count));
    assert!(parse(&fields(selections)).is_ok());
    assert_eq!(parse(&fields(selections + 1)).err(), Some(ParseError::OverBudget(ErrorCode::QueryInvalid)));
    let list = |count| format!("{{a(b:[{}])}}", "1 ".repeat(count));
    assert!(parse(&list(values - 1)).is_ok());
    assert_eq!(parse(&list(values)).err(), Some(ParseError::OverBudget(ErrorCode::TooManyItems)));
}

proptest::proptest! {
    #[test]
    fn no_text_causes_a_panic(text in "[ -~\u{e9}\u{1F600}\n\"\\\\{}()\\[\\]:$@!.#a0-]{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_string_keeps_its_value(text in ".{0,80}") {
        let escaped = serde_json::to_string(&text).unwrap().replace("\\u007f", "\u{7f}");
        let document = parse(&format!("{{a(b:{escaped})}}")).unwrap();
        let DocumentOperations::Single(operation) = &document.operations else { unreachable!() };
        let Selection::Field(field) = &operation.node.selection_set.node.items[0].node else { unreachable!() };
        proptest::prop_assert_eq!(&field.node.arguments[0].1.node, &Value::String(text));
    }
}
