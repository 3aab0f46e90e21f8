//! The caller of a request.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The session variables of a caller: names in lower case (`x-hasura-user-id`), values
/// unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session(BTreeMap<String, String>);

impl Session {
    /// Session variables with these names, put in lower case, and values.
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

/// How a caller was authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Means {
    /// A JSON Web Token that this server verified.
    Jwt,
    /// Session variables sent with the remote schema's shared secret.
    HasuraSecret,
    /// A named admin token.
    AdminToken,
    /// The command line of a machine that holds the configuration.
    Operator,
}

impl Means {
    /// The name in entries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jwt => "jwt",
            Self::HasuraSecret => "hasura_secret",
            Self::AdminToken => "admin_token",
            Self::Operator => "operator",
        }
    }
}

/// The result of authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The role of this request, allowed to the caller.
    pub role: Arc<str>,
    /// `x-hasura-user-id`, or the name of an admin token.
    pub user: Option<String>,
    /// Session variables; those of Hasura's unauthorized role must not grant anything.
    pub session: Session,
    /// How the caller was authenticated.
    pub means: Means,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_variables_are_found_in_any_case() {
        let session = Session::from_pairs([("X-Hasura-User-Id".to_owned(), "7".to_owned())]);
        assert_eq!(session.get("x-hasura-user-id"), Some("7"));
        assert_eq!(session.get("X-HASURA-USER-ID"), Some("7"));
        assert_eq!(session.get("x-hasura-org"), None);
    }
}
