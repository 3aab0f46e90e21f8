//! The parser of the permissions file.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Condition, Grant, Grants, Operand, Policy};
use crate::model::Operation;

/// Parses the file, and collects all errors in it.
pub(super) fn parse(text: &str, unauthorized_role: Option<&str>) -> Result<Policy, Vec<String>> {
    // As in YAML 1.2, `no` and `on` are strings.
    let options = serde_saphyr::options! { strict_booleans: true };
    let value: Value = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        vec![format!("it is not YAML without repeated keys{}", crate::auth::position_of(&error))]
    })?;
    let mut parser = Parser { problems: Vec::new(), may_use_variables: true };
    let mut roles = BTreeMap::new();
    let sections = parser.object("the file", &value, "`roles`").into_iter().flatten();
    let mut has_roles = false;
    for (section, value) in sections {
        if section != "roles" {
            parser.problem::<()>(section, "is not known; the file takes `roles`");
            continue;
        }
        has_roles = true;
        for (role, value) in parser.object("roles", value, "roles").into_iter().flatten() {
            parser.may_use_variables = unauthorized_role != Some(role);
            if let Some(grants) = parser.grants(&format!("roles.{role}"), value) {
                roles.insert(role.clone(), grants);
            }
        }
    }
    if !has_roles && parser.problems.is_empty() {
        parser.problem::<()>("roles", "is missing");
    }
    if parser.problems.is_empty() { Ok(Policy { roles }) } else { Err(parser.problems) }
}

struct Parser {
    problems: Vec<String>,
    may_use_variables: bool,
}

impl Parser {
    fn problem<T>(&mut self, path: &str, problem: &str) -> Option<T> {
        self.problems.push(format!("{path} {problem}"));
        None
    }

    fn object<'v>(&mut self, path: &str, value: &'v Value, of: &str) -> Option<&'v Map<String, Value>> {
        value.as_object().or_else(|| self.problem(path, &format!("is not a map of {of}")))
    }

    fn grants(&mut self, path: &str, value: &Value) -> Option<Grants> {
        let object = self.object(path, value, "operations")?;
        if let Some(all) = object.get("all") {
            if *all != Value::Bool(true) || object.len() > 1 {
                return self.problem(&format!("{path}.all"), "takes only `true`, and stands alone");
            }
            return Some(Grants::All);
        }
        let mut grants = BTreeMap::new();
        for (name, value) in object {
            let path = format!("{path}.{name}");
            let Some(operation) = Operation::CALLED.into_iter().find(|called| called.as_str() == name) else {
                let known = Operation::CALLED.map(Operation::as_str).join(", ");
                self.problems.push(format!("{path} is not known; a role takes all, {known}"));
                continue;
            };
            if let Some(grant) = self.grant(&path, operation, value) {
                grants.insert(operation, grant);
            }
        }
        Some(Grants::Listed(grants))
    }

    fn grant(&mut self, path: &str, operation: Operation, value: &Value) -> Option<Grant> {
        match value {
            Value::Bool(true) => return Some(Grant::Always),
            Value::Bool(false) => return Some(Grant::Never),
            Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {}
        }
        let mut when = None;
        for (name, value) in value.as_object().into_iter().flatten() {
            match name.as_str() {
                "when" => when = Some(value),
                _ => self.problem(&format!("{path}.{name}"), "is not known; an operation takes `when`")?,
            }
        }
        let Some(when) = when else { return self.problem(path, "is neither `true`, `false` nor a `when`") };
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
                return self.problem(path, "has no context that a `when` could look at");
            }
        }
        let path = format!("{path}.when");
        let object = self.object(&path, when, "conditions")?;
        if object.is_empty() {
            return self.problem(&path, "has no condition; write `true` to grant always");
        }
        let conditions: Vec<_> =
            object.iter().map(|(key, value)| self.conditions(&format!("{path}.{key}"), key, value)).collect();
        Some(Grant::When(conditions.into_iter().collect::<Option<Vec<_>>>()?.into_iter().flatten().collect()))
    }

    fn conditions(&mut self, path: &str, key: &str, value: &Value) -> Option<Vec<Condition>> {
        let Some(key) = key.strip_prefix("context.").filter(|key| !key.is_empty()) else {
            return self.problem(path, "is not known; a condition is on `context.` and a key");
        };
        let object = self.object(path, value, "`_eq` or `_in`")?;
        if object.is_empty() {
            return self.problem(path, "has neither `_eq` nor `_in`");
        }
        let mut conditions = Vec::new();
        for (operator, value) in object {
            let path = format!("{path}.{operator}");
            let one_of = match (operator.as_str(), value) {
                ("_eq", value) => vec![self.operand(&path, value)?],
                ("_in", Value::Array(list)) => {
                    list.iter().map(|value| self.operand(&path, value)).collect::<Option<_>>()?
                }
                ("_in", _) => return self.problem(&path, "takes a list"),
                _ => return self.problem(&path, "is not known; a condition takes `_eq` or `_in`"),
            };
            conditions.push(Condition { key: key.to_owned(), one_of });
        }
        Some(conditions)
    }

    fn operand(&mut self, path: &str, value: &Value) -> Option<Operand> {
        let Some(text) = value.as_str() else {
            return self.problem(path, "takes texts; put numbers and the like in quotes");
        };
        let lower = text.to_ascii_lowercase();
        match lower.strip_prefix("x-hasura-") {
            None => Some(Operand::Literal(text.to_owned())),
            Some("") => self.problem(path, "has `X-Hasura-` without a variable's name"),
            Some(_) if !self.may_use_variables => self.problem(
                path,
                "is a session variable, but this is the unauthorized role, whose variables are the client's own",
            ),
            Some(_) => Some(Operand::Variable(lower)),
        }
    }
}
