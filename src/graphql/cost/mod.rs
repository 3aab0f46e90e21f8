//! Estimates the cost of a parsed document before it is validated or run, and finds out whether it
//! needs an identity. The walk follows fragments as the executor will, so that a small text that
//! expands to a large request is refused here; a cycle of fragments exceeds the same limits.

mod budget;
mod introspection;
mod operation;

#[cfg(test)]
mod tests;

use async_graphql::parser::types::{ExecutableDocument, Field, OperationDefinition, Selection, SelectionSet};
use async_graphql::{Name, Variables};

use crate::model::{ErrorCode, Operation, Refusal};

pub(super) use budget::Budget;
pub(super) use introspection::{IntrospectionNode, bytes_of};
use operation::{OperationCost, too_large};

/// The root fields for callers without identity.
const ANONYMOUS_ROOTS: [&str; 4] = ["__schema", "__type", "__typename", "byokHealth"];
/// The most levels of selections, fragments included.
const MAX_DEPTH: usize = 32;
/// The most selections on one object below a root, fragments included: no type has more than half
/// as many fields.
const MAX_SIBLINGS: usize = 32;
/// Fields that are about as long as the arguments of their root. Each one beyond the first counts
/// as if the arguments had been sent again.
const LONG_FIELDS: [&str; 3] = ["plaintext", "ciphertext", "value"];

/// The cost of a document.
#[derive(Debug)]
pub(super) struct QueryCost {
    /// Whether any root of any operation needs an identity.
    pub(super) needs_identity: bool,
    /// What the roots that need an identity do, each operation once; `None` stands for unknown
    /// roots.
    pub(super) operations: Vec<Option<Operation>>,
    /// The cost of each GraphQL operation of the document, of which one will run.
    costs: Vec<OperationCost>,
}

/// A request that exceeds its budget.
#[derive(Debug)]
pub(super) struct OverBudget {
    pub(super) refusal: Refusal,
    /// What its first root does, if the walk has reached it.
    pub(super) operation: Option<Operation>,
}

/// Estimates the cost of a document.
///
/// # Errors
/// `TOO_MANY_ITEMS` for too many root fields or items, `QUERY_INVALID` for a document that is too
/// large otherwise.
pub(super) fn cost_of(document: &ExecutableDocument, budget: &Budget) -> Result<QueryCost, OverBudget> {
    let mut walk = Walk {
        document,
        budget,
        needs_identity: false,
        operations: Vec::new(),
        visited: 0,
        introspection_bytes: 0,
        long_fields: 0,
        pages: 0,
    };
    match walk.document() {
        Ok(costs) => {
            Ok(QueryCost { needs_identity: walk.needs_identity, operations: walk.operations, costs })
        }
        Err(refusal) => Err(OverBudget { refusal, operation: walk.operations.first().copied().flatten() }),
    }
}

impl QueryCost {
    /// What the first root does, if it needs an identity.
    pub(super) fn first_operation(&self) -> Option<Operation> {
        self.operations.first().copied().flatten()
    }

    /// Whether the request is within its budget with these variables. Returns about how many bytes
    /// of memory the copies of all arguments take.
    ///
    /// # Errors
    /// The errors of [`OperationCost::check`].
    pub(super) fn check_with(&self, variables: &Variables, budget: &Budget) -> Result<usize, OverBudget> {
        let bytes: Result<Vec<_>, _> =
            self.costs.iter().map(|cost| cost.check_with(variables, budget)).collect();
        match bytes {
            Ok(bytes) => Ok(bytes.into_iter().max().unwrap_or_default()),
            Err(refusal) => Err(OverBudget { refusal, operation: self.first_operation() }),
        }
    }
}

/// Where in the document a selection is.
#[derive(Clone, Copy)]
enum Location {
    Root,
    /// Below a root.
    Nested,
    /// Below a root of the audit log: its answer is as long as the log's values, so each field may
    /// be selected once on each object.
    AuditLog,
    /// In a fragment that no operation need use.
    Fragment,
    Introspection(IntrospectionNode),
}

struct Walk<'a> {
    document: &'a ExecutableDocument,
    budget: &'a Budget,
    needs_identity: bool,
    operations: Vec<Option<Operation>>,
    /// Selections visited so far.
    visited: usize,
    /// About how many bytes the answer to introspection has.
    introspection_bytes: usize,
    /// Fields of [`LONG_FIELDS`].
    long_fields: usize,
    /// Pages of the audit log.
    pages: usize,
}

/// The selections on one object, fragments included.
#[derive(Default)]
struct Siblings {
    count: usize,
    /// The fields of the audit log among them, each with its name in the answer.
    log_fields: Vec<(Name, Name)>,
}

impl Siblings {
    /// Adds a field of the log, of which there may be one copy. A repeated field with the same name
    /// in the answer is not another copy.
    fn add_log_field(&mut self, field: &Field) -> Result<(), Refusal> {
        let (name, key) = (&field.name.node, &field.response_key().node);
        let is_leaf = field.selection_set.node.items.is_empty();
        match self.log_fields.iter().find(|(other, _)| other == name) {
            Some((_, other)) if is_leaf && other == key => Ok(()),
            Some(_) => Err(repeated_field()),
            None => {
                self.log_fields.push((name.clone(), key.clone()));
                Ok(())
            }
        }
    }
}

impl Walk<'_> {
    fn document(&mut self) -> Result<Vec<OperationCost>, Refusal> {
        let mut costs = Vec::new();
        for (_, operation) in self.document.operations.iter() {
            costs.push(self.operation(&operation.node)?);
        }
        // Fragments that no operation uses are validated too.
        let mut unused = OperationCost::default();
        for fragment in self.document.fragments.values() {
            let (set, siblings) = (&fragment.node.selection_set.node, &mut Siblings::default());
            self.selection_set(set, 1, Location::Fragment, &mut unused, siblings)?;
        }
        Ok(costs)
    }

    fn operation(&mut self, operation: &OperationDefinition) -> Result<OperationCost, Refusal> {
        let mut cost = OperationCost::default();
        cost.directives(&operation.directives, 1);
        let set = &operation.selection_set.node;
        self.selection_set(set, 0, Location::Root, &mut cost, &mut Siblings::default())?;
        for definition in &operation.variable_definitions {
            cost.set_default(&definition.node);
        }
        cost.check(self.budget)?;
        Ok(cost)
    }

    /// `siblings` are the other selections on the same object, by way of fragments.
    fn selection_set(
        &mut self,
        set: &SelectionSet,
        depth: usize,
        location: Location,
        cost: &mut OperationCost,
        siblings: &mut Siblings,
    ) -> Result<(), Refusal> {
        if depth > MAX_DEPTH {
            return Err(too_large());
        }
        for selection in &set.items {
            self.visited += 1;
            siblings.count += 1;
            if self.visited > self.budget.selections
                || (matches!(location, Location::Nested | Location::AuditLog)
                    && siblings.count > MAX_SIBLINGS)
            {
                return Err(too_large());
            }
            match &selection.node {
                Selection::Field(field) => {
                    if matches!(location, Location::AuditLog) && self.budget.pages.is_some() {
                        siblings.add_log_field(&field.node)?;
                    }
                    self.field(&field.node, depth, location, cost)?;
                }
                Selection::InlineFragment(fragment) => {
                    cost.directives(&fragment.node.directives, 1);
                    let set = &fragment.node.selection_set.node;
                    self.selection_set(set, depth + 1, location, cost, siblings)?;
                }
                Selection::FragmentSpread(spread) => {
                    cost.directives(&spread.node.directives, 1);
                    // Validation refuses a spread of an unknown fragment.
                    if let Some(fragment) = self.document.fragments.get(&spread.node.fragment_name.node) {
                        let set = &fragment.node.selection_set.node;
                        self.selection_set(set, depth + 1, location, cost, siblings)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: &Field,
        depth: usize,
        location: Location,
        cost: &mut OperationCost,
    ) -> Result<(), Refusal> {
        let name = field.name.node.as_str();
        let set = &field.selection_set.node;
        let (below, times) = match location {
            Location::Root => {
                cost.root();
                if !ANONYMOUS_ROOTS.contains(&name) {
                    self.needs_identity = true;
                    let operation = operation_of(name);
                    if !self.operations.contains(&operation) {
                        self.operations.push(operation);
                    }
                }
                match name {
                    "byokAudit" => {
                        self.pages += 1;
                        if self.budget.pages.is_some_and(|max| self.pages > max) {
                            return Err(too_large());
                        }
                        (Location::AuditLog, 1)
                    }
                    _ if name.starts_with("__") => (Location::Introspection(IntrospectionNode::ROOT), 1),
                    _ => (Location::Nested, 1),
                }
            }
            Location::Nested => {
                self.long_fields += usize::from(LONG_FIELDS.contains(&name));
                (Location::Nested, 1)
            }
            Location::AuditLog => (Location::AuditLog, 1),
            Location::Fragment => (Location::Fragment, 1),
            Location::Introspection(node) => {
                let key = field.response_key().node.len();
                let bytes = node.objects.saturating_mul(key + bytes_of(name));
                self.introspection_bytes = self.introspection_bytes.saturating_add(bytes);
                if self.introspection_bytes > self.budget.introspection_bytes {
                    return Err(too_large());
                }
                (Location::Introspection(node.below(name)), node.objects)
            }
        };
        cost.field(&field.arguments, &field.directives, times);
        // Checked here and not only at the end: fragments can repeat a long text very often.
        cost.check(self.budget)?;
        let (fields_before, long_before) = (cost.fields(), self.long_fields);
        self.selection_set(set, depth + 1, below, cost, &mut Siblings::default())?;
        if matches!(location, Location::Root) && self.long_fields > long_before + 1 {
            cost.arguments_again(&field.arguments, self.long_fields - long_before - 1);
            cost.check(self.budget)?;
        }
        if let (Location::Root, Some((_, items))) =
            (location, field.arguments.iter().find(|(argument, _)| argument.node.as_str() == "items"))
        {
            cost.list(&items.node, cost.fields() - fields_before);
        }
        Ok(())
    }
}

fn repeated_field() -> Refusal {
    let why = "Each field of the audit log can be selected only once in an object.";
    Refusal::because(ErrorCode::QueryInvalid, why)
}

/// The operation that a root field stands for; `None` for an unknown one.
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
