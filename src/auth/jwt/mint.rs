//! Signing of tokens for development, for `byok dev` and `byok token`. The server itself never
//! signs one.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::{Map, Value, json};

use super::claims::{ClaimsRule, Format, Mapped, Namespace};
use super::configuration;
use super::keys::Algorithm;
use super::path::Path;
use super::verifier::Verifier;
use crate::config;
use crate::crypto::SecretText;
use crate::model::Timestamp;

/// The claims of a token to sign.
#[derive(Clone, Debug)]
pub struct MintClaims {
    /// `x-hasura-default-role`.
    pub role: String,
    /// `x-hasura-allowed-roles`; the default role is put in front if it is not among them.
    pub allowed_roles: Vec<String>,
    /// `x-hasura-user-id`, and `sub`.
    pub user: Option<String>,
    /// Further session variables, with their full names (`x-hasura-org-id`).
    pub variables: Vec<(String, String)>,
    /// How long the token is valid.
    pub lasts: Duration,
}

/// Why no token can be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MintError {
    /// The errors in the configuration.
    Configuration(Vec<String>),
    /// The key is not a shared secret, so it can verify but not sign.
    NoSecret,
    /// A token cannot have the claims where the configuration reads them: the paths lead into a
    /// list or overlap, or the configuration has literals instead.
    Unwritable,
}

impl fmt::Display for MintError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(problems) => f.write_str(&problems.join("; ")),
            Self::NoSecret => f.write_str(
                "only a `type` of HS256, HS384 or HS512 can sign; get a token from your identity provider",
            ),
            Self::Unwritable => {
                f.write_str("the configuration reads its claims in a way that no token made here can satisfy")
            }
        }
    }
}

impl std::error::Error for MintError {}

/// A configuration for a shared secret of at least 32 characters, as if `HASURA_GRAPHQL_JWT_SECRET`
/// held it.
pub fn hs256_configuration(secret: &SecretText) -> config::Jwt {
    config::Jwt::One(SecretText::new(json!({ "type": "HS256", "key": secret.expose() }).to_string()))
}

/// Signs a token that this configuration accepts: its claims are where the configuration reads
/// them, and it has the configured issuer and audience. Of several configurations, the first that
/// can sign is used.
///
/// # Errors
///
/// See [`MintError`].
pub fn mint(setting: &config::Jwt, claims: &MintClaims, now: Timestamp) -> Result<String, MintError> {
    let (configurations, json) = match setting {
        config::Jwt::One(json) => (configuration::parse_one(json.expose(), true).map(|one| vec![one]), json),
        config::Jwt::Many(json) => (configuration::parse_many(json.expose(), true), json),
    };
    let configurations = configurations.map_err(MintError::Configuration)?;
    let raw: Value = serde_json::from_str(json.expose()).map_err(|_| MintError::NoSecret)?;
    let raw = raw.as_array().map_or(std::slice::from_ref(&raw), Vec::as_slice);
    let signing = configurations.into_iter().zip(raw).find_map(|(configuration, raw)| {
        let algorithm = raw["type"].as_str()?;
        let (hash, _) = Algorithm::parse(algorithm)?.hmac()?;
        let key = hmac::Key::new(hash, raw["key"].as_str()?.as_bytes());
        Some((configuration, algorithm, key))
    });
    let (configuration, algorithm, key) = signing.ok_or(MintError::NoSecret)?;

    let mut set = json!({
        "iat": now.unix_seconds(),
        "exp": now.plus(claims.lasts).unix_seconds(),
    });
    let audience = configuration.audience.as_ref().and_then(|audience| audience.first());
    for (name, value) in [("sub", &claims.user), ("iss", &configuration.issuer), ("aud", &audience.cloned())]
    {
        if let Some(value) = value {
            set[name] = json!(value);
        }
    }
    put_claims(&configuration.claims, hasura_claims(claims), &mut set)?;

    let header = json!({ "alg": algorithm, "typ": "JWT" });
    let [header, set] = [header, set].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let message = format!("{header}.{set}");
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes())));
    // Paths may overlap with each other or with `exp`: only a token that verifies is returned.
    Verifier::new(configuration).verify(&token, now).map_err(|_| MintError::Unwritable)?;
    Ok(token)
}

fn hasura_claims(claims: &MintClaims) -> Map<String, Value> {
    let mut allowed = claims.allowed_roles.clone();
    if !allowed.contains(&claims.role) {
        allowed.insert(0, claims.role.clone());
    }
    let mut object = Map::new();
    for (name, value) in &claims.variables {
        object.insert(name.to_ascii_lowercase(), json!(value));
    }
    if let Some(user) = &claims.user {
        object.insert("x-hasura-user-id".to_owned(), json!(user));
    }
    object.insert("x-hasura-default-role".to_owned(), json!(claims.role));
    object.insert("x-hasura-allowed-roles".to_owned(), json!(allowed));
    object
}

/// Writes the claims where the configuration reads them.
fn put_claims(rule: &ClaimsRule, mut claims: Map<String, Value>, set: &mut Value) -> Result<(), MintError> {
    match rule {
        ClaimsRule::Namespace { at, format } => {
            let value = match format {
                Format::Json => Value::Object(claims),
                Format::StringifiedJson => Value::String(Value::Object(claims).to_string()),
            };
            match at {
                Namespace::Key(name) => set[name] = value,
                Namespace::Path(path) => path.put(set, value).ok_or(MintError::Unwritable)?,
            }
        }
        ClaimsRule::Map { allowed, default, variables } => {
            let mut put = |name: &str, path: Option<&Path>| match (claims.remove(name), path) {
                (Some(value), Some(path)) => path.put(set, value).ok_or(MintError::Unwritable),
                (Some(_), None) => Err(MintError::Unwritable),
                (None, _) => Ok(()),
            };
            put("x-hasura-allowed-roles", allowed.path())?;
            put("x-hasura-default-role", default.path())?;
            for (name, mapped) in variables {
                put(name, mapped.path())?;
            }
            if !claims.is_empty() {
                return Err(MintError::Unwritable);
            }
        }
    }
    Ok(())
}

impl<T> Mapped<T> {
    fn path(&self) -> Option<&Path> {
        match self {
            Self::Literal(_) => None,
            Self::At { path, .. } => Some(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::jwt::Jwt;
    use crate::auth::jwt::testkit::{bearer_of, now};

    const SECRET: &str = "a shared secret of at least sixty-four bytes, as HS512 wants it, and then some";

    fn wanted() -> MintClaims {
        MintClaims {
            role: "user".to_owned(),
            allowed_roles: vec!["editor".to_owned()],
            user: Some("7".to_owned()),
            variables: vec![("X-Hasura-Org".to_owned(), "9".to_owned())],
            lasts: Duration::from_secs(60),
        }
    }

    fn one(json: &str) -> config::Jwt {
        config::Jwt::One(SecretText::new(json.to_owned()))
    }

    #[test]
    fn a_minted_token_is_accepted_by_its_own_configuration() {
        let at = |path: &str| json!({ "path": path });
        for more in [
            json!({}),
            json!({"type": "HS384"}),
            json!({"type": "HS512"}),
            json!({"issuer": "us", "audience": ["a", "b"]}),
            json!({"claims_namespace": "ns"}),
            json!({"claims_format": "stringified_json"}),
            json!({"claims_namespace_path": "$"}),
            json!({"claims_namespace_path": "$.hasura.claims"}),
            json!({"claims_map": {
                "x-hasura-allowed-roles": at("$.roles.all"), "x-hasura-default-role": at("$.roles.one"),
                "x-hasura-user-id": at("$.sub"), "x-hasura-org": at("$.org"),
            }}),
        ] {
            let mut configuration = json!({"type": "HS256", "key": SECRET});
            configuration.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let configuration = configuration.to_string();
            let token = mint(&one(&configuration), &wanted(), now()).unwrap();
            let jwt = Jwt::of_one(&configuration, true).unwrap();
            let claims = jwt.claims(&bearer_of(&token), now()).unwrap().unwrap();
            assert_eq!(&*claims.default, "user", "{more}");
            assert_eq!(claims.allowed, ["user".into(), "editor".into()], "{more}");
            assert!(claims.variables.contains(&("x-hasura-org".to_owned(), "9".to_owned())), "{more}");
        }
    }

    #[test]
    fn the_configuration_for_development_is_one() {
        let configuration = hs256_configuration(&SecretText::new(SECRET.to_owned()));
        assert!(mint(&configuration, &wanted(), now()).is_ok());
    }

    #[test]
    fn of_several_configurations_the_first_that_can_sign_does() {
        let several = json!([{"jwk_url": "https://a.b"}, {"type": "HS256", "key": SECRET}]).to_string();
        assert!(mint(&config::Jwt::Many(SecretText::new(several)), &wanted(), now()).is_ok());
    }

    #[test]
    fn the_error_says_why_no_token_can_be_made() {
        let mint = |configuration: Value| mint(&one(&configuration.to_string()), &wanted(), now());
        assert_eq!(mint(json!({"jwk_url": "https://a.b"})), Err(MintError::NoSecret));
        assert!(matches!(mint(json!({})), Err(MintError::Configuration(_))));
        assert_eq!(
            mint(json!({"type": "HS256", "key": SECRET, "claims_map": {
                "x-hasura-allowed-roles": ["user"], "x-hasura-default-role": "user",
            }})),
            Err(MintError::Unwritable)
        );
        assert_eq!(
            mint(json!({"type": "HS256", "key": SECRET, "claims_namespace": "exp"})),
            Err(MintError::Unwritable)
        );
    }
}
