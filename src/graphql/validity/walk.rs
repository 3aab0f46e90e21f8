//! Validation of fields, arguments, directives and fragments, each by itself.

use std::collections::{HashMap, HashSet};

use async_graphql::parser::types::{
    BaseType, Directive, ExecutableDocument, Field, OperationDefinition, OperationType, Selection,
    SelectionSet, Type,
};
use async_graphql::{Name, Pos, Positioned};
use async_graphql_value::Value;

use super::input::{self, is_input};
use super::types::{Definition, FieldDefinition, InputDefinition, Inputs, Types, name_of};
use super::{Faults, cut};

/// The variables and fragments that one operation or fragment uses directly.
#[derive(Default)]
pub(super) struct Scope<'a> {
    pub(super) uses: Vec<Use<'a>>,
    pub(super) spreads: Vec<&'a Name>,
}

/// A use of a variable.
pub(super) struct Use<'a> {
    pub(super) name: &'a Name,
    pub(super) at: Pos,
    /// The expected type, and whether the argument has a default; `None` if any type will do.
    pub(super) expected: Option<(&'a Type, bool)>,
    /// The path to the use, with the schema's names.
    pub(super) field: String,
}

/// The scopes of a document.
pub(super) struct Scopes<'a> {
    pub(super) operations: Vec<(&'a Positioned<OperationDefinition>, Scope<'a>)>,
    pub(super) fragments: HashMap<&'a Name, Scope<'a>>,
}

/// Walks a document, and returns its scopes.
pub(super) fn walk<'a>(
    types: &'a Types,
    document: &'a ExecutableDocument,
    faults: &mut Faults,
) -> Scopes<'a> {
    let mut scopes = Scopes { operations: Vec::new(), fragments: HashMap::new() };
    for (_, operation) in document.operations.iter() {
        let mut walk = Walk { types, document, faults, scope: Scope::default() };
        walk.operation(operation);
        scopes.operations.push((operation, walk.scope));
    }
    for (name, fragment) in &document.fragments {
        let mut walk = Walk { types, document, faults, scope: Scope::default() };
        let on = &fragment.node.type_condition.node.on;
        walk.directives(&fragment.node.directives, "FRAGMENT_DEFINITION");
        match types.get(&on.node) {
            Some(Definition::Object(_)) => walk.selections(&fragment.node.selection_set.node, &on.node),
            Some(_) => {
                let what = format!(
                    "Fragment \"{}\" cannot condition non composite type \"{}\"",
                    cut(name),
                    cut(&on.node)
                );
                walk.faults.add(fragment.pos, what);
            }
            None => walk.unknown_type(on),
        }
        scopes.fragments.insert(name, walk.scope);
    }
    scopes
}

struct Walk<'a, 'f> {
    types: &'a Types,
    document: &'a ExecutableDocument,
    faults: &'f mut Faults,
    scope: Scope<'a>,
}

impl<'a> Walk<'a, '_> {
    fn operation(&mut self, operation: &'a Positioned<OperationDefinition>) {
        let Positioned { node: operation, pos } = operation;
        let location = match operation.ty {
            OperationType::Query => "QUERY",
            OperationType::Mutation => "MUTATION",
            OperationType::Subscription => "SUBSCRIPTION",
        };
        self.directives(&operation.directives, location);
        let mut names = HashSet::new();
        for Positioned { node: definition, pos } in &operation.variable_definitions {
            let (name, kind) = (cut(&definition.name.node), &definition.var_type.node);
            if !names.insert(&definition.name.node) {
                self.faults.add(*pos, format!("There can only be one variable named \"${name}\""));
            }
            self.directives(&definition.directives, "VARIABLE_DEFINITION");
            match is_input(self.types, kind) {
                Some(true) => {}
                Some(false) => {
                    let what =
                        format!("Variable \"${name}\" cannot be of non-input type \"{}\"", cut_type(kind));
                    self.faults.add(*pos, what);
                    continue;
                }
                None => {
                    self.faults.add(*pos, format!("Unknown type \"{}\"", cut(name_of(kind))));
                    continue;
                }
            }
            if let Some(Positioned { node: value, pos }) = &definition.default_value
                && let Err(wrong) = check_default(self.types, kind, value)
            {
                let what =
                    format!("Invalid default value for variable \"${name}{}\", {}", wrong.path, wrong.what);
                self.faults.add_at(*pos, what, format!("${name}{}", wrong.path));
            }
        }
        match self.types.root(operation.ty) {
            Some(root) => self.selections(&operation.selection_set.node, root),
            None => self.faults.add(*pos, "There is no root for the operation".to_owned()),
        }
    }

    fn selections(&mut self, set: &'a SelectionSet, on: &str) {
        for Positioned { node: selection, pos } in &set.items {
            match selection {
                Selection::Field(field) => self.field(&field.node, *pos, on),
                Selection::InlineFragment(fragment) => {
                    let fragment = &fragment.node;
                    self.directives(&fragment.directives, "INLINE_FRAGMENT");
                    let condition = fragment.type_condition.as_ref().map(|condition| &condition.node.on);
                    let inside = match condition {
                        None => Some(on),
                        Some(name) => self.condition(name, on, *pos),
                    };
                    if let Some(inside) = inside {
                        self.selections(&fragment.selection_set.node, inside);
                    }
                }
                Selection::FragmentSpread(spread) => {
                    let name = &spread.node.fragment_name.node;
                    self.directives(&spread.node.directives, "FRAGMENT_SPREAD");
                    self.scope.spreads.push(name);
                    match self.document.fragments.get(name) {
                        None => self.faults.add(*pos, format!("Unknown fragment: \"{}\"", cut(name))),
                        Some(fragment) => {
                            let other = fragment.node.type_condition.node.on.node.as_str();
                            let is_object = matches!(self.types.get(other), Some(Definition::Object(_)));
                            if is_object && other != on {
                                let what = format!(
                                    "Fragment \"{}\" cannot be spread here as objects of type \"{on}\" can never be of \
                                     type \"{other}\"",
                                    cut(name)
                                );
                                self.faults.add(*pos, what);
                            }
                        }
                    }
                }
            }
        }
    }

    /// The type that a fragment's condition selects from; `None` if it is not the type of the
    /// object.
    fn condition(&mut self, name: &'a Positioned<Name>, on: &str, at: Pos) -> Option<&'a str> {
        match self.types.get(&name.node) {
            Some(Definition::Object(_)) if name.node == on => Some(&name.node),
            Some(Definition::Object(_)) => {
                let what = format!(
                    "Fragment cannot be spread here as objects of type \"{on}\" can never be of type \"{}\"",
                    cut(&name.node)
                );
                self.faults.add(at, what);
                None
            }
            Some(_) => {
                let what = format!("Fragment cannot condition non composite type \"{}\"", cut(&name.node));
                self.faults.add(at, what);
                None
            }
            None => {
                self.unknown_type(name);
                None
            }
        }
    }

    fn unknown_type(&mut self, name: &Positioned<Name>) {
        self.faults.add(name.pos, format!("Unknown type \"{}\"", cut(&name.node)));
    }

    fn field(&mut self, field: &'a Field, at: Pos, on: &str) {
        let (name, set) = (&field.name.node, &field.selection_set.node);
        self.directives(&field.directives, "FIELD");
        if name == "__typename" {
            if !set.items.is_empty() || !field.arguments.is_empty() {
                let what = "Field \"__typename\" has neither arguments nor a selection".to_owned();
                self.faults.add(at, what);
            }
            self.untyped_uses(&field.arguments);
            return;
        }
        let known = match self.types.get(on) {
            Some(Definition::Object(fields)) => fields.get(name.as_str()),
            _ => None,
        };
        let Some(FieldDefinition { type_name, arguments }) = known else {
            self.faults.add(at, format!("Unknown field \"{}\" on type \"{on}\"", cut(name)));
            self.untyped_uses(&field.arguments);
            return;
        };
        self.arguments(&field.arguments, arguments, name, at, |argument| match argument {
            ArgumentFault::Unknown(argument) => {
                format!("Unknown argument \"{argument}\" on field \"{name}\" of type \"{on}\"")
            }
            ArgumentFault::Required(argument, _) => {
                format!("Field \"{name}\" argument \"{argument}\" is required but not provided")
            }
        });
        match (self.types.get(type_name), set.items.is_empty()) {
            (Some(Definition::Object(_)), false) => self.selections(set, type_name),
            (Some(Definition::Object(_)), true) => {
                let what =
                    format!("Field \"{name}\" of type \"{type_name}\" must have a selection of subfields");
                self.faults.add(at, what);
            }
            (_, false) => {
                let what = format!(
                    "Field \"{name}\" must not have a selection since type \"{type_name}\" has no subfields"
                );
                self.faults.add(at, what);
            }
            (_, true) => {}
        }
    }

    fn directives(&mut self, directives: &'a [Positioned<Directive>], location: &str) {
        let mut names = HashSet::new();
        for Positioned { node: directive, pos } in directives {
            let name = &directive.name.node;
            let Some(known) = self.types.directive(name) else {
                self.faults.add(*pos, format!("Unknown directive \"{}\"", cut(name)));
                self.untyped_uses(&directive.arguments);
                continue;
            };
            if !known.locations.iter().any(|known| known == location) {
                self.faults.add(*pos, format!("Directive \"{name}\" may not be used on \"{location}\""));
            }
            if !names.insert(name) {
                self.faults.add(*pos, format!("Duplicate directive \"{name}\""));
            }
            self.arguments(&directive.arguments, &known.arguments, name, *pos, |argument| match argument {
                ArgumentFault::Unknown(argument) => {
                    format!("Unknown argument \"{argument}\" on directive \"{name}\"")
                }
                ArgumentFault::Required(argument, kind) => format!(
                    "Directive \"@{name}\" argument \"{argument}\" of type \"{kind}\" is required but not provided"
                ),
            });
        }
    }

    fn arguments(
        &mut self,
        given: &'a [(Positioned<Name>, Positioned<Value>)],
        known: &'a Inputs,
        of: &str,
        at: Pos,
        describe: impl Fn(ArgumentFault<'_>) -> String,
    ) {
        let mut names: HashSet<&str> = HashSet::new();
        for (Positioned { node: name, pos }, value) in given {
            if !names.insert(name) {
                self.faults.add(*pos, format!("There can only be one argument named \"{}\"", cut(name)));
            }
            let argument = known.get(name.as_str());
            match argument.map(|argument| input::check(self.types, &argument.kind, &value.node)) {
                None => self.faults.add(*pos, describe(ArgumentFault::Unknown(cut(name)))),
                Some(Ok(())) => {}
                Some(Err(wrong)) => {
                    let what = format!("Invalid value for argument \"{name}{}\", {}", wrong.path, wrong.what);
                    self.faults.add_at(value.pos, what, format!("{of}.{name}{}", wrong.path));
                }
            }
            if has_variable(&value.node) {
                self.uses(&value.node, value.pos, argument.map(Expected::from), format!("{of}.{name}"));
            }
        }
        for (name, argument) in known {
            if argument.is_required() && !names.contains(name.as_str()) {
                let what = describe(ArgumentFault::Required(name, &argument.kind));
                self.faults.add_at(at, what, format!("{of}.{name}"));
            }
        }
    }

    /// Records the variables in arguments of an unknown field or directive.
    fn untyped_uses(&mut self, arguments: &'a [(Positioned<Name>, Positioned<Value>)]) {
        for (_, value) in arguments {
            self.uses(&value.node, value.pos, None, String::new());
        }
    }

    fn uses(&mut self, value: &'a Value, at: Pos, expected: Option<Expected<'a>>, field: String) {
        match value {
            Value::Variable(name) => {
                let expected = expected.map(|expected| (expected.kind, expected.has_default));
                self.scope.uses.push(Use { name, at, expected, field });
            }
            Value::List(items) => {
                let inner = expected.and_then(|expected| match &expected.kind.base {
                    BaseType::List(inner) => Some(Expected { kind: inner, has_default: false }),
                    BaseType::Named(_) => None,
                });
                for (index, item) in items.iter().enumerate() {
                    self.uses(item, at, inner, format!("{field}[{index}]"));
                }
            }
            Value::Object(pairs) => {
                let fields = expected.and_then(|expected| match self.types.get(name_of(expected.kind)) {
                    Some(Definition::Input(fields)) => Some(fields),
                    _ => None,
                });
                for (name, value) in pairs {
                    match fields.and_then(|fields| fields.get(name.as_str())) {
                        Some(inner) => self.uses(value, at, Some(inner.into()), format!("{field}.{name}")),
                        None => self.uses(value, at, None, field.clone()),
                    }
                }
            }
            Value::Null | Value::Number(_) | Value::String(_) | Value::Boolean(_) | Value::Enum(_) => {}
            Value::Binary(_) => {}
        }
    }
}

/// Whether a value holds a variable. Most hold none, and their paths need not be written out.
fn has_variable(value: &Value) -> bool {
    match value {
        Value::Variable(_) => true,
        Value::List(items) => items.iter().any(has_variable),
        Value::Object(pairs) => pairs.values().any(has_variable),
        Value::Null | Value::Number(_) | Value::String(_) | Value::Boolean(_) | Value::Enum(_) => false,
        Value::Binary(_) => false,
    }
}

/// The type that is expected of a value.
#[derive(Clone, Copy)]
struct Expected<'a> {
    kind: &'a Type,
    has_default: bool,
}

impl<'a> From<&'a InputDefinition> for Expected<'a> {
    fn from(input: &'a InputDefinition) -> Self {
        Self { kind: &input.kind, has_default: input.has_default }
    }
}

/// A fault of an argument: unknown, or required and missing.
enum ArgumentFault<'a> {
    Unknown(&'a str),
    Required(&'a str, &'a Type),
}

/// Validates a default value, which is a value of the document without variables.
fn check_default(types: &Types, kind: &Type, value: &async_graphql::Value) -> Result<(), input::Wrong> {
    input::check(types, kind, &value.clone().into_value())
}

/// The part of a type that is shown, as the document has it.
pub(super) fn cut_type(kind: &Type) -> String {
    cut(&kind.to_string()).to_owned()
}
