//! `byok audit reconcile`: compares a tenant's log with the log of the customer's KMS. Needs the
//! database, but no key.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::audit::{Committer, Unit, pack};
use crate::cli::of_tenant::OfTenant;
use crate::cli::{Failure, assemble};
use crate::config::Env;
use crate::model::{Clock, Entry, Operation, SystemClock, Tenant, Timestamp};
use crate::reconcile::{
    Between, Export, MOST_CALLS, Missing, Named, Reconciliation, Report, Terms, UnusableExport, Use,
};
use crate::store::{Database, EntryFilter};

/// The number of entries that are read from the database at once.
const AT_ONCE: u32 = 256;
/// The number of calls of one kind that are shown; `--json` has more.
const SHOWN: usize = 50;

/// The export to compare with the log, and the terms of the comparison.
#[derive(Args)]
pub(super) struct Arguments {
    /// The export: CloudTrail, a Vault audit device, Google Cloud or Azure Key Vault; `-` for
    /// standard input
    file: PathBuf,
    #[command(flatten)]
    of: OfTenant,
    /// The export is complete from this time on. Default: from its first record
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<Timestamp>,
    /// The export is complete until this time. Default: until its last record
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<Timestamp>,
    /// The largest difference between the times of an entry and of its call, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(..=31_536_000))]
    margin: u64,
    /// The key's name at the KMS; may be repeated. Default: all keys that the tenant's DEKs were
    /// wrapped under
    #[arg(long, value_name = "NAME")]
    key: Vec<String>,
    /// A principal of byok's at the KMS, in addition to those whose calls are in our log; may be
    /// repeated
    #[arg(long, value_name = "PRINCIPAL")]
    own: Vec<String>,
    /// Who does this; recorded as the user of the entry
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Print one JSON object with everything
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let (database, tenant) = assemble::log(&Env::of_process(), &arguments.of.tenant).await?;
    let keys = keys(&*database, &tenant, &arguments.key).await?;
    let margin = Duration::from_secs(arguments.margin);
    let between =
        Between(arguments.from.map(|from| from.minus(margin)), arguments.to.map(|until| until.plus(margin)));
    let input: Box<dyn Read + Send> = if arguments.file.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        let opened = File::open(&arguments.file);
        let path = arguments.file.display();
        Box::new(opened.map_err(|error| running(format!("{path} cannot be read: {error}")))?)
    };
    let read = move || Export::read(BufReader::with_capacity(1 << 20, input), keys, between);
    let export = tokio::task::spawn_blocking(read).await;
    let export = export.map_err(|_| running("the export cannot be read".to_owned()))?.map_err(unusable)?;
    let named = arguments.key;
    let terms = Terms { from: arguments.from, until: arguments.to, margin, own: arguments.own };
    let mut reconciliation = Reconciliation::new(export, terms);
    take_entries(&*database, &tenant, &mut reconciliation).await?;
    let report = reconciliation.report();
    // Record who reads the log before anything is shown.
    record(database, &tenant, arguments.by).await?;
    if arguments.json {
        println!("{:#}", report.json());
    } else {
        show(&report);
    }
    if report.calls == 0 && !named.is_empty() {
        let keys = named.join(", ");
        let problem = format!("the export holds no call of the key {keys}: check the name and the export");
        return Err(running(problem));
    }
    if report.explained() { Ok(()) } else { Err(running("not all of it is explained".to_owned())) }
}

async fn keys(database: &dyn Database, tenant: &Tenant, named: &[String]) -> Result<Vec<Arc<str>>, Failure> {
    let mut keys: Vec<Arc<str>> = named.iter().map(|key| key.as_str().into()).collect();
    if keys.is_empty() {
        let seen = database.proofs(tenant.uid).await.map_err(assemble::read_failure)?;
        keys.extend(seen.rows.into_iter().map(|proof| proof.key_version.key));
        keys.sort();
        keys.dedup();
    }
    if keys.is_empty() {
        return Err(running("the tenant has used no key yet; name one with --key".to_owned()));
    }
    Ok(keys)
}

async fn take_entries(
    database: &dyn Database,
    tenant: &Tenant,
    reconciliation: &mut Reconciliation,
) -> Result<(), Failure> {
    let (from, until) = reconciliation.reads();
    let filter = EntryFilter { from: Some(from), until: Some(until), ..EntryFilter::default() };
    let mut before = None;
    loop {
        let page =
            database.entries(tenant.uid, &filter, before, AT_ONCE).await.map_err(assemble::read_failure)?;
        page.entries.iter().for_each(|placed| reconciliation.take(placed));
        if page.next.is_none() {
            return Ok(());
        }
        before = page.next;
    }
}

async fn record(database: Arc<dyn Database>, tenant: &Tenant, by: Option<String>) -> Result<(), Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entry = Entry::of_operator(clock.now(), Operation::Audit, by, None);
    let entry = Entry { role: Arc::from("admin"), ..entry };
    let entry = Some(pack(tenant.uid, &entry));
    let committer = Committer::start(database, clock);
    let unit = Unit::unconditional(tenant.uid, entry, Vec::new());
    let recorded = committer.commit(unit).await;
    recorded.map(|_| ()).map_err(|_| running("that the log was read could not be recorded".to_owned()))
}

fn show(report: &Report) {
    let line = |name: &str, value: &str| println!("{name:<20}{value}");
    line("provider's log", &format!("{}, {} records", report.format.as_str(), report.records));
    line("keys", &report.keys.join(", "));
    let margin = report.margin.as_secs();
    line("window", &format!("{} to {}, margin {margin} s", report.from, report.until));
    line("entries", &report.entries.to_string());
    line("  from the KMS", &format!("{} items", report.from_kms + report.without_id));
    line("  cache hits", &format!("{} items; the KMS was not called for them", report.cache_hits));
    if report.other_keys > 0 {
        line("  other keys", &format!("{} items; not looked at", report.other_keys));
    }
    if report.without_id > 0 {
        line("  without an id", &format!("{} items; they cannot be joined", report.without_id));
    }
    line("calls of the keys", &report.calls.to_string());
    for principal in &report.principals {
        let own = if principal.own { "ours" } else { "not ours" };
        line("", &format!("{} by {}: {own}", principal.calls, principal.name));
    }
    line("matched", &format!("{} calls that entries name", report.matched));
    line("without an entry", &without_entry(report));
    line("not in our log", &report.unexplained.to_string());
    report.named.iter().take(SHOWN).for_each(stranger);
    if report.format.joins() {
        line("not in their log", &report.missing.to_string());
        report.named_missing.iter().take(SHOWN).for_each(missing);
    } else {
        line("not in their log", "not known: this provider answers a call with no id of it");
    }
    if report.at_the_edge > 0 {
        let count = report.at_the_edge;
        line("at the edge", &format!("{count} calls within the margin of the window's ends; not looked for"));
    }
    if report.unreadable > 0 {
        let lines: Vec<String> = report.unreadable_lines.iter().map(u64::to_string).collect();
        line("unreadable", &format!("{} records; lines {}", report.unreadable, lines.join(", ")));
    }
    if report.unreadable_entries > 0 {
        line(
            "changed by hand",
            &format!("{} entries; `byok audit verify` names them", report.unreadable_entries),
        );
    }
    if report.matched == 0 && report.calls > 0 && report.from_kms > 0 && report.format.joins() {
        line("", "no id is in both logs: is this the log of this key?");
    }
}

/// Describes byok's own calls that have no entry.
fn without_entry(report: &Report) -> String {
    let of = |used: &Use| {
        let count = report.without_entry.get(used)?;
        Some(match (used, report.unwrapped_values) {
            (Use::Unwrap, 1) => format!("{count} unwrap of one value"),
            (Use::Unwrap, values @ 2..) => format!("{count} unwrap of {values} values"),
            (_, _) => format!("{count} {}", used.as_str()),
        })
    };
    let mut parts: Vec<String> = Use::ALL.iter().filter_map(of).collect();
    if report.refused > 0 {
        parts.push(format!("{} refused", report.refused));
    }
    if report.probes > 0 {
        parts.push(format!("{} marked as probes", report.probes));
    }
    if parts.is_empty() {
        return "0".to_owned();
    }
    format!("{} (probes, health, DEKs ahead of need)", parts.join(", "))
}

fn stranger(named: &Named) {
    let refused = if named.refused { ", refused" } else { "" };
    println!(
        "  {} {}{refused} {} by {}: {}",
        named.at,
        named.used.as_str(),
        named.kms_request_id,
        named.principal,
        named.why.sentence()
    );
}

fn missing(missing: &Missing) {
    println!(
        "  {} {} {}, entry {} at place {}",
        missing.at,
        missing.operation.as_str(),
        missing.kms_request_id,
        missing.entry,
        missing.place
    );
}

fn time(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse(text).ok_or_else(|| "no time such as 2026-11-23T10:00:00Z".to_owned())
}

fn unusable(unusable: UnusableExport) -> Failure {
    running(match unusable {
        UnusableExport::Io(error) => format!("the export cannot be read: {error}"),
        UnusableExport::NoRecords => {
            "the export holds no record of a format that is known: CloudTrail, a Vault audit \
            device, Google Cloud audit logs, the diagnostic log of an Azure Key Vault"
                .to_owned()
        }
        UnusableExport::TooManyCalls => {
            format!(
                "the export has more than {MOST_CALLS} calls of the key: take less of it with --from and --to"
            )
        }
    })
}

fn running(problem: String) -> Failure {
    Failure::Running(problem)
}
