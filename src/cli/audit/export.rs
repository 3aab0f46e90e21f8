//! `byok audit export`: writes a part of the log as a bundle (`docs/audit-log.md`). Who exports it
//! is recorded first.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::report::bar;
use super::trust::{checkpoint, ended, keys};
use crate::audit::{Committer, Unit, pack};
use crate::cli::of_tenant::OfTenant;
use crate::cli::{Failure, assemble};
use crate::config::Env;
use crate::model::{Clock, Entry, Operation, SystemClock, Tenant, Timestamp};
use crate::store::{Change, EntryRow};
use crate::verify::{Export, ExportError, Wanted};

/// The part of the log to export, and the file to export it to.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    of: OfTenant,
    /// Export entries from this time on: RFC 3339, or a day in UTC. Default: from the first entry
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<Timestamp>,
    /// Export entries before this time. Default: to the last entry that a checkpoint covers
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: Option<Timestamp>,
    /// The new file that the bundle is written to. Default: standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The number of a log, if a restored database continued in another. Default: the current one
    #[arg(long, value_name = "N")]
    log: Option<u32>,
    /// A checkpoint that the auditor has: the bundle then proves that the log extends it
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// A public key to put into the bundle: `NAME+ID+KEY`, or a file with such keys; may be
    /// repeated
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// Who exports; recorded as the user of the entry
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

fn moment(text: &str) -> Result<Timestamp, String> {
    let day = || Timestamp::parse(&format!("{text}T00:00:00Z"));
    Timestamp::parse(text)
        .or_else(day)
        .ok_or_else(|| "not a time, such as 2026-11-23T10:00:00Z or 2026-11-23".to_owned())
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let (keys, pinned) = (keys(&arguments.keys)?, checkpoint(arguments.checkpoint.as_deref())?);
    let (database, tenant) = assemble::as_owner(&Env::of_process(), &arguments.of.tenant).await?;
    let ended = ended(&*database, &tenant, arguments.log).await?;
    let places = match (arguments.from, arguments.to) {
        (None, None) => 0..u64::MAX,
        (from, until) => {
            let none = || Failure::Running("there is no entry of that time".to_owned());
            let places = database.places(tenant.uid, from, until).await;
            places.map_err(assemble::read_failure)?.ok_or_else(none)?
        }
    };
    let export = Export::prepare(&*database, &tenant, Wanted { ended, places, keys, pinned })
        .await
        .map_err(failure)?;
    let mut out: Box<dyn Write + Send> = match &arguments.out {
        None => Box::new(std::io::stdout()),
        Some(path) => {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            Box::new(file.map_err(|error| Failure::Running(format!("{}: {error}", path.display())))?)
        }
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let committer = Committer::start(database.clone(), clock.clone());
    let entry = entry(&*clock, arguments.by, &export.places());
    let recorded = committer.commit(unit(&tenant, Some(pack(tenant.uid, &entry)), Vec::new())).await;
    recorded.map_err(|_| {
        Failure::Running("nothing was exported: it could not be recorded in the log".to_owned())
    })?;
    let bar = bar("{bar:40} {pos}/{len} entries  {per_sec}  {eta} left");
    let uncovered = export.uncovered();
    let mut progress = |done, of| {
        bar.set_length(of);
        bar.set_position(done);
    };
    let exported = export.write(&mut BufWriter::new(&mut out), &mut progress).await.map_err(failure)?;
    bar.finish_and_clear();
    if let Some(path) = &arguments.out {
        // Sync the file before the export is noted, because its entries may be dropped after that.
        let synced = File::open(path).and_then(|file| file.sync_all());
        synced.map_err(|error| Failure::Running(format!("{}: {error}", path.display())))?;
    }
    let Range { start, end } = exported.places.clone();
    eprintln!(
        "places {start} to before {end}: {} entries, proven by the checkpoint of size {}",
        exported.entries, exported.size
    );
    if let Some(Range { start, end }) = uncovered {
        eprintln!("no checkpoint covers places {start} to before {end} yet: they are not in the bundle");
    }
    // If only exported entries are dropped, these may be dropped from now on.
    let note = Change::RecordExport { places: exported.places };
    if committer.commit(unit(&tenant, None, vec![note])).await.is_err() {
        eprintln!(
            "they are not marked as exported: only the tables' owner may do that (BYOK_MIGRATION_DATABASE_URL)"
        );
    }
    Ok(())
}

/// Builds the entry that records who exports. Reads of the log are part of the log.
fn entry(clock: &dyn Clock, by: Option<String>, places: &Range<u64>) -> Entry {
    let detail = format!("export {} {}", places.start, places.end);
    Entry::of_operator(clock.now(), Operation::Audit, by, Some(detail.into()))
}

fn unit(tenant: &Tenant, entry: Option<EntryRow>, changes: Vec<Change>) -> Unit {
    Unit::unconditional(tenant.uid, entry, changes)
}

fn failure(error: ExportError) -> Failure {
    Failure::Running(match error {
        ExportError::Store(error) => return assemble::read_failure(error),
        ExportError::Write(error) => format!("the bundle could not be written: {error}"),
        ExportError::NoCheckpoint => {
            "no checkpoint of this log is kept, so a bundle could not be verified".to_owned()
        }
        ExportError::Uncovered { until } => {
            format!("checkpoints cover only the places before {until}, so this bundle could not be verified")
        }
        ExportError::Shorter { size } => {
            format!("the log is shorter than a checkpoint of size {size} says: run `byok audit verify`")
        }
        ExportError::Erased => {
            "values were erased while the bundle was written, and it does not say so: export it again"
                .to_owned()
        }
        ExportError::Missing { place } => {
            format!("the entry at place {place} is missing, and so are its hashes: run `byok audit verify`")
        }
    })
}
