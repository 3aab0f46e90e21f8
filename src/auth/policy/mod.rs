//! What each role may do. Pure, without I/O or clock: a decision depends only on its arguments.
//!
//! Deny is the default: an operation that no line grants is refused, and so is one that depends on
//! a missing session variable or context key.

mod file;

use std::collections::BTreeMap;

use crate::config::{self, ConfigError};
use crate::crypto::Context;
use crate::model::{Identity, Operation, Session};

/// The permissions of every role.
///
/// ```yaml
/// # BYOK_PERMISSIONS_FILE (YAML; JSON is a part of it)
/// roles:
///   admin: { all: true }
///   service: { encrypt: true, decrypt: true }
///   user:
///     encrypt: { when: { context.record_id: { _eq: X-Hasura-User-Id } } }
///     decrypt:
///       when:
///         context.record_id: { _eq: X-Hasura-User-Id }
///         context.field: { _in: [email, phone] }
/// ```
///
/// A role has `all: true`, or operations: `encrypt`, `decrypt`, `reveal`, `rotate`, `audit`,
/// `health`, each `true`, `false` or with `when`. All conditions of a `when` must hold. A condition
/// compares a key of the context, byte for byte, with `_eq` one value or `_in` one of a list; a
/// value that begins with `X-Hasura-` (in any case) is the session variable of that name, any other
/// is a literal. `reveal` is decryption in a join: a role without a line for it has that of
/// `decrypt`. The file replaces the default, which is the first two roles above.
#[derive(Debug)]
pub struct Policy {
    roles: BTreeMap<String, Grants>,
}

#[derive(Debug)]
enum Grants {
    All,
    Listed(BTreeMap<Operation, Grant>),
}

#[derive(Debug, PartialEq, Eq)]
enum Grant {
    Never,
    Always,
    When(Vec<Condition>),
}

/// The condition that the value of a context key is one of these.
#[derive(Debug, PartialEq, Eq)]
struct Condition {
    key: String,
    one_of: Vec<Operand>,
}

#[derive(Debug, PartialEq, Eq)]
enum Operand {
    Literal(String),
    /// A session variable, its name in lower case.
    Variable(String),
}

impl Policy {
    /// The policy of the settings: the permissions file, or the default without one.
    ///
    /// # Errors
    ///
    /// All errors in the file, each with its path.
    pub fn of(settings: &config::Auth) -> Result<Self, Vec<ConfigError>> {
        let Some(file) = &settings.permissions else { return Ok(Self::default()) };
        Self::parse(&file.text, settings.unauthorized_role.as_deref()).map_err(|problems| {
            let error = |problem| ConfigError {
                variable: file.variable.to_owned(),
                problem: format!("names the file {}: {problem}", file.path.display()),
            };
            problems.into_iter().map(error).collect()
        })
    }

    /// Parses a permissions file. The role that Hasura gives to unauthenticated clients must not
    /// depend on session variables, which such a client chooses itself.
    ///
    /// # Errors
    ///
    /// All errors, each with its path, such as `roles.user.encrypt.when`.
    pub fn parse(text: &str, unauthorized_role: Option<&str>) -> Result<Self, Vec<String>> {
        file::parse(text, unauthorized_role)
    }

    /// Whether the caller may do the operation in this context; `None` for operations without a
    /// context.
    pub fn allows(&self, identity: &Identity, operation: Operation, context: Option<&Context>) -> bool {
        match self.grant(identity, operation) {
            Grant::Never => false,
            Grant::Always => true,
            Grant::When(conditions) => context.is_some_and(|context| {
                conditions.iter().all(|condition| condition.holds(context, &identity.session))
            }),
        }
    }

    /// Whether the caller may do the operation in any context: the check of a whole call before its
    /// items are checked.
    pub fn may_ever(&self, identity: &Identity, operation: Operation) -> bool {
        *self.grant(identity, operation) != Grant::Never
    }

    fn grant(&self, identity: &Identity, operation: Operation) -> &Grant {
        match self.roles.get(&*identity.role) {
            None => &Grant::Never,
            Some(Grants::All) => &Grant::Always,
            Some(Grants::Listed(grants)) => match (grants.get(&operation), operation) {
                (Some(grant), _) => grant,
                (None, Operation::Reveal) => grants.get(&Operation::Decrypt).unwrap_or(&Grant::Never),
                (None, _) => &Grant::Never,
            },
        }
    }
}

impl Default for Policy {
    /// `admin` may do everything, `service` may encrypt and decrypt (and therefore reveal), other
    /// roles nothing.
    fn default() -> Self {
        let service = [Operation::Encrypt, Operation::Decrypt].map(|operation| (operation, Grant::Always));
        Self {
            roles: BTreeMap::from([
                ("admin".to_owned(), Grants::All),
                ("service".to_owned(), Grants::Listed(BTreeMap::from(service))),
            ]),
        }
    }
}

impl Condition {
    fn holds(&self, context: &Context, session: &Session) -> bool {
        context.get(&self.key).is_some_and(|value| {
            self.one_of.iter().any(|operand| match operand {
                Operand::Literal(literal) => literal == value,
                Operand::Variable(name) => session.get(name) == Some(value),
            })
        })
    }
}

#[cfg(test)]
mod tests;
