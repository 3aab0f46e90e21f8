//! A cache of documents that need not be parsed and validated again. Validation takes a third of
//! the time of a `byokDecrypt` (`docs/performance.md`), and an application sends the same few
//! documents again and again, with other variables.
//!
//! No cached document holds a caller's value: it has neither strings nor numbers, comments, objects
//! or lists, only fields whose arguments are variables, enums, booleans and null, and its variables
//! have no defaults. The values of variables are validated for each request. A join has its values
//! in its text and is never cached.

use std::sync::Arc;

use async_graphql::parser::types::{
    DocumentOperations, ExecutableDocument, OperationDefinition, Selection, SelectionSet,
};
use async_graphql_value::Value;
use moka::sync::Cache;

use super::cost::QueryCost;

/// The number of documents in the cache; those used most stay.
const CAPACITY: u64 = 256;
/// The longest text that is cached.
const MAX_BYTES: usize = 4_096;

/// A valid document and its cost.
pub(super) struct ValidatedDocument {
    pub(super) document: ExecutableDocument,
    pub(super) cost: Arc<QueryCost>,
}

/// Valid documents without values, by their text.
pub(super) struct ValidatedCache(Cache<String, Arc<ValidatedDocument>>);

impl ValidatedCache {
    pub(super) fn new() -> Self {
        Self(Cache::new(CAPACITY))
    }

    /// The document of this text, if it is cached.
    pub(super) fn get(&self, text: &str) -> Option<Arc<ValidatedDocument>> {
        if text.len() > MAX_BYTES { None } else { self.0.get(text) }
    }

    /// Caches a document that is valid and for which [`holds_no_value`] is true.
    pub(super) fn insert(&self, text: String, document: ValidatedDocument) {
        self.0.insert(text, Arc::new(document));
    }
}

/// Whether a document holds no value, so that it may be cached if it is valid.
pub(super) fn holds_no_value(text: &str, document: &ExecutableDocument) -> bool {
    text.len() <= MAX_BYTES
        && !text.contains(['"', '#'])
        && only_operation(document).is_some_and(|operation| {
            operation.directives.is_empty()
                && has_no_values(&operation.selection_set.node)
                && operation.variable_definitions.iter().all(|definition| {
                    definition.node.default_value.is_none() && definition.node.directives.is_empty()
                })
        })
}

fn only_operation(document: &ExecutableDocument) -> Option<&OperationDefinition> {
    match &document.operations {
        DocumentOperations::Single(operation) if document.fragments.is_empty() => Some(&operation.node),
        DocumentOperations::Multiple(named) if document.fragments.is_empty() && named.len() == 1 => {
            named.values().next().map(|operation| &operation.node)
        }
        DocumentOperations::Single(_) | DocumentOperations::Multiple(_) => None,
    }
}

/// Whether a selection set has only fields without directives, whose arguments are variables,
/// enums, booleans or null.
fn has_no_values(set: &SelectionSet) -> bool {
    set.items.iter().all(|selection| match &selection.node {
        Selection::Field(field) => {
            let holds_none = |value: &Value| {
                matches!(value, Value::Variable(_) | Value::Enum(_) | Value::Boolean(_) | Value::Null)
            };
            field.node.directives.is_empty()
                && field.node.arguments.iter().all(|(_, value)| holds_none(&value.node))
                && has_no_values(&field.node.selection_set.node)
        }
        Selection::FragmentSpread(_) | Selection::InlineFragment(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::super::cost::Budget;
    use super::super::parser::parse;
    use super::*;

    const BUDGET: Budget = Budget::ANONYMOUS;

    const DECRYPT: &str = "mutation D($c: String!, $r: ID) { byokDecrypt(ciphertext: $c, recordId: $r, encoding: UTF8) { plaintext } }";

    fn is_cacheable(text: &str) -> bool {
        holds_no_value(text, &parse(text, &BUDGET).unwrap())
    }

    #[test]
    fn a_document_of_fields_and_variables_is_cacheable() {
        assert!(is_cacheable(DECRYPT));
        assert!(is_cacheable("{ byokHealth { status } }"));
        assert!(is_cacheable("query($a: Int) { byokAudit(first: $a) { edges { cursor } } }"));
    }

    #[test]
    fn a_document_that_holds_a_value_is_not_cacheable() {
        for text in [
            "{ byokReveal(ciphertext: \"x\") { value } }",
            "{ byokReveal(ciphertext: \"\"\"x\"\"\") { value } }",
            "{ byokAudit(first: 17) { edges { cursor } } }",
            "{ byokReveal(ciphertext: [x]) { value } }",
            "{ byokReveal(ciphertext: {a: x}) { value } }",
            "{ byokHealth { status } } # a comment",
            "{ byokHealth @skip(if: true) { status } }",
            "{ ... { byokHealth { status } } }",
            "{ ...F } fragment F on Query { byokHealth { status } }",
            "query A { byokHealth { status } } query B { byokHealth { status } }",
            "query($c: String! = \"x\") { byokReveal(ciphertext: $c) { value } }",
        ] {
            assert!(!is_cacheable(text), "{text}");
        }
    }
}
