//! Variables and fragments, over all that an operation uses.

use std::collections::{HashMap, HashSet};

use async_graphql::Value as Variable;
use async_graphql::parser::types::{BaseType, ExecutableDocument, Type, VariableDefinition};

use super::walk::{Scope, Scopes, Use, shown};
use super::{Faults, cut};

/// Looks for variables that are not defined, not used or in the wrong place, and for fragments that nothing uses.
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

/// What a scope uses, by way of fragments too.
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

/// Section 5.8.5: all variable usages are allowed.
fn position(definition: &VariableDefinition, usage: &Use<'_>, faults: &mut Faults) {
    let Some((place, place_has_default)) = usage.place else { return };
    let kind = &definition.var_type.node;
    let default = definition.default_value.as_ref().map(|value| &value.node);
    let has_value = default.is_some_and(|value| !matches!(value, Variable::Null));
    let suits = match !place.nullable && kind.nullable {
        true => (has_value || place_has_default) && is_of(&kind.base, &place.base),
        false => is_part(kind, place),
    };
    if !suits {
        let what = format!(
            "Variable \"${}\" of type \"{}\" used in position expecting type \"{place}\"",
            cut(&definition.name.node),
            shown(kind)
        );
        faults.add_at(usage.at, what, usage.field.clone());
    }
}

/// Whether each value of the one type is one of the other.
fn is_part(kind: &Type, of: &Type) -> bool {
    (of.nullable || !kind.nullable) && is_of(&kind.base, &of.base)
}

fn is_of(kind: &BaseType, of: &BaseType) -> bool {
    match (kind, of) {
        (BaseType::Named(kind), BaseType::Named(of)) => kind == of,
        (BaseType::List(kind), BaseType::List(of)) => is_part(kind, of),
        (BaseType::Named(_), BaseType::List(_)) | (BaseType::List(_), BaseType::Named(_)) => false,
    }
}
