//! Parses a GraphQL document (spec of October 2021, section 2) into async-graphql's types.
//!
//! Why not async-graphql's parser: Hasura inlines the values of a join, so every join is a new text
//! to parse. That parser takes three quarters of the time of the whole request (12.7 µs for a row
//! of a join, this one 0.9), so slow that it would need a cache of documents, which would keep
//! values that callers sent. Its errors quote the text; this one only gives the position. Every
//! recursion here is limited.
//!
//! It is stricter than the other parser where the spec is: duplicate keys in an object and empty
//! lists of variables are refused.

mod lexer;

#[cfg(test)]
mod tests;

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

use super::cost::Budget;
use lexer::{Lexer, Token};

/// How deep selections, values and types may nest, in total. Hasura's introspection needs 13.
const MAX_DEPTH: usize = 32;
/// The most arguments, and the most directives, of one field or directive: validating them is
/// quadratic in part.
const MAX_ARGUMENTS: usize = 64;
/// The most fragments in a document.
const MAX_FRAGMENTS: usize = 256;
/// The most operations in a document: each of them is checked with all fragments.
const MAX_OPERATIONS: usize = 64;

/// The position where the text stops being a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError(pub(super) Pos);

/// Why a text is not accepted as a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParseError {
    /// It is not a document, or it nests too deep.
    Syntax(SyntaxError),
    /// It exceeds the budget: `TOO_MANY_ITEMS` for values, `QUERY_INVALID` for selections.
    OverBudget(ErrorCode),
}

type Parsed<T> = Result<T, SyntaxError>;

/// Parses a document. Stops as soon as it exceeds the budget: in memory a document takes a hundred
/// times as much as its text.
///
/// # Errors
/// The position of the first error, or the code for what exceeds the budget.
pub(super) fn parse(text: &str, budget: &Budget) -> Result<ExecutableDocument, ParseError> {
    let mut parser = Parser {
        lexer: Lexer::new(text),
        token: Token::End,
        pos: Pos::default(),
        depth: 0,
        selections: budget.selections,
        values: budget.values,
        over_budget: None,
    };
    let document = parser.advance().and_then(|()| parser.document());
    document.map_err(|error| parser.over_budget.map_or(ParseError::Syntax(error), ParseError::OverBudget))
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The next token.
    token: Token<'a>,
    /// The position of the next token.
    pos: Pos,
    depth: usize,
    /// The number of selections, directives and variables that may follow.
    selections: usize,
    /// The number of values that may follow.
    values: usize,
    /// The code for what exceeds the budget.
    over_budget: Option<ErrorCode>,
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
                    Entry::Vacant(entry) => drop(entry.insert(definition)),
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

    /// Skips the description of a definition (spec of September 2025, section 2.2). Returns whether
    /// there is one.
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
                if arguments.len() == MAX_ARGUMENTS {
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
            if directives.len() == MAX_ARGUMENTS {
                return self.refuse();
            }
            self.count_selection()?;
            self.advance()?;
            let name = self.name()?;
            directives.push(Positioned::new(Directive { name, arguments: self.arguments()? }, pos));
        }
        Ok(directives)
    }

    /// Directives whose arguments may not contain variables.
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
                self.over_budget = Some(ErrorCode::TooManyItems);
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
            // serde_json would read it as a float; it is an integer.
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

    /// Parses one nesting level further down, if the limit allows it.
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
                self.over_budget = Some(ErrorCode::QueryInvalid);
                self.refuse()
            }
        }
    }

    fn take(&mut self, mark: u8) -> Parsed<bool> {
        let is_next = self.token == Token::Mark(mark);
        if is_next {
            self.advance()?;
        }
        Ok(is_next)
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
