//! Validation that fields with one name in one object of the answer are the same field (section
//! 5.3.2). The schema has neither interfaces nor unions, so all selections on one object are on one
//! type.

use std::collections::HashSet;

use async_graphql::indexmap::IndexMap;
use async_graphql::parser::types::{ExecutableDocument, Field, Selection, SelectionSet};
use async_graphql::{Name, Positioned};

use super::{Faults, cut};

/// Fields by their names in the answer.
type Fields<'a> = IndexMap<&'a Name, Vec<&'a Positioned<Field>>>;

/// Finds fields that cannot be merged. Visits each selection as often as the executor will.
pub(super) fn check(document: &ExecutableDocument, faults: &mut Faults) {
    for (_, operation) in document.operations.iter() {
        merge(document, &[&operation.node.selection_set.node], faults);
    }
}

fn merge(document: &ExecutableDocument, sets: &[&SelectionSet], faults: &mut Faults) {
    let (mut fields, mut spread) = (Fields::new(), HashSet::new());
    sets.iter().for_each(|set| collect(document, set, &mut fields, &mut spread));
    for (key, fields) in &fields {
        let (first, others) = fields.split_first().expect("each key has at least one field");
        for other in others {
            let (one, two) = (&first.node.name.node, &other.node.name.node);
            if one != two {
                let what = format!(
                    "Fields \"{}\" conflict because \"{one}\" and \"{two}\" are different fields",
                    cut(key)
                );
                faults.add(other.pos, what);
            } else if !same_arguments(&first.node, &other.node) {
                let what = format!("Fields \"{}\" conflict because they have differing arguments", cut(key));
                faults.add(other.pos, what);
            }
        }
        let below: Vec<&SelectionSet> = fields.iter().map(|field| &field.node.selection_set.node).collect();
        if below.iter().any(|set| !set.items.is_empty()) {
            merge(document, &below, faults);
        }
    }
}

fn collect<'a>(
    document: &'a ExecutableDocument,
    set: &'a SelectionSet,
    fields: &mut Fields<'a>,
    spread: &mut HashSet<&'a Name>,
) {
    for selection in &set.items {
        match &selection.node {
            Selection::Field(field) => fields.entry(&field.node.response_key().node).or_default().push(field),
            Selection::InlineFragment(fragment) => {
                collect(document, &fragment.node.selection_set.node, fields, spread);
            }
            Selection::FragmentSpread(at) => {
                let name = &at.node.fragment_name.node;
                if spread.insert(name)
                    && let Some(fragment) = document.fragments.get(name)
                {
                    collect(document, &fragment.node.selection_set.node, fields, spread);
                }
            }
        }
    }
}

/// Whether both fields have the same arguments, in any order.
fn same_arguments(one: &Field, two: &Field) -> bool {
    one.arguments.len() == two.arguments.len()
        && one.arguments.iter().all(|(name, value)| {
            two.arguments.iter().any(|(other, same)| other.node == name.node && same.node == value.node)
        })
}
