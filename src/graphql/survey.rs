//! Looks over a parsed document before anything is validated or run: how much it asks for, and whether it may be asked
//! without an identity. It walks as the executor will, into fragments, so that a small text that unfolds to a large
//! request is found out here; a cycle of fragments runs into the same bounds.

use async_graphql::parser::types::{ExecutableDocument, Selection, SelectionSet};

use crate::model::{ErrorCode, Refusal};

/// What a caller without identity may ask for.
const OPEN: [&str; 4] = ["__schema", "__type", "__typename", "byokHealth"];
/// How many levels of selections, fragments included.
const MAX_DEPTH: usize = 32;
/// How many selections for each item of the largest request; a row of a join has at most eight.
const SELECTIONS_BY_ITEM: usize = 16;
/// How many selections besides.
const SELECTIONS_BESIDE: usize = 4_096;
/// How many values introspection may answer, estimated; Hasura asks for some 60,000.
const MAX_INTROSPECTED: usize = 250_000;

/// What a document asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Survey {
    /// Whether any root of any operation is for known callers only.
    pub(super) needs_identity: bool,
}

/// Surveys a document; `items` is the most that one request may hold.
///
/// # Errors
/// `TOO_MANY_ITEMS` for too many root fields, `QUERY_INVALID` for what is too large otherwise.
pub(super) fn survey(document: &ExecutableDocument, items: usize) -> Result<Survey, Refusal> {
    let mut walk = Walk {
        document,
        needs_identity: false,
        roots: items,
        selections: items.saturating_mul(SELECTIONS_BY_ITEM).saturating_add(SELECTIONS_BESIDE),
        introspected: MAX_INTROSPECTED,
    };
    for (_, operation) in document.operations.iter() {
        walk.roots = items;
        walk.selection_set(&operation.node.selection_set.node, 0, Place::Root)?;
    }
    // Those that no operation uses are validated too.
    for fragment in document.fragments.values() {
        walk.selection_set(&fragment.node.selection_set.node, 1, Place::Below)?;
    }
    Ok(Survey { needs_identity: walk.needs_identity })
}

#[derive(Clone, Copy)]
enum Place {
    Root,
    Below,
    /// Below `__schema` or `__type`, where about this many values stand for one selection.
    Introspection(usize),
}

struct Walk<'a> {
    document: &'a ExecutableDocument,
    needs_identity: bool,
    roots: usize,
    selections: usize,
    introspected: usize,
}

impl Walk<'_> {
    fn selection_set(&mut self, set: &SelectionSet, depth: usize, place: Place) -> Result<(), Refusal> {
        let too_large =
            || Refusal::because(ErrorCode::QueryInvalid, "The GraphQL document asks for too much at once.");
        if depth > MAX_DEPTH {
            return Err(too_large());
        }
        for selection in &set.items {
            self.selections = self.selections.checked_sub(1).ok_or_else(too_large)?;
            match &selection.node {
                Selection::Field(field) => {
                    let name = field.node.name.node.as_str();
                    let below = match place {
                        Place::Root => {
                            self.roots = self.roots.checked_sub(1).ok_or(ErrorCode::TooManyItems)?;
                            self.needs_identity |= !OPEN.contains(&name);
                            if name.starts_with("__") { Place::Introspection(1) } else { Place::Below }
                        }
                        Place::Below => Place::Below,
                        Place::Introspection(values) => {
                            self.introspected =
                                self.introspected.checked_sub(values).ok_or_else(too_large)?;
                            Place::Introspection(values.saturating_mul(values_of(name)))
                        }
                    };
                    self.selection_set(&field.node.selection_set.node, depth + 1, below)?;
                }
                Selection::InlineFragment(fragment) => {
                    self.selection_set(&fragment.node.selection_set.node, depth + 1, place)?;
                }
                Selection::FragmentSpread(spread) => {
                    // One that does not exist is for the validation to refuse.
                    if let Some(fragment) = self.document.fragments.get(&spread.node.fragment_name.node) {
                        self.selection_set(&fragment.node.selection_set.node, depth + 1, place)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// About how many values a field of introspection has in our schema.
fn values_of(field: &str) -> usize {
    match field {
        "types" => 48,
        "fields" => 8,
        "args" | "inputFields" => 4,
        "enumValues" | "directives" => 6,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::super::parser::parse;
    use super::*;

    const ITEMS: usize = 10_000;

    fn code(text: &str) -> Option<ErrorCode> {
        survey(&parse(text).unwrap(), ITEMS).err().map(|refusal| refusal.code)
    }

    fn needs_identity(text: &str) -> bool {
        survey(&parse(text).unwrap(), ITEMS).unwrap().needs_identity
    }

    #[test]
    fn introspection_and_health_need_no_identity() {
        assert!(!needs_identity("{__schema{types{name}} __typename h:byokHealth{status}}"));
        assert!(!needs_identity("query Q{...F} fragment F on Query{byokHealth{status}}"));
        assert!(needs_identity("{byokHealth:byokAudit{edges{cursor}}}"));
        assert!(needs_identity(
            "{...F} fragment F on Query{... on Query{byokReveal(ciphertext:\"\"){value}}}"
        ));
        assert!(needs_identity("query A{byokHealth{status}} mutation B{byokRotate{id}}"));
    }

    #[test]
    fn the_largest_join_passes_and_one_more_row_does_not() {
        let join = |rows| {
            let mut text = String::from("{");
            (0..rows)
                .for_each(|n| write!(text, "f{n}:byokReveal(ciphertext:\"x\"){{__typename value form error{{code message retryable}}}}").unwrap());
            text + "}"
        };
        assert_eq!(code(&join(ITEMS)), None);
        assert_eq!(code(&join(ITEMS + 1)), Some(ErrorCode::TooManyItems));
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
        assert_eq!(code(&nested(3)), None);
        assert_eq!(code(&nested(5)), Some(ErrorCode::QueryInvalid));
        let wide: String = (0..2_000).map(|n| format!("a{n}:name ")).collect();
        assert_eq!(
            code(&format!("{{__schema{{types{{fields{{{wide}}}}}}}}}")),
            Some(ErrorCode::QueryInvalid)
        );
    }
}
