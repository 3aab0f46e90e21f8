//! `byok audit hold|erase|prune`: controls what the log keeps and what it drops. These commands
//! work as the owner of the tables.

use std::sync::Arc;

use clap::{ArgGroup, Args, ValueEnum};

use crate::admin::{AdminError, Erased, LogAdmin};
use crate::audit::Committer;
use crate::cli::of_tenant::OfTenant;
use crate::cli::{Failure, assemble};
use crate::config::{AuditRetention, Env, Reader};
use crate::model::{Clock, SystemClock};
use crate::store::{Database, PersonalValue};

/// The person who runs the command.
#[derive(Args)]
struct By {
    /// The person who does this; recorded as the user of the entry
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// Legal hold.
#[derive(Args)]
pub(super) struct Hold {
    /// Turn the hold on or off; without it, print whether it is on
    switch: Option<Switch>,
    #[command(flatten)]
    of: OfTenant,
    #[command(flatten)]
    by: By,
}

#[derive(Clone, Copy, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// The personal value to erase, and its tenant.
#[derive(Args)]
#[group(skip)]
#[command(group = ArgGroup::new("personal value").required(true).args(["user", "record"]))]
pub(super) struct Erase {
    #[command(flatten)]
    of: OfTenant,
    /// The user whose id is erased from all of their entries, together with the request ids
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// The record whose id is erased from all of its items, and from the rows of its DEKs
    #[arg(long, value_name = "RECORD")]
    record: Option<String>,
    #[command(flatten)]
    by: By,
}

/// How to drop old entries. There is no tenant: a partition of the table holds the entries of all
/// tenants, and is dropped as a whole.
#[derive(Args)]
pub(super) struct Prune {
    /// Print what would be dropped, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    by: By,
}

pub(super) async fn hold(arguments: Hold) -> Result<(), Failure> {
    let (database, tenant) = assemble::as_owner(&Env::of_process(), &arguments.of.tenant).await?;
    let admin = admin(&database, arguments.by);
    match arguments.switch {
        None => {
            let on = database.on_hold(tenant.uid).await.map_err(|error| failed(error.into()))?;
            println!("{} is {}on legal hold", tenant.name, if on { "" } else { "not " });
        }
        Some(switch) => {
            let on = matches!(switch, Switch::On);
            let changed = admin.hold(tenant.uid, on).await.map_err(failed)?;
            let already = if changed { "" } else { ", as it was" };
            println!("{} is {}on legal hold{already}", tenant.name, if on { "" } else { "not " });
        }
    }
    Ok(())
}

pub(super) async fn erase(arguments: Erase) -> Result<(), Failure> {
    let (database, tenant) = assemble::as_owner(&Env::of_process(), &arguments.of.tenant).await?;
    let admin = admin(&database, arguments.by);
    let personal = match (arguments.user, arguments.record) {
        (Some(user), _) => PersonalValue::User(user),
        (None, Some(record)) => PersonalValue::Record(record),
        (None, None) => return Err(Failure::Running("say --user or --record".to_owned())),
    };
    let Erased { entries, deks } = admin.erase(tenant.uid, &personal).await.map_err(failed)?;
    let rows = match personal {
        PersonalValue::User(_) => String::new(),
        PersonalValue::Record(_) => format!(" and {deks} rows of DEKs"),
    };
    println!("erased from {entries} entries{rows}; the log verifies as before");
    Ok(())
}

pub(super) async fn prune(arguments: Prune) -> Result<(), Failure> {
    let env = Env::of_process();
    let mut reader = Reader::new(&env);
    let retention = AuditRetention::read(&mut reader);
    let errors = reader.into_errors();
    if !errors.is_empty() {
        return Err(Failure::Configuration(errors));
    }
    let admin = admin(&assemble::database_as_owner(&env).await?, arguments.by);
    let Some(age) = retention.age else {
        println!("BYOK_AUDIT_RETENTION_DAYS=0: entries are kept for ever");
        return Ok(());
    };
    let retention = admin.older_than(age, retention.exported_only).await.map_err(failed)?;
    if arguments.dry_run {
        for part in admin.prunable(retention).await.map_err(failed)? {
            for (tenant, ranges) in &part.entries {
                let entries: u64 = ranges.iter().map(|range| range.end - range.start).sum();
                println!("{}: {entries} entries of {} would be dropped", part.part, tenant.name);
            }
        }
        println!("nothing was changed");
        return Ok(());
    }
    let dropped = admin.prune(retention).await.map_err(failed)?;
    println!("{dropped} entries dropped; their hashes are kept");
    Ok(())
}

fn admin(database: &Arc<dyn Database>, by: By) -> LogAdmin {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let committer = Arc::new(Committer::start(database.clone(), clock.clone()));
    LogAdmin::new(database.clone(), committer, clock, by.by)
}

pub(super) fn failed(failed: AdminError) -> Failure {
    let problem = match failed {
        AdminError::OnHold => {
            "the tenant is on legal hold: nothing of its log is dropped or erased (`byok audit hold off` lifts it)"
        }
        AdminError::Wrong => {
            "the hashes that would be kept do not match the entries, so nothing was dropped; see `byok audit verify`"
        }
        AdminError::Changing => "the log kept changing; try again",
        AdminError::Unavailable => {
            "the database is out of reach; run the command again, it continues where it stopped"
        }
        AdminError::Refused => {
            "the database refuses it: only the tables' owner may do this; set BYOK_MIGRATION_DATABASE_URL"
        }
        AdminError::Malformed => {
            "a row is damaged, or not of a form that the server writes; see `byok audit verify`"
        }
    };
    Failure::Running(problem.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_erasure_without_a_value_names_both_options() {
        let command = Erase::augment_args(clap::Command::new("erase"));
        let error = command.try_get_matches_from(["erase"]).unwrap_err().to_string();
        assert!(error.contains("--user") && error.contains("--record"), "{error}");
    }
}
