//! `byok audit export`: writes a part of the log as a bundle (`docs/audit-log.md`). Who exports it
//! is recorded first.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::shown::{bar, checkpoint, ended, keys};
use crate::audit::{Committer, Unit, pack};
use crate::cli::{Failure, assemble};
use crate::config::Env;
use crate::model::{Clock, Entry, Operation, SystemClock, Tenant, Timestamp};
use crate::store::{Change, EntryRow};
use crate::verify::{Export, ExportError, Wanted};

/// What to export.
#[derive(Args)]
pub(super) struct Arguments {
    /// From this moment on: RFC 3339, or a day in UTC; from the first entry when absent
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<Timestamp>,
    /// To before this moment; to the last entry that a checkpoint speaks of when absent
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: Option<Timestamp>,
    /// Where the bundle goes: a file that is not there yet; to standard output when absent
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Which of the logs, where a restored database went on in another; the current one when absent
    #[arg(long, value_name = "N")]
    log: Option<u32>,
    /// A checkpoint that the auditor has: the bundle then shows that it is the beginning of the log
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// A public key to put into the bundle, as `NAME+ID+KEY` or a file of that; may be given again
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// Who exports: stands in the entry as its user
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
    let (database, tenant) = assemble::as_owner(&Env::of_process()).await?;
    let ended = ended(&*database, &tenant, arguments.log).await?;
    let places = match (arguments.from, arguments.to) {
        (None, None) => 0..u64::MAX,
        (from, until) => {
            let none = || Failure::Running("there is no entry of that time".to_owned());
            let places = database.places(tenant.uid, from, until).await;
            places.map_err(assemble::unread)?.ok_or_else(none)?
        }
    };
    let export =
        Export::prepare(&*database, &tenant, Wanted { ended, places, keys, pinned }).await.map_err(said)?;
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
    recorded.map_err(|_| Failure::Running("nothing was exported: the log could not record it".to_owned()))?;
    let bar = bar("{bar:40} {pos}/{len} entries  {per_sec}  {eta} left");
    let uncovered = export.uncovered();
    let mut progress = |done, of| {
        bar.set_length(of);
        bar.set_position(done);
    };
    let exported = export.write(&mut BufWriter::new(&mut out), &mut progress).await.map_err(said)?;
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
        eprintln!("no checkpoint speaks yet of places {start} to before {end}: they are not in the bundle");
    }
    // If only exported entries are dropped, these may be dropped from now on.
    let note = Change::RecordExport { places: exported.places };
    if committer.commit(unit(&tenant, None, vec![note])).await.is_err() {
        eprintln!("they are not noted as exported: only the tables' owner may (BYOK_MIGRATION_DATABASE_URL)");
    }
    Ok(())
}

/// Builds the entry that records who exports. Reads of the log are part of the log.
fn entry(clock: &dyn Clock, by: Option<String>, places: &Range<u64>) -> Entry {
    let detail = format!("export {} {}", places.start, places.end);
    Entry::of_operator(clock.now(), Operation::Audit, by, Some(detail.into()))
}

fn unit(tenant: &Tenant, entry: Option<EntryRow>, changes: Vec<Change>) -> Unit {
    Unit { tenant: tenant.uid, entry, changes, fence: Vec::new() }
}

fn said(error: ExportError) -> Failure {
    Failure::Running(match error {
        ExportError::Store(error) => return assemble::unread(error),
        ExportError::Write(error) => format!("the bundle could not be written: {error}"),
        ExportError::NoCheckpoint => {
            "no checkpoint of this log is kept: nothing would prove a bundle".to_owned()
        }
        ExportError::Uncovered { until } => {
            format!("checkpoints speak of places before {until} alone: nothing would prove this bundle")
        }
        ExportError::Shorter { size } => {
            format!("the log is shorter than a checkpoint of size {size} says: run `byok audit verify`")
        }
        ExportError::Erased => {
            "values were erased while the bundle was written, and it does not say so: export it again"
                .to_owned()
        }
        ExportError::Missing { place } => format!(
            "the entry at place {place} is gone, and with it all that could stand for it: run `byok audit verify`"
        ),
    })
}
