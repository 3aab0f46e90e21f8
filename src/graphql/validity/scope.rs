//! Validation of variables and fragments, over everything that an operation uses.

use std::collections::{HashMap, HashSet};

use async_graphql::Value as Variable;
use async_graphql::parser::types::{BaseType, ExecutableDocument, Type, VariableDefinition};

use super::walk::{Scope, Scopes, Use, cut_type};
use super::{Faults, cut};

/// Finds variables that are undefined, unused or in a position of another type, and unused
/// fragments.
pub(super) fn check(document: &ExecutableDocument, scopes: &Scopes<'_>, faults: &mut Faults) {
    let mut used = HashSet::new();
    for (operation, scope) in &scopes.operations {
        let mut reached = HashSet::new();
        let mut uses: Vec<&Use<'_>> = Vec::new();
        gather(scope, scopes, &mut reached, &mut uses);
        let definitions = &operation.node.variable_definitions;
        let by_name: HashMap<_, _> =
            definitions.iter().map(|definition| (&definition.node.name.node, &definition.node)).collect();
        for usage in &uses {
            match by_name.get(usage.name) {
                None => faults.add(usage.at, format!("Variable \"${}\" is not defined", cut(usage.name))),
                Some(definition) => position(definition, usage, faults),
            }
        }
        let names: HashSet<_> = uses.iter().map(|usage| usage.name).collect();
        for definition in definitions {
            let name = &definition.node.name.node;
            if !names.contains(name) {
                faults.add(definition.pos, format!("Variable \"${}\" is not used", cut(name)));
            }
        }
        used.extend(reached);
    }
    for (name, fragment) in &document.fragments {
        if !used.contains(name.as_str()) {
            faults.add(fragment.pos, format!("Fragment \"{}\" is never used", cut(name)));
        }
    }
}

/// Collects the uses of a scope, also by way of fragments.
fn gather<'a>(
    scope: &'a Scope<'a>,
    scopes: &'a Scopes<'a>,
    reached: &mut HashSet<&'a str>,
    uses: &mut Vec<&'a Use<'a>>,
) {
    uses.extend(&scope.uses);
    for name in &scope.spreads {
        if reached.insert(name.as_str())
            && let Some(fragment) = scopes.fragments.get(*name)
        {
            gather(fragment, scopes, reached, uses);
        }
    }
}

/// Section 5.8.5: the type of a variable must fit the position of each use.
fn position(definition: &VariableDefinition, usage: &Use<'_>, faults: &mut Faults) {
    let Some((expected, has_default)) = usage.expected else { return };
    let kind = &definition.var_type.node;
    let default = definition.default_value.as_ref().map(|value| &value.node);
    let has_value = default.is_some_and(|value| !matches!(value, Variable::Null));
    let fits = if !expected.nullable && kind.nullable {
        (has_value || has_default) && is_base_subtype(&kind.base, &expected.base)
    } else {
        is_subtype(kind, expected)
    };
    if !fits {
        let what = format!(
            "Variable \"${}\" of type \"{}\" used in position expecting type \"{expected}\"",
            cut(&definition.name.node),
            cut_type(kind)
        );
        faults.add_at(usage.at, what, usage.field.clone());
    }
}

/// Whether each value of the one type is a value of the other.
fn is_subtype(kind: &Type, of: &Type) -> bool {
    (of.nullable || !kind.nullable) && is_base_subtype(&kind.base, &of.base)
}

fn is_base_subtype(kind: &BaseType, of: &BaseType) -> bool {
    match (kind, of) {
        (BaseType::Named(kind), BaseType::Named(of)) => kind == of,
        (BaseType::List(kind), BaseType::List(of)) => is_subtype(kind, of),
        (BaseType::Named(_), BaseType::List(_)) | (BaseType::List(_), BaseType::Named(_)) => false,
    }
}
