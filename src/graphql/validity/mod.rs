//! Whether a document is valid against the schema, with these variables (GraphQL of October 2021, sections 5 and 6.1.2). Says
//! by names what is wrong, and never a value.
//!
//! async-graphql's own validation is not used: it panics on a list of a type that there is not, takes strings for enums, passes
//! over what is no object where one is expected, over variables in lists and over most of what is wrong with directives, and quotes
//! values. `tests/it/web.rs` holds this one against graphql-js.
//!
//! | file | what it does |
//! |---|---|
//! | `types` | the schema |
//! | `walk` | fields, arguments, directives and fragments, where they stand |
//! | `input` | values against types |
//! | `scope` | variables and fragments, over the whole of an operation |
//! | `merge` | fields of one name in one place |
//!
//! What the parser refuses already: two operations or fragments of one name, an anonymous operation beside others, a key that
//! stands twice in an object. What `survey` refuses: fragments that spread themselves.

mod input;
mod merge;
mod scope;
mod types;
mod walk;

#[cfg(test)]
mod tests;

use async_graphql::parser::types::{DocumentOperations, ExecutableDocument, OperationDefinition};
use async_graphql::{Pos, Positioned, Value as Variable, Variables};

use super::schema::ByokSchema;
use types::Types;

/// How many faults are looked for.
const MAX_FAULTS: usize = 16;
/// How much is shown of one name.
const MAX_NAME: usize = 64;

/// Something that is not valid.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// What; names of the document in it are cut.
    pub(super) what: String,
    /// Where in the document.
    pub(super) at: Pos,
    /// Which argument, or place in one, by the schema's names alone: `byokAudit.filter.from`.
    pub(super) field: Option<String>,
}

/// What documents are held against.
pub(super) struct Validity {
    types: Types,
}

impl Validity {
    /// Of documents for this schema.
    pub(super) fn of(schema: &ByokSchema) -> Self {
        Self { types: Types::of(schema) }
    }

    /// Whether the document is valid, whatever is to run of it and with which variables.
    ///
    /// # Errors
    /// The first faults.
    pub(super) fn of_document(&self, document: &ExecutableDocument) -> Result<(), Vec<Fault>> {
        let mut faults = Faults::default();
        let scopes = walk::walk(&self.types, document, &mut faults);
        scope::check(document, &scopes, &mut faults);
        if faults.0.is_empty() {
            // Only of one whose fields there are is it known what can be answered together.
            merge::check(document, &mut faults);
        }
        faults.into_result()
    }

    /// Whether one of its operations is the one to run, and these are variables for it.
    ///
    /// # Errors
    /// The first faults.
    pub(super) fn of_variables(
        &self,
        document: &ExecutableDocument,
        operation_name: Option<&str>,
        variables: &Variables,
    ) -> Result<(), Vec<Fault>> {
        let mut faults = Faults::default();
        match to_run(document, operation_name) {
            Ok(operation) => self.variables(&operation.node, variables, &mut faults),
            Err(what) => faults.add(Pos::default(), what.to_owned()),
        }
        faults.into_result()
    }

    fn variables(&self, operation: &OperationDefinition, variables: &Variables, faults: &mut Faults) {
        for Positioned { node: definition, pos } in &operation.variable_definitions {
            let name = cut(&definition.name.node);
            let kind = &definition.var_type.node;
            match variables.get(&definition.name.node) {
                None if definition.default_value.is_some() || kind.nullable => {}
                None | Some(Variable::Null) if !kind.nullable => {
                    faults.add(*pos, format!("Variable \"${name}\" is required but not provided"));
                }
                None => {}
                Some(value) => {
                    if let Err(wrong) = input::check(&self.types, kind, value) {
                        let what =
                            format!("Invalid value for variable \"${name}{}\", {}", wrong.place, wrong.what);
                        faults.add_at(*pos, what, format!("${name}{}", wrong.place));
                    }
                }
            }
        }
    }
}

/// The operation that is to run, or why there is none.
fn to_run<'a>(
    document: &'a ExecutableDocument,
    operation_name: Option<&str>,
) -> Result<&'a Positioned<OperationDefinition>, &'static str> {
    match (&document.operations, operation_name) {
        (DocumentOperations::Single(operation), None) => Ok(operation),
        (DocumentOperations::Multiple(named), None) => {
            let only = named.values().next().filter(|_| named.len() == 1);
            only.ok_or("Operation name required in request")
        }
        (DocumentOperations::Single(_), Some(_)) => Err("Unknown operation named"),
        (DocumentOperations::Multiple(named), Some(name)) => named.get(name).ok_or("Unknown operation named"),
    }
}

/// Faults, up to a bound.
#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, at: Pos, what: String) {
        self.push(Fault { what, at, field: None });
    }

    fn add_at(&mut self, at: Pos, what: String, field: String) {
        self.push(Fault { what, at, field: Some(field) });
    }

    fn push(&mut self, fault: Fault) {
        if self.0.len() < MAX_FAULTS && !self.0.contains(&fault) {
            self.0.push(fault);
        }
    }

    fn into_result(self) -> Result<(), Vec<Fault>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }
}

/// A name as far as it is shown. A name is ASCII.
fn cut(name: &str) -> &str {
    name.get(..MAX_NAME).unwrap_or(name)
}
