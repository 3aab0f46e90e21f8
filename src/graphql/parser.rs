//! Reads a GraphQL document (spec of October 2021, section 2) into async-graphql's own types.
//!
//! Why not async-graphql's parser: Hasura inlines the values of a join, so every join is a new text to parse, and that
//! parser takes three quarters of the time of the whole request (12.7 µs for a row of a join, this one 0.9), too much to
//! go without a cache of documents, which would hold on to what callers sent. Its errors quote the text; this one says
//! only where it stopped. Nothing here is recursive without a bound.
//!
//! Stricter than the other where the spec is: a key that stands twice in an object is refused, and so is an empty list
//! of variables.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use async_graphql::indexmap::IndexMap;
use async_graphql::parser::types::{
    BaseType, Directive, DocumentOperations, ExecutableDocument, Field, FragmentDefinition, FragmentSpread,
    InlineFragment, OperationDefinition, OperationType, Selection, SelectionSet, Type, TypeCondition,
    VariableDefinition,
};
use async_graphql::{Name, Pos, Positioned};
use async_graphql_value::Value;

use crate::model::ErrorCode;

use super::budget::Budget;
use super::lexer::{Lexer, Token};

/// How deep selections, values and types may nest, all told. Hasura's introspection needs 13.
const MAX_DEPTH: usize = 32;
/// How many arguments, or directives, one place may have: what validates them is quadratic in places.
const MAX_BESIDE: usize = 64;
/// How many fragments a document may define.
const MAX_FRAGMENTS: usize = 256;
/// How many operations a document may have: what all fragments hold is looked at for each.
const MAX_OPERATIONS: usize = 64;

/// Where the text stops being a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError(pub(super) Pos);

/// Why a text is not taken as a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParseError {
    /// It is none, or nests too deep.
    Syntax(SyntaxError),
    /// It holds more than the budget: `TOO_MANY_ITEMS` for values, `QUERY_INVALID` for selections.
    TooMuch(ErrorCode),
}

type Parsed<T> = Result<T, SyntaxError>;

/// The document that `text` is. Stops as soon as it goes past the budget: in memory a document takes a hundred times as
/// much as its text.
///
/// # Errors
/// The place of the first mistake, or what is too much.
pub(super) fn parse(text: &str, budget: &Budget) -> Result<ExecutableDocument, ParseError> {
    let mut parser = Parser {
        lexer: Lexer::new(text),
        token: Token::End,
        pos: Pos::default(),
        depth: 0,
        selections: budget.selections,
        values: budget.values,
        too_much: None,
    };
    let document = parser.advance().and_then(|()| parser.document());
    document.map_err(|error| parser.too_much.map_or(ParseError::Syntax(error), ParseError::TooMuch))
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The next token, not yet taken, and where it stands.
    token: Token<'a>,
    pos: Pos,
    depth: usize,
    /// How many more selections, directives and variables there may be, and how many more values.
    selections: usize,
    values: usize,
    /// What there was too much of.
    too_much: Option<ErrorCode>,
}

impl<'a> Parser<'a> {
    fn document(&mut self) -> Parsed<ExecutableDocument> {
        let mut anonymous = None;
        let mut named = HashMap::new();
        let mut fragments = HashMap::new();
        loop {
            let pos = self.pos;
            let is_described = self.description()?;
            let operation = match self.token {
                Token::End if !is_described => break,
                Token::Mark(b'{') if !is_described => None,
                Token::Name("fragment") => {
                    self.advance()?;
                    let (name, fragment) = self.fragment()?;
                    if fragments.len() == MAX_FRAGMENTS || fragments.contains_key(&name) {
                        return Err(SyntaxError(pos));
                    }
                    fragments.insert(name, Positioned::new(fragment, pos));
                    continue;
                }
                Token::Name("query") => Some(OperationType::Query),
                Token::Name("mutation") => Some(OperationType::Mutation),
                Token::Name("subscription") => Some(OperationType::Subscription),
                _ => return self.refuse(),
            };
            let mut name = None;
            let mut variable_definitions = Vec::new();
            let mut directives = Vec::new();
            if operation.is_some() {
                self.advance()?;
                if let Token::Name(_) = self.token {
                    name = Some(self.name()?.node);
                }
                if self.take(b'(')? {
                    variable_definitions = self.variable_definitions()?;
                }
                directives = self.directives()?;
            }
            let definition = OperationDefinition {
                ty: operation.unwrap_or(OperationType::Query),
                variable_definitions,
                directives,
                selection_set: self.selection_set()?,
            };
            let definition = Positioned::new(definition, pos);
            if named.len() == MAX_OPERATIONS {
                return Err(SyntaxError(pos));
            }
            match name {
                None if anonymous.is_none() => anonymous = Some(definition),
                None => return Err(SyntaxError(pos)),
                Some(name) => match named.entry(name) {
                    Entry::Vacant(place) => drop(place.insert(definition)),
                    Entry::Occupied(_) => return Err(SyntaxError(pos)),
                },
            }
        }
        let operations = match anonymous {
            Some(operation) if named.is_empty() => DocumentOperations::Single(operation),
            None if !named.is_empty() => DocumentOperations::Multiple(named),
            _ => return self.refuse(),
        };
        Ok(ExecutableDocument { operations, fragments })
    }

    fn fragment(&mut self) -> Parsed<(Name, FragmentDefinition)> {
        if self.token == Token::Name("on") {
            return self.refuse();
        }
        let name = self.name()?.node;
        let pos = self.pos;
        if self.token != Token::Name("on") {
            return self.refuse();
        }
        self.advance()?;
        let type_condition = Positioned::new(TypeCondition { on: self.name()? }, pos);
        let directives = self.directives()?;
        Ok((name, FragmentDefinition { type_condition, directives, selection_set: self.selection_set()? }))
    }

    fn variable_definitions(&mut self) -> Parsed<Vec<Positioned<VariableDefinition>>> {
        let mut definitions = Vec::new();
        loop {
            self.count_selection()?;
            let pos = self.pos;
            self.description()?;
            self.expect(b'$')?;
            let name = self.name()?;
            self.expect(b':')?;
            let type_pos = self.pos;
            let var_type = Positioned::new(self.deeper(Self::type_of)?, type_pos);
            let mut default_value = None;
            if self.take(b'=')? {
                let pos = self.pos;
                let value = self.value()?.into_const().ok_or(SyntaxError(pos))?;
                default_value = Some(Positioned::new(value, pos));
            }
            let directives = self.constant_directives()?;
            definitions
                .push(Positioned::new(VariableDefinition { name, var_type, directives, default_value }, pos));
            if self.take(b')')? {
                return Ok(definitions);
            }
        }
    }

    /// Passes over the description of a definition (spec of September 2025, section 2.2); whether there is one.
    fn description(&mut self) -> Parsed<bool> {
        let Token::Text(text) = self.token else { return Ok(false) };
        text.value().ok_or(SyntaxError(self.pos))?;
        self.advance()?;
        Ok(true)
    }

    fn type_of(&mut self) -> Parsed<Type> {
        let base = if self.take(b'[')? {
            let inner = self.deeper(Self::type_of)?;
            self.expect(b']')?;
            BaseType::List(Box::new(inner))
        } else {
            BaseType::Named(self.name()?.node)
        };
        Ok(Type { base, nullable: !self.take(b'!')? })
    }

    fn selection_set(&mut self) -> Parsed<Positioned<SelectionSet>> {
        let pos = self.pos;
        self.expect(b'{')?;
        let items = self.deeper(|parser| {
            let mut items = vec![parser.selection()?];
            while !parser.take(b'}')? {
                items.push(parser.selection()?);
            }
            Ok(items)
        })?;
        Ok(Positioned::new(SelectionSet { items }, pos))
    }

    fn selection(&mut self) -> Parsed<Positioned<Selection>> {
        self.count_selection()?;
        let pos = self.pos;
        let selection = if self.token == Token::Spread {
            self.advance()?;
            match self.token {
                Token::Name(name) if name != "on" => {
                    let fragment_name = self.name()?;
                    let directives = self.directives()?;
                    Selection::FragmentSpread(Positioned::new(
                        FragmentSpread { fragment_name, directives },
                        pos,
                    ))
                }
                _ => {
                    let condition_pos = self.pos;
                    let mut type_condition = None;
                    if self.token == Token::Name("on") {
                        self.advance()?;
                        type_condition =
                            Some(Positioned::new(TypeCondition { on: self.name()? }, condition_pos));
                    }
                    let directives = self.directives()?;
                    let selection_set = self.selection_set()?;
                    let fragment = InlineFragment { type_condition, directives, selection_set };
                    Selection::InlineFragment(Positioned::new(fragment, pos))
                }
            }
        } else {
            let mut name = self.name()?;
            let mut alias = None;
            if self.take(b':')? {
                alias = Some(name);
                name = self.name()?;
            }
            let arguments = self.arguments()?;
            let directives = self.directives()?;
            let selection_set = match self.token {
                Token::Mark(b'{') => self.selection_set()?,
                _ => Positioned::default(),
            };
            Selection::Field(Positioned::new(
                Field { alias, name, arguments, directives, selection_set },
                pos,
            ))
        };
        Ok(Positioned::new(selection, pos))
    }

    fn arguments(&mut self) -> Parsed<Vec<(Positioned<Name>, Positioned<Value>)>> {
        let mut arguments = Vec::new();
        if self.take(b'(')? {
            loop {
                let name = self.name()?;
                self.expect(b':')?;
                let pos = self.pos;
                if arguments.len() == MAX_BESIDE {
                    return self.refuse();
                }
                arguments.push((name, Positioned::new(self.value()?, pos)));
                if self.take(b')')? {
                    break;
                }
            }
        }
        Ok(arguments)
    }

    fn directives(&mut self) -> Parsed<Vec<Positioned<Directive>>> {
        let mut directives = Vec::new();
        while self.token == Token::Mark(b'@') {
            let pos = self.pos;
            if directives.len() == MAX_BESIDE {
                return self.refuse();
            }
            self.count_selection()?;
            self.advance()?;
            let name = self.name()?;
            directives.push(Positioned::new(Directive { name, arguments: self.arguments()? }, pos));
        }
        Ok(directives)
    }

    /// Directives where there are no variables yet.
    fn constant_directives(&mut self) -> Parsed<Vec<Positioned<Directive>>> {
        let directives = self.directives()?;
        let mut values = directives.iter().flat_map(|directive| &directive.node.arguments);
        match values.find(|(_, value)| value.node.clone().into_const().is_none()) {
            Some((_, value)) => Err(SyntaxError(value.pos)),
            None => Ok(directives),
        }
    }

    fn value(&mut self) -> Parsed<Value> {
        match self.values.checked_sub(1) {
            Some(left) => self.values = left,
            None => {
                self.too_much = Some(ErrorCode::TooManyItems);
                return self.refuse();
            }
        }
        let value = match self.token {
            Token::Mark(b'$') => {
                self.advance()?;
                return Ok(Value::Variable(self.name()?.node));
            }
            Token::Mark(b'[') => {
                self.advance()?;
                return self.deeper(|parser| {
                    let mut items = Vec::new();
                    while !parser.take(b']')? {
                        items.push(parser.value()?);
                    }
                    Ok(Value::List(items))
                });
            }
            Token::Mark(b'{') => {
                self.advance()?;
                return self.deeper(Self::object);
            }
            Token::Name("null") => Value::Null,
            Token::Name("true") => Value::Boolean(true),
            Token::Name("false") => Value::Boolean(false),
            Token::Name(name) => Value::Enum(Name::new(name)),
            // An integer; as a JSON number it would have a fraction.
            Token::Number("-0") => Value::Number(0.into()),
            Token::Number(text) => Value::Number(text.parse().map_err(|_| SyntaxError(self.pos))?),
            Token::Text(text) => Value::String(text.value().ok_or(SyntaxError(self.pos))?),
            Token::Mark(_) | Token::Spread | Token::End => return self.refuse(),
        };
        self.advance()?;
        Ok(value)
    }

    fn object(&mut self) -> Parsed<Value> {
        let mut object = IndexMap::new();
        while !self.take(b'}')? {
            let key = self.name()?;
            self.expect(b':')?;
            if object.insert(key.node, self.value()?).is_some() {
                return Err(SyntaxError(key.pos));
            }
        }
        Ok(Value::Object(object))
    }

    fn name(&mut self) -> Parsed<Positioned<Name>> {
        let Token::Name(name) = self.token else { return self.refuse() };
        let name = Positioned::new(Name::new(name), self.pos);
        self.advance()?;
        Ok(name)
    }

    /// One level further down, within the bound.
    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == MAX_DEPTH {
            return self.refuse();
        }
        self.depth += 1;
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn count_selection(&mut self) -> Parsed<()> {
        match self.selections.checked_sub(1) {
            Some(left) => {
                self.selections = left;
                Ok(())
            }
            None => {
                self.too_much = Some(ErrorCode::QueryInvalid);
                self.refuse()
            }
        }
    }

    fn take(&mut self, mark: u8) -> Parsed<bool> {
        let there = self.token == Token::Mark(mark);
        if there {
            self.advance()?;
        }
        Ok(there)
    }

    fn expect(&mut self, mark: u8) -> Parsed<()> {
        if self.take(mark)? { Ok(()) } else { self.refuse() }
    }

    fn advance(&mut self) -> Parsed<()> {
        (self.token, self.pos) = self.lexer.next().map_err(SyntaxError)?;
        Ok(())
    }

    fn refuse<T>(&self) -> Parsed<T> {
        Err(SyntaxError(self.pos))
    }
}

#[cfg(test)]
mod tests {
    use async_graphql::parser::parse_query;

    use super::*;

    fn budget() -> Budget {
        Budget::of_known(100, 1 << 20)
    }

    fn parse(text: &str) -> Result<ExecutableDocument, ParseError> {
        super::parse(text, &budget())
    }

    /// Documents that both parsers must read alike.
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
    fn it_reads_what_the_stock_parser_reads() {
        for text in GOOD {
            let ours = serde_json::to_value(parse(text).unwrap_or_else(|error| panic!("{text}: {error:?}")))
                .unwrap();
            let stock = serde_json::to_value(parse_query(text).unwrap()).unwrap();
            assert_eq!(without_places(ours), without_places(stock), "{text}");
        }
    }

    /// The two differ in which place they give to a compound node; errors only need it to be near.
    fn without_places(value: serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Object(mut map) => {
                map.remove("pos");
                map.into_iter().map(|(key, value)| (key, without_places(value))).collect()
            }
            serde_json::Value::Array(items) => items.into_iter().map(without_places).collect(),
            other => other,
        }
    }

    #[test]
    fn what_is_no_document_is_refused_where_it_goes_wrong() {
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
    fn a_key_that_stands_twice_in_an_object_is_refused() {
        assert!(parse("{a(b:{c:1,d:2})}").is_ok());
        assert!(parse("{a(b:{c:1,c:1})}").is_err());
    }

    #[test]
    fn a_character_beyond_the_first_plane_is_escaped_as_pair_or_number() {
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
    fn minus_nothing_is_an_integer() {
        let text = serde_json::to_string(&parse("{a(b:-0)}").unwrap()).unwrap();
        assert!(text.contains("0") && !text.contains("0.0"), "{text}");
    }

    #[test]
    fn nesting_beyond_the_bound_is_refused_and_not_a_crash() {
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
    fn arguments_directives_and_fragments_are_bounded() {
        let arguments =
            |count| format!("{{a({})}}", (0..count).map(|n| format!("b{n}:1 ")).collect::<String>());
        assert!(parse(&arguments(MAX_BESIDE)).is_ok());
        assert!(parse(&arguments(MAX_BESIDE + 1)).is_err());
        assert!(parse(&format!("{{a {}}}", "@d ".repeat(MAX_BESIDE))).is_ok());
        assert!(parse(&format!("{{a {}}}", "@d ".repeat(MAX_BESIDE + 1))).is_err());
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
        assert_eq!(parse(&fields(selections + 1)).err(), Some(ParseError::TooMuch(ErrorCode::QueryInvalid)));
        let list = |count| format!("{{a(b:[{}])}}", "1 ".repeat(count));
        assert!(parse(&list(values - 1)).is_ok());
        assert_eq!(parse(&list(values)).err(), Some(ParseError::TooMuch(ErrorCode::TooManyItems)));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[ -~\u{e9}\u{1F600}\n\"\\\\{}()\\[\\]:$@!.#a0-]{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn any_string_comes_back_as_it_was_written(text in ".{0,80}") {
            let escaped = serde_json::to_string(&text).unwrap().replace("\\u007f", "\u{7f}");
            let document = parse(&format!("{{a(b:{escaped})}}")).unwrap();
            let DocumentOperations::Single(operation) = &document.operations else { unreachable!() };
            let Selection::Field(field) = &operation.node.selection_set.node.items[0].node else { unreachable!() };
            proptest::prop_assert_eq!(&field.node.arguments[0].1.node, &Value::String(text));
        }
    }
}
