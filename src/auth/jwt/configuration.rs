//! Hasura's JWT configuration: the JSON of `HASURA_GRAPHQL_JWT_SECRET`.
//!
//! Unknown fields are ignored, as by Hasura; a malformed known field is an error. All errors are
//! reported at once, and none shows a value, since the document holds a secret.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde_json::{Map, Value};

use super::claims::{ClaimsRule, Format, Mapped, Namespace};
use super::keys::{Algorithm, Key, KeySet};
use super::path::Path;
use super::pem;

/// One configuration.
pub(super) struct Configuration {
    pub(super) key: KeySource,
    pub(super) claims: ClaimsRule,
    /// The audiences, of which the token's `aud` must contain one.
    pub(super) audience: Option<Vec<String>>,
    pub(super) issuer: Option<String>,
    /// The tolerance for the token's times.
    pub(super) skew: Duration,
    pub(super) location: Location,
    /// Whether a token must have an `exp`.
    pub(super) require_exp: bool,
}

/// The source of the keys.
pub(super) enum KeySource {
    Fixed(Arc<KeySet>),
    /// Fetched from this URL, and kept up to date.
    Url(reqwest::Url),
}

/// Where in a request the token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Location {
    /// `Authorization: Bearer <token>`.
    Authorization,
    /// The cookie of this name.
    Cookie(String),
    /// The header of this name, whose whole value is the token.
    Header(HeaderName),
}

/// Reads the one object of `HASURA_GRAPHQL_JWT_SECRET`.
pub(super) fn parse_one(json: &str, require_exp: bool) -> Result<Configuration, Vec<String>> {
    let mut problems = Vec::new();
    let value = document(json).map_err(|problem| vec![problem])?;
    let configuration =
        Fields::of(&value, "", &mut problems).and_then(|fields| fields.configuration(require_exp));
    finish(configuration, problems)
}

/// Reads the list of `HASURA_GRAPHQL_JWT_SECRETS`.
pub(super) fn parse_many(json: &str, require_exp: bool) -> Result<Vec<Configuration>, Vec<String>> {
    let value = document(json).map_err(|problem| vec![problem])?;
    let Some(list) = value.as_array().filter(|list| !list.is_empty()) else {
        return Err(vec!["is not a list of at least one JWT configuration".to_owned()]);
    };
    let mut problems = Vec::new();
    let configurations: Option<Vec<_>> = list
        .iter()
        .enumerate()
        .map(|(index, value)| {
            let fields = Fields::of(value, &format!("[{index}]: "), &mut problems)?;
            fields.configuration(require_exp)
        })
        // Collected before the conversion to an option, so that the errors of all are reported.
        .collect::<Vec<_>>()
        .into_iter()
        .collect();
    finish(configurations, problems)
}

fn finish<T>(read: Option<T>, problems: Vec<String>) -> Result<T, Vec<String>> {
    read.filter(|_| problems.is_empty()).ok_or(problems)
}

fn document(json: &str) -> Result<Value, String> {
    // serde_json's own message may quote the document.
    serde_json::from_str(json)
        .map_err(|error| format!("is not valid JSON, at line {}, column {}", error.line(), error.column()))
}

/// The fields of one object, and the errors found in them.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    prefix: String,
    problems: &'a mut Vec<String>,
}

impl<'a> Fields<'a> {
    fn of(value: &'a Value, prefix: &str, problems: &'a mut Vec<String>) -> Option<Self> {
        match value.as_object() {
            Some(object) => Some(Self { object, prefix: prefix.to_owned(), problems }),
            None => {
                problems.push(format!("{prefix}is not a JSON object"));
                None
            }
        }
    }

    fn problem<T>(&mut self, problem: impl AsRef<str>) -> Option<T> {
        self.problems.push(format!("{}{}", self.prefix, problem.as_ref()));
        None
    }

    /// A field that is present and not null.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &str) -> Option<&'a str> {
        let value = self.get(name)?;
        value.as_str().or_else(|| self.problem(format!("`{name}` is not a text")))
    }

    fn configuration(mut self, require_exp: bool) -> Option<Configuration> {
        let key = self.key();
        let claims = self.claims();
        let audience = self.audience();
        let issuer = self.text("issuer").map(str::to_owned);
        let skew = self.skew();
        let location = self.location();
        // A `None` here has already added its problem.
        Some(Configuration {
            key: key?,
            claims: claims?,
            audience,
            issuer,
            skew,
            location: location?,
            require_exp,
        })
    }

    fn key(&mut self) -> Option<KeySource> {
        match (self.get("key").is_some(), self.get("jwk_url").is_some()) {
            (false, false) => self.problem("key and jwk_url both cannot be empty"),
            (true, true) => self.problem("key, jwk_url both cannot be present"),
            (true, false) => self.fixed_key(),
            (false, true) => {
                let url = reqwest::Url::parse(self.text("jwk_url")?).ok();
                match url.filter(|url| matches!(url.scheme(), "https" | "http")) {
                    Some(url) => Some(KeySource::Url(url)),
                    None => self.problem("`jwk_url` is not an address that begins with https:// or http://"),
                }
            }
        }
    }

    fn fixed_key(&mut self) -> Option<KeySource> {
        const TYPES: &str = "HS256, HS384, HS512, RS256, RS384, RS512, ES256, ES384, Ed25519";
        let secret = self.text("key")?;
        let Some(name) = self.text("type") else {
            return self.problem(format!("`key` needs a `type`: one of {TYPES}"));
        };
        let algorithm = match (name, Algorithm::parse(name)) {
            ("ES512", _) => {
                return self.problem(
                    "`type` ES512 is not supported: the cryptographic library (ring) does not have it",
                );
            }
            ("EdDSA" | "PS256" | "PS384" | "PS512", _) | (_, None) => {
                return self.problem(format!("`type` is not one of {TYPES}"));
            }
            (_, Some(algorithm)) => algorithm,
        };
        if let Some((hash, least)) = algorithm.hmac() {
            if secret.len() < least {
                return self
                    .problem(format!("`key`: Key size too small; should be atleast {least} characters"));
            }
            let key = Key::hmac(algorithm, hash, secret.as_bytes());
            return Some(KeySource::Fixed(Arc::new(KeySet::of(key))));
        }
        let key = match pem::parse(secret) {
            Ok(public) => Key::public(None, Some(algorithm), public),
            Err(error) => return self.problem(format!("`key` {}", error.as_str())),
        };
        match key {
            Ok(key) if key.fits(algorithm) => Some(KeySource::Fixed(Arc::new(KeySet::of(key)))),
            Ok(_) => self.problem(format!("`key` is not a key for the `type` {name}")),
            Err(_) => self.problem("`key` is an RSA key of less than 2048 or more than 8192 bits"),
        }
    }

    fn claims(&mut self) -> Option<ClaimsRule> {
        let namespace = match (self.text("claims_namespace"), self.text("claims_namespace_path")) {
            (Some(_), Some(_)) => {
                self.problem("claims_namespace and claims_namespace_path both cannot be set")
            }
            (Some(name), None) => Some(Namespace::Key(name.to_owned())),
            (None, Some(path)) => match Path::parse(path) {
                Some(path) => Some(Namespace::Path(path)),
                None => self.problem("`claims_namespace_path` is not a JSON path such as `$.hasura.claims`"),
            },
            (None, None) => Some(Namespace::Key("https://hasura.io/jwt/claims".to_owned())),
        };
        let format = match self.text("claims_format") {
            None | Some("json") => Format::Json,
            Some("stringified_json") => Format::StringifiedJson,
            Some(_) => return self.problem("`claims_format` is neither `json` nor `stringified_json`"),
        };
        match self.get("claims_map") {
            None => Some(ClaimsRule::Namespace { at: namespace?, format }),
            Some(map) => {
                Fields::of(map, &format!("{}`claims_map` ", self.prefix), self.problems)?.claims_map()
            }
        }
    }

    fn claims_map(mut self) -> Option<ClaimsRule> {
        let allowed = self.mapped("x-hasura-allowed-roles", "a list of roles", roles);
        let default = self.mapped("x-hasura-default-role", "a role", text);
        let mut variables = Vec::new();
        for name in self.object.keys() {
            let lower = name.to_ascii_lowercase();
            if lower != "x-hasura-allowed-roles" && lower != "x-hasura-default-role" {
                variables.push(self.mapped(name, "a text", text).map(|mapped| (lower, mapped)));
            }
        }
        let variables = variables.into_iter().collect::<Option<_>>()?;
        Some(ClaimsRule::Map { allowed: allowed?, default: default?, variables })
    }

    /// A literal, or `{"path": …, "default": …}`.
    fn mapped<T>(&mut self, name: &str, what: &str, read: fn(&Value) -> Option<T>) -> Option<Mapped<T>> {
        let Some(value) = self.object.get(name) else {
            return self.problem(format!("{name} is expected but not found"));
        };
        let Some(object) = value.as_object() else {
            return match read(value) {
                Some(literal) => Some(Mapped::Literal(literal)),
                None => self.problem(format!("{name} is neither {what} nor an object with a `path`")),
            };
        };
        let Some(path) = object.get("path").and_then(Value::as_str).and_then(Path::parse) else {
            return self.problem(format!("{name} has no `path` such as `$.user.id`"));
        };
        let default = match object.get("default").filter(|value| !value.is_null()) {
            None => None,
            Some(value) => match read(value) {
                Some(default) => Some(default),
                None => return self.problem(format!("{name} has a `default` that is not {what}")),
            },
        };
        Some(Mapped::At { path, default })
    }

    fn audience(&mut self) -> Option<Vec<String>> {
        let value = self.get("audience")?;
        let one = || Some(vec![value.as_str()?.to_owned()]);
        let audiences = one().or_else(|| roles(value)).filter(|audiences| !audiences.is_empty());
        audiences.or_else(|| self.problem("`audience` is neither a text nor a list of texts"))
    }

    fn skew(&mut self) -> Duration {
        let Some(value) = self.get("allowed_skew") else { return Duration::ZERO };
        let skew = value.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        skew.or_else(|| self.problem("`allowed_skew` is not a number of seconds")).unwrap_or_default()
    }

    fn location(&mut self) -> Option<Location> {
        let Some(value) = self.get("header") else { return Some(Location::Authorization) };
        let mut header = Fields::of(value, &format!("{}`header` ", self.prefix), self.problems)?;
        match header.text("type").map(str::to_ascii_lowercase).as_deref() {
            Some("authorization") => Some(Location::Authorization),
            Some("cookie") => match header.text("name").filter(|name| !name.is_empty()) {
                Some(name) => Some(Location::Cookie(name.to_owned())),
                None => header.problem("of type Cookie has no `name`"),
            },
            Some("customheader") => match header.text("name").map(str::parse::<HeaderName>) {
                Some(Ok(name)) => Some(Location::Header(name)),
                _ => header.problem("of type CustomHeader has no `name` that a header can have"),
            },
            _ => header.problem("has no `type` of Authorization, Cookie or CustomHeader"),
        }
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn roles(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(text).collect()
}
