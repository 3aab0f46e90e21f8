//! Reading the permissions file.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Condition, Grant, Grants, Operand, Policy};
use crate::model::Operation;

/// Reads the file, and collects every mistake in it.
pub(super) fn parse(text: &str, unauthorized_role: Option<&str>) -> Result<Policy, Vec<String>> {
    // YAML 1.2: `no` and `on` are texts.
    let options = serde_saphyr::options! { strict_booleans: true };
    let value: Value = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        vec![format!("it is not YAML without repeated keys{}", crate::auth::place_of(&error))]
    })?;
    let mut reading = Reading { problems: Vec::new(), may_use_variables: true };
    let mut roles = BTreeMap::new();
    let sections = reading.object("the file", &value, "`roles`").into_iter().flatten();
    let mut has_roles = false;
    for (section, value) in sections {
        if section != "roles" {
            reading.problem::<()>(section, "is not known; the file takes `roles`");
            continue;
        }
        has_roles = true;
        for (role, value) in reading.object("roles", value, "roles").into_iter().flatten() {
            reading.may_use_variables = unauthorized_role != Some(role);
            if let Some(grants) = reading.grants(&format!("roles.{role}"), value) {
                roles.insert(role.clone(), grants);
            }
        }
    }
    if !has_roles && reading.problems.is_empty() {
        reading.problem::<()>("roles", "is missing");
    }
    if reading.problems.is_empty() { Ok(Policy { roles }) } else { Err(reading.problems) }
}

struct Reading {
    problems: Vec<String>,
    may_use_variables: bool,
}

impl Reading {
    fn problem<T>(&mut self, place: &str, problem: &str) -> Option<T> {
        self.problems.push(format!("{place} {problem}"));
        None
    }

    fn object<'v>(&mut self, place: &str, value: &'v Value, of: &str) -> Option<&'v Map<String, Value>> {
        value.as_object().or_else(|| self.problem(place, &format!("is not a map of {of}")))
    }

    fn grants(&mut self, place: &str, value: &Value) -> Option<Grants> {
        let object = self.object(place, value, "operations")?;
        if let Some(all) = object.get("all") {
            if *all != Value::Bool(true) || object.len() > 1 {
                return self.problem(&format!("{place}.all"), "takes only `true`, and stands alone");
            }
            return Some(Grants::All);
        }
        let mut grants = BTreeMap::new();
        for (name, value) in object {
            let place = format!("{place}.{name}");
            let Some(operation) = Operation::CALLED.into_iter().find(|called| called.as_str() == name) else {
                let known = Operation::CALLED.map(Operation::as_str).join(", ");
                self.problems.push(format!("{place} is not known; a role takes all, {known}"));
                continue;
            };
            if let Some(grant) = self.grant(&place, operation, value) {
                grants.insert(operation, grant);
            }
        }
        Some(Grants::Listed(grants))
    }

    fn grant(&mut self, place: &str, operation: Operation, value: &Value) -> Option<Grant> {
        match value {
            Value::Bool(true) => return Some(Grant::Always),
            Value::Bool(false) => return Some(Grant::Never),
            Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {}
        }
        let mut when = None;
        for (name, value) in value.as_object().into_iter().flatten() {
            match name.as_str() {
                "when" => when = Some(value),
                _ => self.problem(&format!("{place}.{name}"), "is not known; an operation takes `when`")?,
            }
        }
        let Some(when) = when else { return self.problem(place, "is neither `true`, `false` nor a `when`") };
        match operation {
            Operation::Encrypt | Operation::Decrypt | Operation::Reveal => {}
            Operation::Rotate
            | Operation::Audit
            | Operation::Health
            | Operation::Incident
            | Operation::Prune
            | Operation::Erase
            | Operation::Hold
            | Operation::Restore
            | Operation::Seal => {
                return self.problem(place, "has no context that a `when` could look at");
            }
        }
        let place = format!("{place}.when");
        let object = self.object(&place, when, "conditions")?;
        if object.is_empty() {
            return self.problem(&place, "has no condition; write `true` to grant always");
        }
        let conditions: Vec<_> = object
            .iter()
            .map(|(key, value)| self.conditions(&format!("{place}.{key}"), key, value))
            .collect();
        Some(Grant::When(conditions.into_iter().collect::<Option<Vec<_>>>()?.into_iter().flatten().collect()))
    }

    fn conditions(&mut self, place: &str, key: &str, value: &Value) -> Option<Vec<Condition>> {
        let Some(key) = key.strip_prefix("context.").filter(|key| !key.is_empty()) else {
            return self.problem(place, "is not known; a condition is on `context.` and a key");
        };
        let object = self.object(place, value, "`_eq` or `_in`")?;
        if object.is_empty() {
            return self.problem(place, "has neither `_eq` nor `_in`");
        }
        let mut conditions = Vec::new();
        for (operator, value) in object {
            let place = format!("{place}.{operator}");
            let one_of = match (operator.as_str(), value) {
                ("_eq", value) => vec![self.operand(&place, value)?],
                ("_in", Value::Array(list)) => {
                    list.iter().map(|value| self.operand(&place, value)).collect::<Option<_>>()?
                }
                ("_in", _) => return self.problem(&place, "takes a list"),
                _ => return self.problem(&place, "is not known; a condition takes `_eq` or `_in`"),
            };
            conditions.push(Condition { key: key.to_owned(), one_of });
        }
        Some(conditions)
    }

    fn operand(&mut self, place: &str, value: &Value) -> Option<Operand> {
        let Some(text) = value.as_str() else {
            return self.problem(place, "takes texts; put numbers and the like in quotes");
        };
        let lower = text.to_ascii_lowercase();
        match lower.strip_prefix("x-hasura-") {
            None => Some(Operand::Literal(text.to_owned())),
            Some("") => self.problem(place, "has `X-Hasura-` without a variable's name"),
            Some(_) if !self.may_use_variables => self.problem(
                place,
                "is a session variable, but this is the unauthorized role, whose variables are the client's own",
            ),
            Some(_) => Some(Operand::Variable(lower)),
        }
    }
}
