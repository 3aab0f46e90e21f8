//! Admin tokens: opaque, named and expiring, stored as hashes. For operators and scripts of the
//! single-tenant form.
//!
//! A token is random and long, so a plain SHA-256 suffices: a slow hash would only protect what can
//! be guessed.
//!
//! ```yaml
//! # BYOK_ADMIN_TOKENS_FILE (YAML; JSON is a part of it)
//! - name: deploy-script
//!   # printf %s "$TOKEN" | sha256sum
//!   sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//!   role: service
//!   expires: 2027-03-31T00:00:00Z
//! ```

use std::sync::Arc;

use serde::Deserialize;

use crate::config::{self, ConfigError};
use crate::crypto::{ct_eq, sha256};
use crate::model::{ErrorCode, Identity, Means, Refusal, Session, Timestamp};

/// The configured tokens.
#[derive(Default)]
pub(super) struct AdminTokens(Vec<AdminToken>);

struct AdminToken {
    name: String,
    sha256: [u8; 32],
    role: Arc<str>,
    /// `None` for the token of `BYOK_ADMIN_TOKEN`, which is valid while the variable is set.
    expires: Option<Timestamp>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    sha256: String,
    role: String,
    expires: String,
}

impl AdminTokens {
    /// Reads `BYOK_ADMIN_TOKEN` and `BYOK_ADMIN_TOKENS_FILE`. Adds errors to `errors`.
    pub(super) fn read(settings: &config::Auth, errors: &mut Vec<ConfigError>) -> Self {
        let mut tokens = Vec::new();
        if let Some(token) = &settings.admin_token {
            if super::jwt::has_jwt_shape(token.expose()) {
                let problem = "has two dots, which makes it look like a JWT; take another".to_owned();
                errors.push(ConfigError { variable: "BYOK_ADMIN_TOKEN".to_owned(), problem });
            }
            tokens.push(AdminToken {
                name: "admin".to_owned(),
                sha256: sha256(token.expose().as_bytes()),
                role: "admin".into(),
                expires: None,
            });
        }
        if let Some(file) = &settings.admin_tokens {
            let mut problem = |text: String| {
                let problem = format!("names the file {}: {text}", file.path.display());
                errors.push(ConfigError { variable: file.variable.to_owned(), problem });
            };
            // The parser's message could quote the file, so only the position is passed on.
            match serde_saphyr::from_str::<Vec<Line>>(&file.text) {
                Ok(lines) => {
                    for line in lines {
                        match AdminToken::read(&line) {
                            Ok(token) if tokens.iter().any(|known: &AdminToken| known.name == token.name) => {
                                problem(format!("the name {} is used twice", line.name));
                            }
                            Ok(token) => tokens.push(token),
                            Err(text) => problem(format!("{}: {text}", line.name)),
                        }
                    }
                }
                Err(error) => problem(format!(
                    "it is not a list of tokens, each with `name`, `sha256`, `role` and `expires`{}",
                    super::position_of(&error)
                )),
            }
        }
        Self(tokens)
    }

    /// Whether no token is configured.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The identity of a token.
    pub(super) fn identify(&self, token: &str, now: Timestamp) -> Result<Identity, Refusal> {
        let hash = sha256(token.as_bytes());
        let known = self.0.iter().find(|known| ct_eq(&known.sha256, &hash)).ok_or_else(|| {
            Refusal::because(
                ErrorCode::InvalidHeaders,
                "The bearer token is neither a JWT nor a known admin token",
            )
        })?;
        if known.expires.is_some_and(|expires| now >= expires) {
            return Err(Refusal::because(ErrorCode::InvalidHeaders, "The admin token has expired"));
        }
        Ok(Identity {
            role: Arc::clone(&known.role),
            user: Some(known.name.clone()),
            session: Session::default(),
            means: Means::AdminToken,
        })
    }
}

impl AdminToken {
    fn read(line: &Line) -> Result<Self, &'static str> {
        if line.name.is_empty() || line.role.is_empty() {
            return Err("`name` and `role` cannot be empty");
        }
        Ok(Self {
            name: line.name.clone(),
            sha256: from_hex(&line.sha256).ok_or("`sha256` is not 64 hexadecimal digits")?,
            role: line.role.as_str().into(),
            expires: Some(
                Timestamp::parse(&line.expires).ok_or("`expires` is not like 2027-03-31T00:00:00Z")?,
            ),
        })
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> =
        text.chars().map(|digit| u8::try_from(digit.to_digit(16)?).ok()).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    (digits.len() == 64).then(|| bytes.try_into().ok())?
}
