//! `byok audit key|restored`: the keys that sign checkpoints, and the recovery after a restore.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use crate::audit::{CheckpointKey, origin_of};
use crate::cli::of_tenant::OfTenant;
use crate::cli::{Failure, assemble};
use crate::config::{self, Audit, ConfigError, Env, Reader, SigningKeys};
use crate::crypto::Ed25519SigningKey;
use crate::jobs::RestoreFailed;

/// The keys to print, or the key to make.
#[derive(Args)]
pub(super) struct Key {
    #[command(flatten)]
    of: OfTenant,
    /// The number of one log of the tenant: each restore opens another one. Default: all that the
    /// database has, or 1 if no database is configured
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    log: Option<u32>,
    /// Make a key, write it to this new file, and print its public key
    #[arg(long, value_name = "FILE")]
    generate: Option<PathBuf>,
}

/// The tenant whose log was restored, and the operator.
#[derive(Args)]
pub(super) struct Restored {
    #[command(flatten)]
    of: OfTenant,
    /// Who does this; recorded as the user of the entries
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Open another log even if nothing is known to be lost, or a destination of checkpoints cannot
    /// be read
    #[arg(long)]
    anyway: bool,
}

/// Prints one key a line: log by log in the order of their numbers, and the current key of each log
/// first.
pub(super) async fn key(arguments: &Key) -> Result<(), Failure> {
    let env = Env::of_process();
    let mut reader = Reader::new(&env);
    let audit = Audit::read(&mut reader);
    let mut errors = reader.into_errors();
    errors.retain(|error| !error.variable.starts_with("BYOK_AUDIT_CHECKPOINT"));
    if arguments.generate.is_some() {
        // The file that the variable names is usually the one to be made.
        errors.retain(|error| !error.variable.contains("SIGNING_KEY"));
    }
    if !errors.is_empty() {
        return Err(Failure::Configuration(errors));
    }
    let keys = match &arguments.generate {
        Some(path) => vec![generated(path)?],
        None => audit.keys.as_ref().map(SigningKeys::parsed).unwrap_or_default(),
    };
    if keys.is_empty() {
        let problem = "is not set; `byok audit key --generate FILE` makes one".to_owned();
        let variable = "BYOK_AUDIT_SIGNING_KEY".to_owned();
        return Err(Failure::Configuration(vec![ConfigError { variable, problem }]));
    }
    let logs = match (arguments.log, &arguments.generate) {
        (Some(log), _) => vec![log],
        (None, Some(_)) => vec![1],
        (None, None) => logs(&env, &arguments.of.tenant).await,
    };
    for log in logs {
        let name = origin_of(&audit.origin, &arguments.of.tenant, log);
        for key in &keys {
            println!("{}", CheckpointKey { name: name.clone(), key: key.verifying_key() });
        }
    }
    Ok(())
}

/// Returns the numbers of the tenant's logs. Keys may be needed before there is a database, or
/// while it cannot be reached. In the latter case a message says that only the key of the first log
/// is printed.
async fn logs(env: &Env, tenant: &str) -> Vec<u32> {
    let mut reader = Reader::new(env);
    if config::Store::read(&mut reader, None).is_none() {
        return vec![1];
    }
    match logs_of(env, tenant).await {
        Ok(logs) => logs,
        Err(failure) => {
            let why = match failure {
                Failure::Running(why) | Failure::Refused(why) => why,
                Failure::Schema(why) => why.to_string(),
                Failure::Configuration(_) | Failure::FaultFound => "its configuration has errors".to_owned(),
            };
            eprintln!(
                "only the key of log 1 is printed, because the logs cannot be read from the database: {why}"
            );
            vec![1]
        }
    }
}

async fn logs_of(env: &Env, tenant: &str) -> Result<Vec<u32>, Failure> {
    let database = assemble::database(env).await?;
    let Some(tenant) = database.tenant(tenant).await.map_err(assemble::read_failure)? else {
        return Ok(vec![1]);
    };
    let current = database.log_head(tenant.uid).await.map_err(assemble::read_failure)?;
    let ended = database.ended_logs(tenant.uid).await.map_err(assemble::read_failure)?;
    let logs: BTreeSet<u32> = ended.iter().chain(&current).map(|head| head.log).collect();
    Ok(if logs.is_empty() { vec![1] } else { logs.into_iter().collect() })
}

fn generated(path: &Path) -> Result<Ed25519SigningKey, Failure> {
    let pem = Ed25519SigningKey::generate_pem();
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| {
        file.write_all(pem.expose().as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| Failure::Running(format!("{} cannot be written: {error}", path.display())))?;
    Ed25519SigningKey::from_pem(&pem).map_err(|error| Failure::Running(error.to_string()))
}

pub(super) async fn restored(arguments: Restored) -> Result<(), Failure> {
    let env = Env::of_process();
    let mut reader = Reader::new(&env);
    let audit = Audit::read(&mut reader);
    let errors = reader.into_errors();
    if !errors.is_empty() {
        return Err(Failure::Configuration(errors));
    }
    let (database, tenant) = assemble::as_owner(&env, &arguments.of.tenant).await?;
    let checkpoints = assemble::checkpoints(audit, database, None)?.of(&Arc::new(tenant));
    let done = checkpoints.restored(arguments.by.as_deref(), arguments.anyway).await.map_err(failed)?;
    println!("ended   {}", done.ended);
    for lost in &done.lost {
        println!("lost    {lost}");
    }
    println!("opened  {}", done.opened);
    Ok(())
}

fn failed(failed: RestoreFailed) -> Failure {
    Failure::Running(match failed {
        RestoreFailed::NothingLost => {
            "the log contains all that was published; nothing was changed (`--anyway` opens another log nevertheless)"
                .to_owned()
        }
        RestoreFailed::Unread(kind) => {
            format!("the {kind} that checkpoints are published to cannot be read; nothing was changed (`--anyway` continues without it)")
        }
        RestoreFailed::Moving => "the log kept growing; try again".to_owned(),
        RestoreFailed::Unavailable => {
            "the database is out of reach; run the command again: it repeats nothing that was done".to_owned()
        }
        RestoreFailed::Refused => {
            "the database refuses it: only the tables' owner may do this; set BYOK_MIGRATION_DATABASE_URL".to_owned()
        }
        RestoreFailed::Malformed => {
            "the log's head, or a row of the log, is damaged: run `byok audit verify`".to_owned()
        }
    })
}
