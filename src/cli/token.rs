//! `byok token`: mints a JWT for development, signed with the HMAC secret that the server verifies
//! with.

use std::time::Duration;

use clap::Args;

use super::Failure;
use crate::auth::{MintClaims, mint};
use crate::config::{Auth, ConfigError, Env, Reader};
use crate::model::{Clock as _, SystemClock};

/// The content of the token.
#[derive(Args)]
pub(super) struct Arguments {
    /// The default role; allowed as well
    #[arg(long, default_value = "user")]
    role: String,
    /// Another role that may be chosen with X-Hasura-Role
    #[arg(long = "allow", value_name = "ROLE")]
    allowed: Vec<String>,
    /// x-hasura-user-id
    #[arg(long)]
    user: Option<String>,
    /// Another session variable, such as x-hasura-org-id=7
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = pair)]
    claims: Vec<(String, String)>,
    /// The time that it is valid, in seconds
    #[arg(long, default_value_t = 3_600, value_name = "SECONDS")]
    ttl: u64,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("takes NAME=VALUE")?;
    let name = name.to_ascii_lowercase();
    if name.starts_with("x-hasura-") {
        Ok((name, value.to_owned()))
    } else {
        Err("the name of a session variable begins with x-hasura-".to_owned())
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let env = Env::of_process();
    let mut reader = Reader::new(&env);
    let jwt = Auth::read(&mut reader).jwt;
    let Some(jwt) = jwt else {
        let mut errors = reader.into_errors();
        errors.retain(|error| error.variable.starts_with("HASURA_GRAPHQL_JWT_SECRET"));
        if errors.is_empty() {
            let problem =
                "is not set; it takes what Hasura takes, such as {\"type\":\"HS256\",\"key\":\"…\"}"
                    .to_owned();
            errors.push(ConfigError { variable: "HASURA_GRAPHQL_JWT_SECRET".to_owned(), problem });
        }
        return Err(Failure::Configuration(errors));
    };
    let mut allowed_roles = vec![arguments.role.clone()];
    allowed_roles.extend(arguments.allowed.iter().cloned());
    let claims = MintClaims {
        role: arguments.role.clone(),
        allowed_roles,
        user: arguments.user.clone(),
        variables: arguments.claims.clone(),
        lasts: Duration::from_secs(arguments.ttl),
    };
    let token = mint(&jwt, &claims, SystemClock.now()).map_err(|error| {
        Failure::Configuration(vec![ConfigError {
            variable: jwt.variable().to_owned(),
            problem: error.to_string(),
        }])
    })?;
    println!("{token}");
    Ok(())
}
