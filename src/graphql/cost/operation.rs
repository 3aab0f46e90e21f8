//! The cost of one operation, and whether it is within a budget.
//!
//! The executor copies an argument for each field that has it. So the arguments of all fields are
//! counted as if they had been sent field by field.

use std::collections::HashMap;

use async_graphql::parser::types::{Directive, VariableDefinition};
use async_graphql::{Name, Positioned, Value as Variable, Variables};
use async_graphql_value::Value;

use crate::model::{ErrorCode, Refusal};

use super::Budget;

/// The cost of one operation: what its text determines, and what depends on the variables.
#[derive(Debug, Default)]
pub(super) struct OperationCost {
    amount: Amount,
    /// The uses of each variable.
    uses: HashMap<Name, VariableUse>,
}

/// An amount of everything that a budget limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    /// Root fields. For a root with a list of items, each element counts instead of the root.
    items: usize,
    /// Fields of the answer, roots included.
    fields: usize,
    /// Arguments, elements of lists and values in objects.
    values: usize,
    /// Bytes of text in these values.
    text: usize,
}

/// The uses of a variable.
#[derive(Debug, Default)]
struct VariableUse {
    /// How often the value is copied.
    copies: usize,
    /// How often the value is the list of a root's items.
    lists: usize,
    /// The fields of the answer for each element of such a list.
    fields_per_element: usize,
    /// The size of the default value.
    default: ValueSize,
}

/// The size of a value.
#[derive(Clone, Copy, Debug, Default)]
struct ValueSize {
    /// The elements of a list; otherwise one.
    elements: usize,
    values: usize,
    text: usize,
}

impl OperationCost {
    /// Counts a root field.
    pub(super) fn root(&mut self) {
        self.amount.items += 1;
    }

    /// Counts a field whose arguments and directives are copied this many times.
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

    /// Counts directives whose arguments are copied this many times.
    pub(super) fn directives(&mut self, directives: &[Positioned<Directive>], times: usize) {
        for (_, value) in directives.iter().flat_map(|directive| &directive.node.arguments) {
            self.value(&value.node, times);
        }
    }

    /// Counts arguments once more for each further copy of their value in the answer.
    pub(super) fn arguments_again(
        &mut self,
        arguments: &[(Positioned<Name>, Positioned<Value>)],
        times: usize,
    ) {
        arguments.iter().for_each(|(_, value)| self.value(&value.node, times));
    }

    /// The number of fields counted so far.
    pub(super) fn fields(&self) -> usize {
        self.amount.fields
    }

    /// Counts the `items` of a root; the answer has this many fields for each of them.
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
                usage.fields_per_element += fields;
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

    /// Adds the default value of a variable that was counted.
    pub(super) fn set_default(&mut self, definition: &VariableDefinition) {
        if let Some(default) = &definition.default_value
            && let Some(usage) = self.uses.get_mut(&definition.name.node)
        {
            usage.default = size_of_value(&default.node);
        }
    }

    /// Whether the cost is within the budget so far, without the variables.
    ///
    /// # Errors
    /// `TOO_MANY_ITEMS` for too many items or values, `BODY_TOO_LARGE` for too much text,
    /// `QUERY_INVALID` for too large an answer.
    pub(super) fn check(&self, budget: &Budget) -> Result<(), Refusal> {
        self.amount.check(budget)
    }

    /// Whether the cost is within the budget with these variables. Returns about how many bytes of
    /// memory the copies of all arguments take.
    ///
    /// # Errors
    /// The errors of [`Self::check`].
    pub(super) fn check_with(&self, variables: &Variables, budget: &Budget) -> Result<usize, Refusal> {
        let mut amount = self.amount;
        for (name, usage) in &self.uses {
            amount.add(usage, variables.get(name).map_or(usage.default, size_of_value));
        }
        amount.check(budget)?;
        Ok(amount.bytes())
    }

    /// Counts a value that is copied this many times.
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
    fn add(&mut self, usage: &VariableUse, size: ValueSize) {
        let grow = |sum: &mut usize, times: usize, each: usize| {
            *sum = sum.saturating_add(times.saturating_mul(each));
        };
        // The root itself is already counted as an item.
        grow(&mut self.items, usage.lists, size.elements.saturating_sub(1));
        grow(&mut self.fields, usage.fields_per_element, size.elements.saturating_sub(1));
        grow(&mut self.values, usage.copies, size.values);
        grow(&mut self.text, usage.copies, size.text);
    }

    fn check(&self, budget: &Budget) -> Result<(), Refusal> {
        if self.items > budget.items || self.values > budget.values {
            return Err(ErrorCode::TooManyItems.into());
        }
        if self.fields > budget.selections {
            return Err(too_large());
        }
        if self.text > budget.text {
            Err(Refusal::because(
                ErrorCode::BodyTooLarge,
                "The GraphQL document, with its variables substituted, is larger than the server accepts.",
            ))
        } else {
            Ok(())
        }
    }

    /// About how many bytes of memory this takes: a value or a field, with everything built from
    /// it, takes about as much as eight bytes of a body.
    fn bytes(&self) -> usize {
        let small = self.values.saturating_add(self.fields);
        self.text.saturating_add(small.saturating_mul(8))
    }
}

/// The refusal of a document whose answer would be too large.
pub(super) fn too_large() -> Refusal {
    Refusal::because(ErrorCode::QueryInvalid, "The GraphQL document asks for too much at once.")
}

fn size_of_value(value: &Variable) -> ValueSize {
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
    ValueSize { elements, values, text }
}
