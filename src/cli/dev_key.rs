//! `byok dev-key`: changes the key of `byok dev`, as the customer could. A running server notices
//! the change at its next probe.

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::Failure;
use super::dev::LOCAL_KEY;
use crate::config::{ConfigError, Env, KeyGuard, Reader};
use crate::kms::LocalKey;

const VARIABLE: &str = "BYOK_LOCAL_KEY_FILE";

/// The change of the key.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Copy, Subcommand)]
enum Action {
    /// Turn the key off: nothing can be decrypted any more
    Disable,
    /// Turn the key on again
    Enable,
    /// Make a new version of the key; the older ones still decrypt
    Rotate,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let env = Env::of_process();
    let mut reader = Reader::new(&env);
    let guard = KeyGuard::read(&mut reader);
    let errors = reader.into_errors();
    if !errors.is_empty() {
        return Err(Failure::Configuration(errors));
    }
    let path = env.get(VARIABLE).unwrap_or(LOCAL_KEY);
    if !Path::new(path).exists() {
        let problem =
            format!("there is no key at {path}; `byok dev` makes one in the folder that it is started in");
        return Err(Failure::Configuration(vec![ConfigError { variable: VARIABLE.to_owned(), problem }]));
    }
    let key = LocalKey::open(path).map_err(|error| Failure::Configuration(vec![error]))?;
    let failed = |error: std::io::Error| Failure::Running(format!("{path}: {error}"));
    match arguments.action {
        Action::Disable => {
            key.disable().map_err(failed)?;
            println!("The key in {path} is turned off.");
            println!(
                "Within {} s a running server refuses every use of it, even with DEKs that are in memory: 403 KMS_ACCESS_DENIED.",
                seconds(guard.bound())
            );
        }
        Action::Enable => {
            key.enable().map_err(failed)?;
            println!("The key in {path} is turned on.");
            println!(
                "A running server probes it at the next call, or within 30 s without one, and uses it again once it has \
                 worked for {} s (longer if it was turned off several times).",
                seconds(guard.resume_after)
            );
        }
        Action::Rotate => {
            let version = key.rotate().map_err(failed)?;
            println!("The key in {path} has a new version, {version}: new records are protected by it.");
            println!("The older versions still decrypt. POST /byok/rotate re-wraps what they protect.");
        }
    }
    Ok(())
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
