//! Documents that need not be parsed and validated again. Validation takes a third of the time of a `byokDecrypt`
//! (`docs/performance.md`), and an application sends the same few documents again and again, with other variables.
//!
//! What is kept holds no value of anybody's: a *plain* document has neither strings nor numbers, comments, objects or
//! lists, only fields, and as their arguments variables, enums and booleans. Its variables have no defaults. Whether what they
//! hold is of their types is looked at each time. A join has its values in its text and is never kept.

use std::sync::Arc;

use async_graphql::parser::types::{
    DocumentOperations, ExecutableDocument, OperationDefinition, Selection, SelectionSet,
};
use async_graphql_value::Value;
use moka::sync::Cache;

use super::survey::Survey;

/// How many documents are kept; the ones that are used most.
const MOST: u64 = 256;
/// The longest text that is kept.
const MAX_BYTES: usize = 4_096;

/// A document and what was found out about it.
pub(super) struct Plain {
    pub(super) document: ExecutableDocument,
    pub(super) survey: Arc<Survey>,
}

/// Plain documents that were valid, by their text.
pub(super) struct PlainDocuments(Cache<String, Arc<Plain>>);

impl PlainDocuments {
    pub(super) fn new() -> Self {
        Self(Cache::new(MOST))
    }

    /// The document of this text, if it was valid before.
    pub(super) fn get(&self, text: &str) -> Option<Arc<Plain>> {
        if text.len() > MAX_BYTES { None } else { self.0.get(text) }
    }

    /// Keeps a document that is valid.
    pub(super) fn keep(&self, text: String, plain: Plain) {
        self.0.insert(text, Arc::new(plain));
    }
}

/// Whether a document is plain, so that it may be kept if it is valid.
pub(super) fn is_plain(text: &str, document: &ExecutableDocument) -> bool {
    text.len() <= MAX_BYTES
        && !text.contains(['"', '#'])
        && only_operation(document).is_some_and(|operation| {
            operation.directives.is_empty()
                && is_of_fields(&operation.selection_set.node)
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

/// Fields without directives, whose arguments are variables or one of a few words.
fn is_of_fields(set: &SelectionSet) -> bool {
    set.items.iter().all(|selection| match &selection.node {
        Selection::Field(field) => {
            let is_word = |value: &Value| {
                matches!(value, Value::Variable(_) | Value::Enum(_) | Value::Boolean(_) | Value::Null)
            };
            field.node.directives.is_empty()
                && field.node.arguments.iter().all(|(_, value)| is_word(&value.node))
                && is_of_fields(&field.node.selection_set.node)
        }
        Selection::FragmentSpread(_) | Selection::InlineFragment(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::super::budget::Budget;
    use super::super::parser::parse;
    use super::*;

    const BUDGET: Budget = Budget::OF_UNKNOWN;

    const DECRYPT: &str = "mutation D($c: String!, $r: ID) { byokDecrypt(ciphertext: $c, recordId: $r, encoding: UTF8) { plaintext } }";

    fn plain(text: &str) -> bool {
        is_plain(text, &parse(text, &BUDGET).unwrap())
    }

    #[test]
    fn a_document_of_fields_and_texts_is_plain() {
        assert!(plain(DECRYPT));
        assert!(plain("{ byokHealth { status } }"));
        assert!(plain("query($a: Int) { byokAudit(first: $a) { edges { cursor } } }"));
    }

    #[test]
    fn a_document_that_holds_a_value_is_not() {
        for text in [
            "{ byokReveal(ciphertext: \"x\") { value } }",
            "{ byokReveal(ciphertext: \"\"\"x\"\"\") { value } }",
            "{ byokAudit(first: 17) { edges { cursor } } }",
            "{ byokReveal(ciphertext: [x]) { value } }",
            "{ byokReveal(ciphertext: {a: x}) { value } }",
            "{ byokHealth { status } } # a remark",
            "{ byokHealth @skip(if: true) { status } }",
            "{ ... { byokHealth { status } } }",
            "{ ...F } fragment F on Query { byokHealth { status } }",
            "query A { byokHealth { status } } query B { byokHealth { status } }",
            "query($c: String! = \"x\") { byokReveal(ciphertext: $c) { value } }",
        ] {
            assert!(!plain(text), "{text}");
        }
    }
}
