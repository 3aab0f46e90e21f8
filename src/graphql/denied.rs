//! Documents that ask only for what the caller's role may never do. Each root will be refused
//! whatever its arguments are, so it is run without them: no argument is copied for a caller who
//! may do nothing.

use async_graphql::parser::types::{DocumentOperations, ExecutableDocument, Field, Selection, SelectionSet};
use async_graphql::{Name, Pos, Positioned};
use async_graphql_value::Value;

use crate::model::Operation;

use super::cost::{QueryCost, operation_of};

/// Whether every root that needs an identity is refused to the caller; `may_ever` tells whether the
/// caller may do an operation in any context.
pub(super) fn is_denied(cost: &QueryCost, may_ever: impl Fn(Operation) -> bool) -> bool {
    !cost.operations.is_empty()
        && cost.operations.iter().all(|operation| operation.is_some_and(|operation| !may_ever(operation)))
}

/// The document with the shortest possible arguments on each root that needs an identity. Must be
/// run without validation, since its variables are no longer used.
pub(super) fn without_arguments(mut document: ExecutableDocument) -> ExecutableDocument {
    match &mut document.operations {
        DocumentOperations::Single(operation) => strip(&mut operation.node.selection_set.node),
        DocumentOperations::Multiple(named) => {
            named.values_mut().for_each(|operation| strip(&mut operation.node.selection_set.node));
        }
    }
    document.fragments.values_mut().for_each(|fragment| strip(&mut fragment.node.selection_set.node));
    document
}

/// Relies on root fields having names of their own.
fn strip(set: &mut SelectionSet) {
    for selection in &mut set.items {
        match &mut selection.node {
            Selection::Field(field) => match operation_of(field.node.name.node.as_str()) {
                Some(_) => shortest_arguments(&mut field.node),
                None => strip(&mut field.node.selection_set.node),
            },
            Selection::InlineFragment(fragment) => strip(&mut fragment.node.selection_set.node),
            Selection::FragmentSpread(_) => {}
        }
    }
}

fn shortest_arguments(field: &mut Field) {
    let text = |text: &str| Value::String(text.to_owned());
    let argument = match field.name.node.as_str() {
        "byokReveal" | "byokDecrypt" => Some(("ciphertext", text(""))),
        "byokEncrypt" => Some(("plaintext", text(""))),
        "byokRevealMany" | "byokDecryptMany" | "byokEncryptMany" => Some(("items", Value::List(Vec::new()))),
        "byokRotation" | "byokPauseRotation" | "byokResumeRotation" | "byokCancelRotation" => {
            Some(("id", text("00000000-0000-0000-0000-000000000000")))
        }
        _ => None,
    };
    let positioned = |(name, value)| {
        (Positioned::new(Name::new(name), Pos::default()), Positioned::new(value, Pos::default()))
    };
    field.arguments = argument.map(positioned).into_iter().collect();
}

#[cfg(test)]
mod tests {
    use super::super::cost::{Budget, cost_of};
    use super::super::parser::parse;
    use super::*;

    fn denied(text: &str, may: &[Operation]) -> bool {
        let budget = Budget::authenticated(100, 1 << 20);
        let cost = cost_of(&parse(text, &budget).unwrap(), &budget).unwrap();
        is_denied(&cost, |operation| may.contains(&operation))
    }

    #[test]
    fn a_document_is_denied_when_each_of_its_roots_is() {
        let both = "{byokReveal(ciphertext:\"\"){value} byokAudit{edges{cursor}} byokHealth{status}}";
        assert!(denied(both, &[]));
        assert!(denied(both, &[Operation::Decrypt]));
        assert!(!denied(both, &[Operation::Reveal]));
        assert!(!denied("{byokHealth{status} __typename}", &[]), "it needs no right");
        assert!(!denied("{byokNothing}", &[]), "validation refuses it");
    }

    #[test]
    fn the_arguments_of_roots_are_removed() {
        let text = "mutation($p:String!){a:byokEncrypt(plaintext:$p,context:{a:\"C4N4RY\"}){ciphertext} ...F}
            fragment F on Mutation{byokDecryptMany(items:[{ciphertext:\"C4N4RY\"}]) @include(if:true){plaintext}}";
        let budget = Budget::authenticated(100, 1 << 20);
        let stripped = without_arguments(parse(text, &budget).unwrap());
        let written = serde_json::to_string(&stripped).unwrap();
        assert!(!written.contains("C4N4RY") && written.contains("include"), "{written}");
        let cost = cost_of(&stripped, &budget).unwrap();
        let bytes = cost.check_with(
            &async_graphql::Variables::from_json(serde_json::json!({"p": "x".repeat(100)})),
            &budget,
        );
        assert!(bytes.unwrap() < 100);
    }
}
