//! Documents that ask for nothing but what the caller's role may never do. Each root is refused whatever it is given, so it
//! is run without that: nothing is copied for who may do nothing.

use async_graphql::parser::types::{DocumentOperations, ExecutableDocument, Field, Selection, SelectionSet};
use async_graphql::{Name, Pos, Positioned};
use async_graphql_value::Value;

use crate::model::Operation;

use super::survey::{Survey, operation_of};

/// Whether all that needs an identity in the document is refused to a caller who `may_ever` do so little.
pub(super) fn is_denied(survey: &Survey, may_ever: impl Fn(Operation) -> bool) -> bool {
    !survey.does.is_empty()
        && survey.does.iter().all(|does| does.is_some_and(|operation| !may_ever(operation)))
}

/// The same document, in which each root that needs an identity has the least arguments that it can have. To be run without
/// validation: its variables are used no more.
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

/// The names of roots are those of no other field.
fn strip(set: &mut SelectionSet) {
    for selection in &mut set.items {
        match &mut selection.node {
            Selection::Field(field) => match operation_of(field.node.name.node.as_str()) {
                Some(_) => least_arguments(&mut field.node),
                None => strip(&mut field.node.selection_set.node),
            },
            Selection::InlineFragment(fragment) => strip(&mut fragment.node.selection_set.node),
            Selection::FragmentSpread(_) => {}
        }
    }
}

fn least_arguments(field: &mut Field) {
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
    let placed = |(name, value)| {
        (Positioned::new(Name::new(name), Pos::default()), Positioned::new(value, Pos::default()))
    };
    field.arguments = argument.map(placed).into_iter().collect();
}

#[cfg(test)]
mod tests {
    use super::super::budget::Budget;
    use super::super::parser::parse;
    use super::super::survey::survey;
    use super::*;

    fn denied(text: &str, may: &[Operation]) -> bool {
        let budget = Budget::of_known(100, 1 << 20);
        let survey = survey(&parse(text, &budget).unwrap(), &budget).unwrap();
        is_denied(&survey, |operation| may.contains(&operation))
    }

    #[test]
    fn a_document_is_denied_when_each_of_its_roots_is() {
        let both = "{byokReveal(ciphertext:\"\"){value} byokAudit{edges{cursor}} byokHealth{status}}";
        assert!(denied(both, &[]));
        assert!(denied(both, &[Operation::Decrypt]));
        assert!(!denied(both, &[Operation::Reveal]));
        assert!(!denied("{byokHealth{status} __typename}", &[]), "it needs no right");
        assert!(!denied("{byokNothing}", &[]), "that is for the validation to say");
    }

    #[test]
    fn what_a_root_is_given_is_gone() {
        let text = "mutation($p:String!){a:byokEncrypt(plaintext:$p,context:{a:\"C4N4RY\"}){ciphertext} ...F}
            fragment F on Mutation{byokDecryptMany(items:[{ciphertext:\"C4N4RY\"}]) @include(if:true){plaintext}}";
        let budget = Budget::of_known(100, 1 << 20);
        let stripped = without_arguments(parse(text, &budget).unwrap());
        let written = serde_json::to_string(&stripped).unwrap();
        assert!(!written.contains("C4N4RY") && written.contains("include"), "{written}");
        let survey = survey(&stripped, &budget).unwrap();
        let bytes = survey
            .with(&async_graphql::Variables::from_json(serde_json::json!({"p": "x".repeat(100)})), &budget);
        assert!(bytes.unwrap() < 100);
    }
}
