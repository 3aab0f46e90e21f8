//! Authentication of a request by its headers.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use tokio_util::sync::CancellationToken;

use super::admin_tokens::AdminTokens;
use super::headers::{text, the_one};
use super::jwt::{HasuraClaims, Jwt, KeysFound, bearer, has_jwt_shape};
use crate::config::{self, ConfigError};
use crate::crypto::{SecretText, ct_eq};
use crate::model::{Clock, ErrorCode, Identity, Means, Refusal, Session};

/// The header for the secret shared with Hasura. Not `Authorization`: configured in Hasura, that
/// would replace the client's own.
pub const SECRET_HEADER: HeaderName = HeaderName::from_static("x-byok-secret");

const ROLE: HeaderName = HeaderName::from_static("x-hasura-role");
const USER_ID: &str = "x-hasura-user-id";
/// Hasura's own secrets, which it does not forward. Should one arrive, it is not a session
/// variable.
const HASURA_SECRETS: [&str; 2] = ["x-hasura-admin-secret", "x-hasura-access-key"];

/// Authenticates callers.
///
/// | `X-Byok-Secret` | JWT | `x-hasura-role` | caller |
/// |---|---|---|---|
/// | wrong, or none is configured | any | any | nobody: `invalid-headers` |
/// | right | none | present | that role, with all `x-hasura-*` headers as session variables |
/// | right | none | present: the unauthorized role | that role, without user and session variables: they are the client's own |
/// | right | none | missing | nobody: `invalid-headers` |
/// | right | none, but `BYOK_REQUIRE_JWT` is set | any | nobody: `invalid-headers` |
/// | right | bad | any | nobody: the JWT's error |
/// | right | good | any | that of the JWT, unless an `x-hasura-*` header contradicts it (`access-denied`) |
/// | none | bad | any | nobody: the JWT's error |
/// | none | good | present | that role, if the JWT allows it (`access-denied`), with the JWT's session variables |
/// | none | good | missing | the JWT's default role |
/// | none | none, but an admin token | any | the token's name and role, without session variables |
/// | none | none | any | nobody: `invalid-headers` |
///
/// Anybody can send `x-hasura-*` headers, so without the secret they are ignored, except that
/// `x-hasura-role` chooses among the roles that a JWT allows. With the secret, a bearer token that
/// is not a JWT is ignored, since Hasura forwards what its clients send. In the last row Hasura
/// itself would use its unauthorized role; a direct caller without a credential is refused here,
/// since deny is the default and that role arrives with the secret. A duplicate header is refused.
///
/// Introspection and health checks need no identity, so the fronts do not authenticate for them.
/// Hasura introspects without role or JWT.
pub struct Authenticator {
    jwt: Option<Jwt>,
    secrets: Vec<SecretText>,
    require_jwt: bool,
    unauthorized_role: Option<String>,
    admin_tokens: AdminTokens,
    client: reqwest::Client,
    clock: Arc<dyn Clock>,
}

impl Authenticator {
    /// Creates an authenticator from the settings. `client` is used for `jwk_url` alone; it needs
    /// no redirects. Fetches nothing yet.
    ///
    /// # Errors
    ///
    /// Every error in the JWT configuration and the admin tokens, or that no way to authenticate is
    /// configured.
    pub fn new(
        settings: &config::Auth,
        client: reqwest::Client,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let jwt = settings.jwt.as_ref().and_then(|setting| {
            let jwt = match setting {
                config::Jwt::One(json) => Jwt::of_one(json.expose(), settings.require_exp),
                config::Jwt::Many(json) => Jwt::of_many(json.expose(), settings.require_exp),
            };
            let variable = setting.variable();
            let error = |problem| ConfigError { variable: variable.to_owned(), problem };
            jwt.map_err(|problems| errors.extend(problems.into_iter().map(error))).ok()
        });
        let admin_tokens = AdminTokens::read(settings, &mut errors);
        if settings.jwt.is_none() && settings.hasura_secrets.is_empty() && admin_tokens.is_empty() {
            errors.push(ConfigError {
                variable: "HASURA_GRAPHQL_JWT_SECRET".to_owned(),
                problem: "is not set, and neither is BYOK_HASURA_SECRET, BYOK_ADMIN_TOKEN or \
                          BYOK_ADMIN_TOKENS_FILE: nobody could call"
                    .to_owned(),
            });
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let secrets =
            settings.hasura_secrets.iter().map(|secret| SecretText::new(secret.expose().to_owned()));
        Ok(Self {
            jwt,
            secrets: secrets.collect(),
            require_jwt: settings.require_jwt,
            unauthorized_role: settings.unauthorized_role.clone(),
            admin_tokens,
            client,
            clock,
        })
    }

    /// The identity of the sender of these headers, by the table above.
    ///
    /// # Errors
    ///
    /// Refusals with Hasura's codes and, where Hasura has one, its message.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Identity, Refusal> {
        match the_one(headers, &SECRET_HEADER)? {
            Some(secret) => self.with_secret(secret, headers),
            None => self.without_secret(headers),
        }
    }

    /// Authenticates, and if a JWT names an unknown key, first fetches the keys again. That takes
    /// some seconds at most, and happens at most six times a minute for each `jwk_url`, for all
    /// callers together.
    ///
    /// # Errors
    ///
    /// The refusals of [`Self::authenticate`].
    pub async fn recognise(&self, headers: &HeaderMap) -> Result<Identity, Refusal> {
        match (self.authenticate(headers), &self.jwt) {
            (Err(refusal), Some(jwt)) if refusal.code == ErrorCode::InvalidJwt => {
                if jwt.look_for_key(headers).await? { self.authenticate(headers) } else { Err(refusal) }
            }
            (answer, _) => answer,
        }
    }

    /// Whether the keys of any JWT configuration are known; true without a JWT configuration.
    pub fn knows_keys(&self) -> bool {
        self.jwt.as_ref().is_none_or(Jwt::knows_keys)
    }

    /// Takes over the keys that `before` has fetched from the same URLs.
    pub fn inherit(&self, before: &Self) {
        if let (Some(ours), Some(theirs)) = (&self.jwt, &before.jwt) {
            ours.inherit(theirs);
        }
    }

    /// Fetches the keys of every `jwk_url` once, and returns the results; for `doctor`.
    pub async fn try_keys(&self) -> Vec<KeysFound> {
        match &self.jwt {
            Some(jwt) => jwt.try_keys(&self.client).await,
            None => Vec::new(),
        }
    }

    /// Keeps the keys of every `jwk_url` up to date until `stop`. Returns at once if there is no
    /// `jwk_url`.
    pub async fn keep_keys_fresh(&self, stop: &CancellationToken) {
        if let Some(jwt) = &self.jwt {
            jwt.keep_keys_fresh(&self.client, &*self.clock, stop).await;
        }
    }

    fn with_secret(&self, secret: &str, headers: &HeaderMap) -> Result<Identity, Refusal> {
        // Compared with all, so that the time does not reveal which secret matched.
        let matching = self.secrets.iter().filter(|ours| ct_eq(ours.expose().as_bytes(), secret.as_bytes()));
        if matching.count() == 0 {
            return Err(invalid_headers("The shared secret header does not hold the shared secret"));
        }
        let role = requested_role(headers)?;
        let variables = session_variables(headers)?;
        if let Some(jwt) = &self.jwt
            && jwt.is_present(headers)?
        {
            let claims = jwt.claims(headers, self.clock.now())?.ok_or_else(|| {
                Refusal::because(ErrorCode::InvalidJwt, "Could not verify JWT: JWTNotInIssuer")
            })?;
            // A client that has Hasura's admin secret can set session variables, but must not
            // contradict the JWT.
            if variables.iter().any(|variable| !claims.variables.contains(variable)) {
                return Err(Refusal::because(
                    ErrorCode::AccessDenied,
                    "The session variables do not agree with the JWT's claims",
                ));
            }
            return identity_of(&claims, role);
        }
        if self.require_jwt {
            return Err(invalid_headers("A JWT is required in addition to the shared secret"));
        }
        let role = role.ok_or_else(|| {
            invalid_headers("Missing x-hasura-role header in addition to the shared secret")
        })?;
        if self.unauthorized_role.as_deref() == Some(role) {
            return Ok(identity(role.into(), Vec::new(), Means::HasuraSecret));
        }
        Ok(identity(role.into(), with_role(variables, role), Means::HasuraSecret))
    }

    fn without_secret(&self, headers: &HeaderMap) -> Result<Identity, Refusal> {
        if !self.admin_tokens.is_empty()
            && let Ok(Some(token)) = bearer(headers)
            && !has_jwt_shape(token)
        {
            return self.admin_tokens.identify(token, self.clock.now());
        }
        let Some(jwt) = &self.jwt else { return Err(ErrorCode::InvalidHeaders.into()) };
        let claims = jwt.claims(headers, self.clock.now())?.ok_or_else(|| {
            invalid_headers("Missing 'Authorization' or 'Cookie' header in JWT authentication mode")
        })?;
        identity_of(&claims, requested_role(headers)?)
    }
}

/// The role that the caller requests; an empty header counts as none.
fn requested_role(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    Ok(the_one(headers, &ROLE)?.filter(|role| !role.is_empty()))
}

/// The `x-hasura-*` headers except the role and Hasura's secrets, with their names in lower case.
fn session_variables(headers: &HeaderMap) -> Result<Vec<(String, String)>, Refusal> {
    let mut variables: Vec<(String, String)> = Vec::new();
    for (name, value) in headers {
        let is_variable = name.as_str().starts_with("x-hasura-") && name != ROLE;
        if !is_variable || HASURA_SECRETS.contains(&name.as_str()) {
            continue;
        }
        // `HeaderMap` yields the values of one name together.
        if variables.last().is_some_and(|(last, _)| last == name.as_str()) {
            return Err(invalid_headers(format!("The header {name} is present more than once")));
        }
        variables.push((name.as_str().to_owned(), text(name, value)?.to_owned()));
    }
    Ok(variables)
}

fn identity_of(claims: &HasuraClaims, requested: Option<&str>) -> Result<Identity, Refusal> {
    let role = requested.unwrap_or(&claims.default);
    // The default role must be in the list as well, as in Hasura.
    let role = claims.allowed.iter().find(|allowed| &***allowed == role).ok_or_else(|| {
        Refusal::because(ErrorCode::AccessDenied, "Your requested role is not in allowed roles")
    })?;
    Ok(identity(Arc::clone(role), with_role(claims.variables.clone(), role), Means::Jwt))
}

fn with_role(mut variables: Vec<(String, String)>, role: &str) -> Vec<(String, String)> {
    // Last, so that it overrides a claim of that name.
    variables.push((ROLE.as_str().to_owned(), role.to_owned()));
    variables
}

fn identity(role: Arc<str>, variables: Vec<(String, String)>, means: Means) -> Identity {
    let session = Session::from_pairs(variables);
    Identity { role, user: session.get(USER_ID).map(str::to_owned), session, means }
}

fn invalid_headers(message: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::because(ErrorCode::InvalidHeaders, message)
}
