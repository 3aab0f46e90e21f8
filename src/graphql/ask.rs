//! How much one operation asks for, and whether that is within a budget.
//!
//! The executor copies an argument for each field that has it. So what all fields together are given is counted as if it
//! had been sent field by field.

use std::collections::HashMap;

use async_graphql::parser::types::{Directive, VariableDefinition};
use async_graphql::{Name, Positioned, Value as Variable, Variables};
use async_graphql_value::Value;

use crate::model::{ErrorCode, Refusal};

use super::budget::Budget;

/// How much one operation asks for, as far as its text says it.
#[derive(Debug, Default)]
pub(super) struct Ask {
    amount: Amount,
    /// What depends on the variables, by their names.
    uses: HashMap<Name, Use>,
}

/// An amount of what a request may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    /// Root fields, each element of a list of items in the place of its root.
    items: usize,
    /// Fields that are answered, roots included.
    fields: usize,
    /// Arguments, elements of lists and values in objects.
    values: usize,
    /// Bytes of text in them.
    text: usize,
}

/// How a variable is used.
#[derive(Debug, Default)]
struct Use {
    /// How often it is copied.
    copies: usize,
    /// How often it is the list of a root's items, and how many fields are answered for each of its elements then.
    lists: usize,
    fields_by_element: usize,
    /// What it is where the request gives it no value.
    default: Weight,
}

/// How large a value is.
#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    /// Elements, if it is a list; else one.
    elements: usize,
    values: usize,
    text: usize,
}

impl Ask {
    /// Counts a root field.
    pub(super) fn root(&mut self) {
        self.amount.items += 1;
    }

    /// Counts a field; its arguments and directives are copied so often.
    pub(super) fn field(
        &mut self,
        arguments: &[(Positioned<Name>, Positioned<Value>)],
        directives: &[Positioned<Directive>],
        times: usize,
    ) {
        self.amount.fields += 1;
        arguments.iter().for_each(|(_, value)| self.value(&value.node, times));
        self.directives(directives, times);
    }

    /// Counts directives; their arguments are copied so often.
    pub(super) fn directives(&mut self, directives: &[Positioned<Directive>], times: usize) {
        for (_, value) in directives.iter().flat_map(|directive| &directive.node.arguments) {
            self.value(&value.node, times);
        }
    }

    /// Counts arguments that are answered so many times more.
    pub(super) fn given_again(&mut self, arguments: &[(Positioned<Name>, Positioned<Value>)], times: usize) {
        arguments.iter().for_each(|(_, value)| self.value(&value.node, times));
    }

    /// How many fields were counted so far.
    pub(super) fn fields(&self) -> usize {
        self.amount.fields
    }

    /// Counts the items that a root is given, for each of which so many fields are answered.
    pub(super) fn list(&mut self, items: &Value, fields: usize) {
        match items {
            Value::List(list) => {
                let more = list.len().saturating_sub(1);
                self.amount.items = self.amount.items.saturating_add(more);
                self.amount.fields = self.amount.fields.saturating_add(more.saturating_mul(fields));
            }
            Value::Variable(name) => {
                let usage = self.uses.entry(name.clone()).or_default();
                usage.lists += 1;
                usage.fields_by_element += fields;
            }
            Value::Null
            | Value::Number(_)
            | Value::String(_)
            | Value::Boolean(_)
            | Value::Binary(_)
            | Value::Enum(_)
            | Value::Object(_) => {}
        }
    }

    /// Takes the default of a variable that was counted.
    pub(super) fn default_of(&mut self, definition: &VariableDefinition) {
        if let Some(default) = &definition.default_value
            && let Some(usage) = self.uses.get_mut(&definition.name.node)
        {
            usage.default = weight_of(&default.node);
        }
    }

    /// Whether it is within the budget so far, without what its variables hold.
    ///
    /// # Errors
    /// `TOO_MANY_ITEMS` for too many items or values, `BODY_TOO_LARGE` for too much text, `QUERY_INVALID` for too large an
    /// answer.
    pub(super) fn within(&self, budget: &Budget) -> Result<(), Refusal> {
        self.amount.within(budget)
    }

    /// Whether it is within the budget with these variables; how many bytes of memory its copies take, about.
    ///
    /// # Errors
    /// As [`Self::within`].
    pub(super) fn with(&self, variables: &Variables, budget: &Budget) -> Result<usize, Refusal> {
        let mut amount = self.amount;
        for (name, usage) in &self.uses {
            amount.add(usage, variables.get(name).map_or(usage.default, weight_of));
        }
        amount.within(budget)?;
        Ok(amount.bytes())
    }

    /// Counts a value that is copied so often.
    fn value(&mut self, value: &Value, times: usize) {
        let Amount { values, text, .. } = &mut self.amount;
        *values = values.saturating_add(times);
        match value {
            Value::Variable(name) => {
                let copies = match self.uses.get_mut(name) {
                    Some(usage) => &mut usage.copies,
                    None => &mut self.uses.entry(name.clone()).or_default().copies,
                };
                *copies = copies.saturating_add(times);
            }
            Value::String(string) => *text = text.saturating_add(times.saturating_mul(string.len())),
            Value::List(items) => items.iter().for_each(|item| self.value(item, times)),
            Value::Object(pairs) => {
                for (key, value) in pairs {
                    self.amount.text = self.amount.text.saturating_add(times.saturating_mul(key.len()));
                    self.value(value, times);
                }
            }
            Value::Null | Value::Number(_) | Value::Boolean(_) | Value::Enum(_) | Value::Binary(_) => {}
        }
    }
}

impl Amount {
    fn add(&mut self, usage: &Use, weight: Weight) {
        let grow = |sum: &mut usize, times: usize, each: usize| {
            *sum = sum.saturating_add(times.saturating_mul(each));
        };
        // A root counts as an item whatever it is given.
        grow(&mut self.items, usage.lists, weight.elements.saturating_sub(1));
        grow(&mut self.fields, usage.fields_by_element, weight.elements.saturating_sub(1));
        grow(&mut self.values, usage.copies, weight.values);
        grow(&mut self.text, usage.copies, weight.text);
    }

    fn within(&self, budget: &Budget) -> Result<(), Refusal> {
        if self.items > budget.items || self.values > budget.values {
            return Err(ErrorCode::TooManyItems.into());
        }
        if self.fields > budget.selections {
            return Err(too_large());
        }
        match self.text > budget.text {
            true => Err(Refusal::because(
                ErrorCode::BodyTooLarge,
                "The GraphQL document, with its variables in their places, is larger than the server takes.",
            )),
            false => Ok(()),
        }
    }

    /// A value, or a field, takes about as much as eight bytes of a body do, with all that is made of them.
    fn bytes(&self) -> usize {
        let small = self.values.saturating_add(self.fields);
        self.text.saturating_add(small.saturating_mul(8))
    }
}

/// That a document asks for more than there is an answer to.
pub(super) fn too_large() -> Refusal {
    Refusal::because(ErrorCode::QueryInvalid, "The GraphQL document asks for too much at once.")
}

fn weight_of(value: &Variable) -> Weight {
    fn add(value: &Variable, values: &mut usize, text: &mut usize) {
        *values += 1;
        match value {
            Variable::String(string) => *text += string.len(),
            Variable::List(items) => items.iter().for_each(|item| add(item, values, text)),
            Variable::Object(pairs) => {
                for (key, value) in pairs {
                    *text += key.len();
                    add(value, values, text);
                }
            }
            Variable::Null
            | Variable::Number(_)
            | Variable::Boolean(_)
            | Variable::Enum(_)
            | Variable::Binary(_) => {}
        }
    }
    let elements = match value {
        Variable::List(items) => items.len(),
        _ => 1,
    };
    let (mut values, mut text) = (0, 0);
    add(value, &mut values, &mut text);
    Weight { elements, values, text }
}
