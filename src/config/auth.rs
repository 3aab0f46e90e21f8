//! Who may call: JWTs, the shared secret of Hasura's remote schema, admin tokens, and the
//! permissions file.
//!
//! This section only reads the texts. The `auth` module parses them, and reports its errors in
//! the same form.

use std::path::PathBuf;

use super::Reader;
use crate::crypto::SecretText;

/// The section that configures who may call.
pub struct Auth {
    /// The JWT configuration, in Hasura's format.
    pub jwt: Option<Jwt>,
    /// `BYOK_JWT_REQUIRE_EXP` (`true`): whether a token without `exp` is refused. Hasura accepts
    /// one.
    pub require_exp: bool,
    /// `BYOK_HASURA_SECRET` and `BYOK_HASURA_SECRET_PREVIOUS`: the accepted values of the remote
    /// schema's secret header.
    pub hasura_secrets: Vec<SecretText>,
    /// `BYOK_REQUIRE_JWT` (`false`): whether a JWT is required in addition to the shared secret.
    /// Needed with many tenants.
    pub require_jwt: bool,
    /// `BYOK_HASURA_UNAUTHORIZED_ROLE`: Hasura's `HASURA_GRAPHQL_UNAUTHORIZED_ROLE`.
    pub unauthorized_role: Option<String>,
    /// `BYOK_ADMIN_TOKEN`: one token with the role `admin`, named `admin`.
    pub admin_token: Option<SecretText>,
    /// `BYOK_ADMIN_TOKENS_FILE`.
    pub admin_tokens: Option<File>,
    /// `BYOK_PERMISSIONS_FILE`.
    pub permissions: Option<File>,
}

/// A JWT configuration that is not parsed yet.
pub enum Jwt {
    /// `HASURA_GRAPHQL_JWT_SECRET`: one object.
    One(SecretText),
    /// `HASURA_GRAPHQL_JWT_SECRETS`: a list. It takes precedence over the other variable.
    Many(SecretText),
}

impl Jwt {
    /// Returns the variable that the configuration came from.
    pub fn variable(&self) -> &'static str {
        match self {
            Self::One(_) => "HASURA_GRAPHQL_JWT_SECRET",
            Self::Many(_) => "HASURA_GRAPHQL_JWT_SECRETS",
        }
    }
}

/// A file that a variable names, with its content.
pub struct File {
    /// The variable.
    pub variable: &'static str,
    /// The file's path.
    pub path: PathBuf,
    /// The file's content.
    pub text: String,
}

/// The least number of characters of a shared secret or admin token: either one alone gives full
/// access.
const LEAST_SECRET: usize = 16;

impl Auth {
    /// Reads the section.
    pub fn read(reader: &mut Reader<'_>) -> Self {
        let one = reader.secret("HASURA_GRAPHQL_JWT_SECRET").map(Jwt::One);
        let many = reader.secret("HASURA_GRAPHQL_JWT_SECRETS").map(Jwt::Many);
        let current = secret(reader, "BYOK_HASURA_SECRET");
        let previous = secret(reader, "BYOK_HASURA_SECRET_PREVIOUS");
        if previous.is_some() && !reader.is_set("BYOK_HASURA_SECRET") {
            reader.error("BYOK_HASURA_SECRET_PREVIOUS", "is set without BYOK_HASURA_SECRET");
        }
        let unauthorized_role = reader.text("BYOK_HASURA_UNAUTHORIZED_ROLE");
        if unauthorized_role.is_some() && !reader.is_set("BYOK_HASURA_SECRET") {
            reader.error(
                "BYOK_HASURA_UNAUTHORIZED_ROLE",
                "is set without BYOK_HASURA_SECRET, which that role requires",
            );
        }
        let require_jwt = reader.flag("BYOK_REQUIRE_JWT", false);
        if require_jwt && one.is_none() && many.is_none() {
            reader.error("BYOK_REQUIRE_JWT", "is set without HASURA_GRAPHQL_JWT_SECRET");
        }
        Self {
            jwt: many.or(one),
            require_exp: reader.flag("BYOK_JWT_REQUIRE_EXP", true),
            hasura_secrets: current.into_iter().chain(previous).collect(),
            require_jwt,
            unauthorized_role,
            admin_token: secret(reader, "BYOK_ADMIN_TOKEN"),
            admin_tokens: file(reader, "BYOK_ADMIN_TOKENS_FILE"),
            permissions: file(reader, "BYOK_PERMISSIONS_FILE"),
        }
    }
}

fn secret(reader: &mut Reader<'_>, name: &str) -> Option<SecretText> {
    let secret = reader.secret(name)?;
    if secret.expose().len() < LEAST_SECRET || !secret.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
        reader.error(name, format!("is not {LEAST_SECRET} or more visible ASCII characters without spaces"));
        return None;
    }
    Some(secret)
}

fn file(reader: &mut Reader<'_>, variable: &'static str) -> Option<File> {
    reader.text_file(variable).map(|(path, text)| File { variable, path, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    fn read(pairs: &[(&str, &str)]) -> (Auth, Vec<String>) {
        let env = Env::from_pairs(pairs.iter().copied());
        let mut reader = Reader::new(&env);
        let auth = Auth::read(&mut reader);
        (auth, reader.into_errors().into_iter().map(|error| error.variable).collect())
    }

    #[test]
    fn nothing_set_is_no_error_and_demands_exp() {
        let (auth, errors) = read(&[]);
        assert!(errors.is_empty());
        assert!(auth.require_exp && auth.jwt.is_none() && auth.hasura_secrets.is_empty());
    }

    #[test]
    fn the_list_of_jwt_secrets_beats_the_single_one() {
        let (auth, _) = read(&[("HASURA_GRAPHQL_JWT_SECRET", "{}"), ("HASURA_GRAPHQL_JWT_SECRETS", "[]")]);
        assert_eq!(auth.jwt.unwrap().variable(), "HASURA_GRAPHQL_JWT_SECRETS");
    }

    #[test]
    fn settings_that_miss_what_they_rest_on_are_errors() {
        let (_, errors) = read(&[
            ("BYOK_HASURA_SECRET_PREVIOUS", "a-secret-of-some-length"),
            ("BYOK_HASURA_UNAUTHORIZED_ROLE", "anonymous"),
            ("BYOK_REQUIRE_JWT", "true"),
            ("BYOK_PERMISSIONS_FILE", "/nowhere"),
        ]);
        assert_eq!(
            errors,
            [
                "BYOK_HASURA_SECRET_PREVIOUS",
                "BYOK_HASURA_UNAUTHORIZED_ROLE",
                "BYOK_REQUIRE_JWT",
                "BYOK_PERMISSIONS_FILE"
            ]
        );
    }

    #[test]
    fn a_short_secret_is_an_error() {
        let (_, errors) =
            read(&[("BYOK_HASURA_SECRET", "hunter2"), ("BYOK_ADMIN_TOKEN", "with a space in it")]);
        assert_eq!(errors, ["BYOK_HASURA_SECRET", "BYOK_ADMIN_TOKEN"]);
    }
}
