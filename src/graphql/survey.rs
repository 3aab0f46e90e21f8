//! Looks over a parsed document before anything is validated or run: how much it asks for, and whether it may be asked
//! without an identity. It walks as the executor will, into fragments, so that a small text that unfolds to a large
//! request is found out here; a cycle of fragments runs into the same bounds.

use async_graphql::parser::types::{ExecutableDocument, Field, OperationDefinition, Selection, SelectionSet};
use async_graphql::{Name, Variables};

use crate::model::{ErrorCode, Operation, Refusal};

use super::ask::{Ask, too_large};
use super::budget::Budget;
use super::introspected::{Introspected, bytes_of};

/// What a caller without identity may ask for.
const OPEN: [&str; 4] = ["__schema", "__type", "__typename", "byokHealth"];
/// How many levels of selections, fragments included.
const MAX_DEPTH: usize = 32;
/// How many selections one place below a root may have, fragments included: no type has more than half as many fields.
const MAX_BESIDE: usize = 32;
/// Fields that are about as long as what their root is given. Each one beyond the first counts as if that was given again.
const LONG: [&str; 3] = ["plaintext", "ciphertext", "value"];

/// What a document asks for.
#[derive(Debug)]
pub(super) struct Survey {
    /// Whether any root of any operation is for known callers only.
    pub(super) needs_identity: bool,
    /// What the roots do that need an identity, each once; `None` stands for roots that there are not.
    pub(super) does: Vec<Option<Operation>>,
    /// How much each of its operations asks for, of which one will run.
    asks: Vec<Ask>,
}

/// A request that asks for too much.
#[derive(Debug)]
pub(super) struct TooMuch {
    pub(super) refusal: Refusal,
    /// What its first root does, as far as it was looked at.
    pub(super) does: Option<Operation>,
}

/// Surveys a document.
///
/// # Errors
/// `TOO_MANY_ITEMS` for too many root fields or items, `QUERY_INVALID` for what is too large otherwise.
pub(super) fn survey(document: &ExecutableDocument, budget: &Budget) -> Result<Survey, TooMuch> {
    let mut walk = Walk {
        document,
        budget,
        needs_identity: false,
        does: Vec::new(),
        visited: 0,
        introspected: 0,
        long: 0,
        pages: 0,
    };
    match walk.document() {
        Ok(asks) => Ok(Survey { needs_identity: walk.needs_identity, does: walk.does, asks }),
        Err(refusal) => Err(TooMuch { refusal, does: walk.does.first().copied().flatten() }),
    }
}

impl Survey {
    /// Whether these variables leave the request within its budget; how many bytes of memory their copies take, about.
    ///
    /// # Errors
    /// As [`Ask::within`].
    pub(super) fn with(&self, variables: &Variables, budget: &Budget) -> Result<usize, TooMuch> {
        let bytes: Result<Vec<_>, _> = self.asks.iter().map(|ask| ask.with(variables, budget)).collect();
        match bytes {
            Ok(bytes) => Ok(bytes.into_iter().max().unwrap_or_default()),
            Err(refusal) => Err(TooMuch { refusal, does: self.does.first().copied().flatten() }),
        }
    }
}

#[derive(Clone, Copy)]
enum Place {
    Root,
    Below,
    /// Below a root of the audit log: what it answers is as long as the log has it, and each field stands in a place once.
    InLog,
    /// In a fragment, whoever uses it.
    Fragment,
    Introspection(Introspected),
}

struct Walk<'a> {
    document: &'a ExecutableDocument,
    budget: &'a Budget,
    needs_identity: bool,
    does: Vec<Option<Operation>>,
    /// Selections that were looked at.
    visited: usize,
    /// Bytes that introspection answers, about.
    introspected: usize,
    /// Fields of [`LONG`].
    long: usize,
    /// Pages of the audit log.
    pages: usize,
}

/// What stands in one place, fragments included.
#[derive(Default)]
struct Beside {
    count: usize,
    /// The fields that may stand there once, with their names in the answer.
    once: Vec<(Name, Name)>,
}

impl Beside {
    /// Notes a field of the log: of each there may be one copy. A value that is named again as it was is the same one in the
    /// answer.
    fn once(&mut self, field: &Field) -> Result<(), Refusal> {
        let (name, key) = (&field.name.node, &field.response_key().node);
        let is_leaf = field.selection_set.node.items.is_empty();
        match self.once.iter().find(|(other, _)| other == name) {
            Some((_, other)) if is_leaf && other == key => Ok(()),
            Some(_) => Err(twice()),
            None => {
                self.once.push((name.clone(), key.clone()));
                Ok(())
            }
        }
    }
}

impl Walk<'_> {
    fn document(&mut self) -> Result<Vec<Ask>, Refusal> {
        let mut asks = Vec::new();
        for (_, operation) in self.document.operations.iter() {
            asks.push(self.operation(&operation.node)?);
        }
        // Those that no operation uses are validated too.
        let mut unused = Ask::default();
        for fragment in self.document.fragments.values() {
            let (set, beside) = (&fragment.node.selection_set.node, &mut Beside::default());
            self.selection_set(set, 1, Place::Fragment, &mut unused, beside)?;
        }
        Ok(asks)
    }

    fn operation(&mut self, operation: &OperationDefinition) -> Result<Ask, Refusal> {
        let mut ask = Ask::default();
        ask.directives(&operation.directives, 1);
        self.selection_set(&operation.selection_set.node, 0, Place::Root, &mut ask, &mut Beside::default())?;
        for definition in &operation.variable_definitions {
            ask.default_of(&definition.node);
        }
        ask.within(self.budget)?;
        Ok(ask)
    }

    /// `beside` counts what stands in the same place by way of fragments.
    fn selection_set(
        &mut self,
        set: &SelectionSet,
        depth: usize,
        place: Place,
        ask: &mut Ask,
        beside: &mut Beside,
    ) -> Result<(), Refusal> {
        if depth > MAX_DEPTH {
            return Err(too_large());
        }
        for selection in &set.items {
            self.visited += 1;
            beside.count += 1;
            if self.visited > self.budget.selections
                || (matches!(place, Place::Below | Place::InLog) && beside.count > MAX_BESIDE)
            {
                return Err(too_large());
            }
            match &selection.node {
                Selection::Field(field) => {
                    if matches!(place, Place::InLog) && self.budget.pages.is_some() {
                        beside.once(&field.node)?;
                    }
                    self.field(&field.node, depth, place, ask)?;
                }
                Selection::InlineFragment(fragment) => {
                    ask.directives(&fragment.node.directives, 1);
                    self.selection_set(&fragment.node.selection_set.node, depth + 1, place, ask, beside)?;
                }
                Selection::FragmentSpread(spread) => {
                    ask.directives(&spread.node.directives, 1);
                    // One that does not exist is for the validation to refuse.
                    if let Some(fragment) = self.document.fragments.get(&spread.node.fragment_name.node) {
                        self.selection_set(&fragment.node.selection_set.node, depth + 1, place, ask, beside)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, depth: usize, place: Place, ask: &mut Ask) -> Result<(), Refusal> {
        let name = field.name.node.as_str();
        let set = &field.selection_set.node;
        let (below, times) = match place {
            Place::Root => {
                ask.root();
                if !OPEN.contains(&name) {
                    self.needs_identity = true;
                    let does = operation_of(name);
                    if !self.does.contains(&does) {
                        self.does.push(does);
                    }
                }
                match name {
                    "byokAudit" => {
                        self.pages += 1;
                        if self.budget.pages.is_some_and(|most| self.pages > most) {
                            return Err(too_large());
                        }
                        (Place::InLog, 1)
                    }
                    _ if name.starts_with("__") => (Place::Introspection(Introspected::ROOT), 1),
                    _ => (Place::Below, 1),
                }
            }
            Place::Below => {
                self.long += usize::from(LONG.contains(&name));
                (Place::Below, 1)
            }
            Place::InLog => (Place::InLog, 1),
            Place::Fragment => (Place::Fragment, 1),
            Place::Introspection(at) => {
                let key = field.response_key().node.len();
                let bytes = at.objects.saturating_mul(key + bytes_of(name));
                self.introspected = self.introspected.saturating_add(bytes);
                if self.introspected > self.budget.introspected {
                    return Err(too_large());
                }
                (Place::Introspection(at.below(name)), at.objects)
            }
        };
        ask.field(&field.arguments, &field.directives, times);
        // Refused here and not only at the end: fragments can repeat a long text very often.
        ask.within(self.budget)?;
        let (before, long) = (ask.fields(), self.long);
        self.selection_set(set, depth + 1, below, ask, &mut Beside::default())?;
        if matches!(place, Place::Root) && self.long > long + 1 {
            ask.given_again(&field.arguments, self.long - long - 1);
            ask.within(self.budget)?;
        }
        if let (Place::Root, Some((_, items))) =
            (place, field.arguments.iter().find(|(argument, _)| argument.node.as_str() == "items"))
        {
            ask.list(&items.node, ask.fields() - before);
        }
        Ok(())
    }
}

fn twice() -> Refusal {
    let why = "A field of the audit log can be selected once in each place.";
    Refusal::because(ErrorCode::QueryInvalid, why)
}

/// What a root asks the use cases for; `None` for one that there is not.
pub(super) fn operation_of(root: &str) -> Option<Operation> {
    match root {
        "byokEncrypt" | "byokEncryptMany" => Some(Operation::Encrypt),
        "byokDecrypt" | "byokDecryptMany" => Some(Operation::Decrypt),
        "byokReveal" | "byokRevealMany" => Some(Operation::Reveal),
        "byokRotate" | "byokRotation" | "byokPauseRotation" | "byokResumeRotation" | "byokCancelRotation" => {
            Some(Operation::Rotate)
        }
        "byokAudit" | "byokAuditCheckpoint" => Some(Operation::Audit),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use serde_json::json;

    use super::super::parser::{ParseError, parse};
    use super::*;

    const ITEMS: usize = 10_000;

    fn budget() -> Budget {
        Budget::of_known(ITEMS, 1 << 20)
    }

    fn surveyed(text: &str, budget: &Budget) -> Result<Survey, TooMuch> {
        survey(&parse(text, budget).unwrap(), budget)
    }

    fn code(text: &str) -> Option<ErrorCode> {
        surveyed(text, &budget()).err().map(|excess| excess.refusal.code)
    }

    /// The code that a document with these variables is refused with, and what their copies take.
    fn with(text: &str, variables: serde_json::Value) -> Result<usize, ErrorCode> {
        let survey = surveyed(text, &budget()).map_err(|excess| excess.refusal.code)?;
        survey.with(&Variables::from_json(variables), &budget()).map_err(|excess| excess.refusal.code)
    }

    fn needs_identity(text: &str) -> bool {
        surveyed(text, &budget()).unwrap().needs_identity
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
    fn what_the_roots_do_is_known() {
        let does = |text: &str| surveyed(text, &budget()).unwrap().does;
        assert_eq!(does("{byokHealth{status}}"), []);
        assert_eq!(
            does(
                "{a:byokReveal(ciphertext:\"\"){value} b:byokRevealMany(items:[]){value} byokAudit{edges{cursor}}}"
            ),
            [Some(Operation::Reveal), Some(Operation::Audit)]
        );
        assert_eq!(does("{byokNothing}"), [None]);
    }

    fn join(rows: usize, arguments: &str) -> String {
        let mut text = String::new();
        (0..rows).for_each(|n| {
            write!(
                text,
                "f{n}:byokReveal({arguments}){{__typename value form error{{code message retryable}}}}"
            )
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
            let roots =
                roots.map(|(n, length)| format!("r{n}:byokRevealMany(items:{}){{value}}", list(length)));
            format!("{{{}}}", roots.collect::<String>())
        };
        assert_eq!(code(&many(&[ITEMS])), None);
        assert_eq!(code(&many(&[5_000, 5_000])), None);
        assert_eq!(code(&many(&[5_000, 5_001])), Some(ErrorCode::TooManyItems));
        let items = |length: usize| json!({ "i": vec![json!({ "ciphertext": "" }); length] });
        let twice = "query($i:[ByokDecryptItem!]!){a:byokRevealMany(items:$i){value} b:byokRevealMany(items:$i){value}}";
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
        assert_eq!(code(&of("recordId dekId")), Some(ErrorCode::QueryInvalid), "id stands there twice");
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
        assert_eq!(
            code(&format!("{{__schema{{types{{fields{{{wide}}}}}}}}}")),
            Some(ErrorCode::QueryInvalid)
        );
    }

    #[test]
    fn without_identity_there_are_a_handful_of_roots_and_no_long_document() {
        let unknown = |text: &str| match parse(text, &Budget::OF_UNKNOWN) {
            Ok(document) => survey(&document, &Budget::OF_UNKNOWN).err().map(|excess| excess.refusal.code),
            Err(ParseError::TooMuch(code)) => Some(code),
            Err(ParseError::Syntax(_)) => None,
        };
        let roots = |count: usize| {
            format!("{{{}}}", (0..count).map(|n| format!("a{n}:__typename ")).collect::<String>())
        };
        assert_eq!((unknown(&roots(8)), unknown(&roots(9))), (None, Some(ErrorCode::TooManyItems)));
        let health: String = (0..600).map(|n| format!("a{n}:status ")).collect();
        assert_eq!(unknown(&format!("{{byokHealth{{{health}}}}}")), Some(ErrorCode::QueryInvalid));
    }
}
