//! The properties of the parser of Hasura's JWT configuration, for any text. The including file
//! brings `auth` into scope.
//!
//! A text that begins with `[` is read as a list of configurations.

use std::time::Duration;

use super::auth::{MintClaims, MintError, mint};
use super::config::Jwt;
use super::crypto::SecretText;
use super::model::Timestamp;

/// Panics if a property does not hold.
pub(super) fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let secret = SecretText::new(text.clone().into_owned());
    let setting = if text.starts_with('[') { Jwt::Many(secret) } else { Jwt::One(secret) };
    let claims = MintClaims {
        role: "user".to_owned(),
        allowed_roles: vec!["editor".to_owned()],
        user: Some("7".to_owned()),
        variables: Vec::new(),
        lasts: Duration::from_secs(60),
    };
    // `mint` verifies the token that it has signed, so this covers both directions.
    match mint(&setting, &claims, Timestamp(1_795_428_000_000_000)) {
        Ok(token) => assert_eq!(token.matches('.').count(), 2),
        Err(MintError::Configuration(problems)) => {
            assert!(!problems.is_empty(), "a refused configuration says why");
            // The corpus marks what must not be shown.
            assert!(problems.iter().all(|problem| !problem.contains("s3cret")), "no value is shown");
        }
        Err(MintError::NoSecret | MintError::Unwritable) => {}
    }
}
