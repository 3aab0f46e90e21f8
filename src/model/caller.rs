//! Who calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{RequestId, Tenant};

/// The session variables of a caller: names in lower case (`x-hasura-user-id`), values as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session(BTreeMap<String, String>);

impl Session {
    /// From names and values; names are put in lower case.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect())
    }

    /// The value of a variable, whatever the case of its name.
    pub fn get(&self, name: &str) -> Option<&str> {
        match self.0.get(name) {
            Some(value) => Some(value),
            None => self.0.get(&name.to_ascii_lowercase()).map(String::as_str),
        }
    }
}

/// How a caller was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Means {
    /// A JSON Web Token that we verified ourselves.
    Jwt,
    /// Session variables that came beside the remote schema's shared secret.
    HasuraSecret,
    /// A named admin token.
    AdminToken,
    /// The command line, on the machine that holds the configuration.
    Operator,
}

impl Means {
    /// The name that an entry carries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jwt => "jwt",
            Self::HasuraSecret => "hasura_secret",
            Self::AdminToken => "admin_token",
            Self::Operator => "operator",
        }
    }
}

/// What authentication established.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The role that was chosen for this request and is allowed to the caller.
    pub role: Arc<str>,
    /// `x-hasura-user-id`, or the name of an admin token.
    pub user: Option<String>,
    /// Session variables; under Hasura's unauthorized role nothing may be granted by them.
    pub session: Session,
    /// How the caller was recognised.
    pub means: Means,
}

/// An authenticated caller of one request, for one tenant. A parameter of every use case.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The tenant, from configuration or verified claims, never from an argument.
    pub tenant: Arc<Tenant>,
    /// Who it is.
    pub identity: Identity,
    /// The request.
    pub request_id: RequestId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_variables_are_found_whatever_the_case_of_their_name() {
        let session = Session::from_pairs([("X-Hasura-User-Id".to_owned(), "7".to_owned())]);
        assert_eq!(session.get("x-hasura-user-id"), Some("7"));
        assert_eq!(session.get("X-HASURA-USER-ID"), Some("7"));
        assert_eq!(session.get("x-hasura-org"), None);
    }
}
