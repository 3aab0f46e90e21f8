//! Validation of documents against the schema, and of their variables (GraphQL of October 2021,
//! sections 5 and 6.1.2). Faults name what is wrong and never quote a value.
//!
//! async-graphql's own validation is not used: it panics on a list of an unknown type, accepts
//! strings as enums, misses a value that is not an object where one is expected, misses variables
//! in lists and most faults of directives, and quotes values. `tests/it/web.rs` compares this one
//! with graphql-js.
//!
//! | file | what it does |
//! |---|---|
//! | `types` | the schema |
//! | `walk` | fields, arguments, directives and fragments, each by itself |
//! | `input` | values and their types |
//! | `scope` | variables and fragments, over a whole operation |
//! | `merge` | fields with one name in one object of the answer |
//!
//! The parser already refuses two operations or fragments of one name, an anonymous operation
//! beside others, and duplicate keys in an object; `cost` refuses fragments that spread themselves.

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

/// The most faults that are reported.
const MAX_FAULTS: usize = 16;
/// The longest part of a name that is shown.
const MAX_NAME: usize = 64;

/// A reason why a document is not valid.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The description; long names of the document are cut.
    pub(super) what: String,
    /// The position in the document.
    pub(super) at: Pos,
    /// The argument, or a path into it, with the schema's names alone: `byokAudit.filter.from`.
    pub(super) field: Option<String>,
}

/// The validator.
pub(super) struct Validity {
    types: Types,
}

impl Validity {
    /// A validator of documents for this schema.
    pub(super) fn of(schema: &ByokSchema) -> Self {
        Self { types: Types::of(schema) }
    }

    /// Validates a document, whichever operation will run and with whatever variables.
    ///
    /// # Errors
    /// The first faults.
    pub(super) fn of_document(&self, document: &ExecutableDocument) -> Result<(), Vec<Fault>> {
        let mut faults = Faults::default();
        let scopes = walk::walk(&self.types, document, &mut faults);
        scope::check(document, &scopes, &mut faults);
        if faults.0.is_empty() {
            // Merging can be checked only once all fields are known to exist.
            merge::check(document, &mut faults);
        }
        faults.into_result()
    }

    /// Finds the operation to run, and validates its variables.
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
        match operation_to_run(document, operation_name) {
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
                            format!("Invalid value for variable \"${name}{}\", {}", wrong.path, wrong.what);
                        faults.add_at(*pos, what, format!("${name}{}", wrong.path));
                    }
                }
            }
        }
    }
}

/// The operation to run, or why there is none.
fn operation_to_run<'a>(
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

/// Faults, up to [`MAX_FAULTS`].
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

/// The part of a name that is shown. A name is ASCII.
fn cut(name: &str) -> &str {
    name.get(..MAX_NAME).unwrap_or(name)
}
