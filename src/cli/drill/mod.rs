//! `byok drill`: rehearses the kill switch on a running server, with the real key, which the
//! operator turns off and on. It decrypts one hot record repeatedly while the key is turned off and
//! on, measures the results, and leaves a signed report. `docs/kill-switch.md` explains how to read
//! the report.

mod decrypt_load;
mod report;
mod server;
mod steps;
mod verdict;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Failure;
use crate::crypto::{self, Ed25519SigningKey, SecretText};
use crate::model::{BootTime, Clock as _, SystemClock, Timestamp};

use decrypt_load::DecryptLoad;
use server::{Canary, Target};
use steps::{Drill, shell};
use verdict::{Answer, Findings, KeySwitch, Sample, Verdict, allowed, judge, round_trips};

/// The time after the bound in which the drill still looks for a plaintext.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// The options of a drill.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(group = ArgGroup::new("identity").required(true).args(["token", "token_file"]))]
#[command(group = ArgGroup::new("signer").required(true).args(["signing_key", "new_signing_key"]))]
pub(super) struct Arguments {
    #[command(subcommand)]
    other: Option<Other>,
    /// The server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:3741")]
    url: reqwest::Url,
    /// A JWT or an admin token that may encrypt and decrypt the record; one that may read the audit
    /// log puts the incident's entry into the report
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// The same from a file: other users of this machine see command lines
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The record that is encrypted; a new one when absent
    #[arg(long, value_name = "ID")]
    record_id: Option<String>,
    /// The command that turns the key off; its duration is measured. Without it, you are asked to
    /// do so and to press Enter
    #[arg(long, value_name = "COMMAND", conflicts_with = "at_refusal")]
    off_command: Option<String>,
    /// The command that turns the key on again
    #[arg(long, value_name = "COMMAND", conflicts_with = "at_refusal")]
    on_command: Option<String>,
    /// Do not wait for Enter; only observe when refusals begin and when they end
    #[arg(long)]
    at_refusal: bool,
    /// The time that the provider may take to apply its own change; added to the server's bound
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    provider_seconds: u64,
    /// The time to wait for the first refusal, and for the first success after it
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    timeout: u64,
    /// Decrypts per second; fewer once the server limits them
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    rate: u64,
    /// The new file for the report; its signature is written next to it, with `.sig`
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The key that signs the report: Ed25519, PKCS#8 in PEM
    #[arg(long, value_name = "FILE")]
    signing_key: Option<PathBuf>,
    /// Make such a key and write it to this new file; its public key is written next to it, with
    /// `.pub`
    #[arg(long, value_name = "FILE")]
    new_signing_key: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Other {
    /// Check a report's signature
    Verify(report::Verify),
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    if let Some(Other::Verify(arguments)) = &arguments.other {
        return report::verify(arguments);
    }
    let started = Start { boot: SystemClock.boot(), wall: SystemClock.now() };
    let path = arguments.report.clone().unwrap_or_else(|| report_name(started.wall));
    let signature = report::signature_of(&path);
    let new_key = arguments.new_signing_key.as_deref();
    let new_files =
        [Some(path.clone()), Some(signature), new_key.map(Path::to_owned), new_key.map(public_key_of)];
    if let Some(existing) = new_files.into_iter().flatten().find(|file| file.exists()) {
        return Err(Failure::Running(format!("{} already exists", existing.display())));
    }
    let existing_key = arguments.signing_key.as_deref().map(report::signing_key).transpose()?;
    let target = Arc::new(Target::new(arguments.url.clone(), token(&arguments)?)?);
    let (health, server_version) = target.health().await?;
    let bound = match (health["status"].as_str(), health["bound_seconds"].as_f64()) {
        (Some("OK"), Some(bound)) => Duration::try_from_secs_f64(bound).unwrap_or_default(),
        (status, _) => {
            let status = status.unwrap_or("no status");
            return Err(Failure::Running(format!(
                "the server's health says {status}: a drill starts with a key that works"
            )));
        }
    };
    let record_id = arguments.record_id.clone().unwrap_or_else(|| format!("byok-drill-{}", Uuid::now_v7()));
    let plaintext = URL_SAFE_NO_PAD.encode(crypto::random::<32>());
    let canary = Arc::new(target.encrypt(record_id, plaintext).await?);
    let before = target.incidents().await;

    let drill = Drill::start(DecryptLoad::start(target.clone(), canary.clone(), arguments.rate));
    let patience = Duration::from_secs(arguments.timeout);
    drill.warm_up().await?;
    // Only now, so that a drill that could not start leaves no file.
    let key = existing_key.map_or_else(|| new_signing_key(new_key), Ok)?;
    let (p50, p99) = round_trips(&drill.samples());
    let allowed = allowed(Duration::from_secs(arguments.provider_seconds), bound, p99);
    drill.say(&format!("{} is hot: a decrypt takes {} ms", canary.record_id, p50.as_millis()));
    let off = match drill.switch_key("off", arguments.off_command.as_deref(), arguments.at_refusal).await {
        Ok(off) => off,
        Err(failure) => {
            // It is unknown how far the command got, so turn the key on again.
            if let Some(command) = &arguments.on_command {
                let _ = shell(command).await;
            }
            return Err(failure);
        }
    };
    let refused = drill.until("the first refusal", patience, |sample| is_refusal(sample, off.begun)).await;
    let by = off.done.unwrap_or(off.begun).max(refused.unwrap_or_default()).plus(allowed + AFTERWARDS);
    drill.watch_until(by).await;
    let on = drill.switch_key("on", arguments.on_command.as_deref(), arguments.at_refusal).await;
    if let Err(Failure::Running(problem)) = &on {
        drill.say(problem);
    }
    if let Ok(on) = &on {
        let back = |sample: &Sample| sample.answer == Answer::Plaintext && sample.sent >= on.begun;
        drill.until("the first success", patience, back).await;
    }
    let samples = drill.finish();
    let on = on.ok();
    let findings = judge(&samples, off, on, allowed);
    let incidents = new_incidents(before, target.incidents().await, &canary);
    let confirmed_by = match (&arguments.off_command, arguments.at_refusal) {
        (Some(_), _) => "command",
        (None, true) => "nobody",
        (None, false) => "enter",
    };
    let hot = json!({ "round_trip_p50_us": micros(p50), "round_trip_p99_us": micros(p99) });
    let bounds = json!({
        "provider_ms": arguments.provider_seconds * 1_000, "server_ms": millis(bound), "allowed_ms": millis(allowed),
    });
    let counted =
        |answer: fn(&Answer) -> bool| samples.iter().filter(|sample| answer(&sample.answer)).count();
    let report = json!({
        "format": report::FORMAT,
        "public_key": key.verifying_key().to_base64(),
        "server": { "url": without_password(arguments.url.clone()), "version": server_version },
        "key_version": canary.key_version,
        "record_id": canary.record_id,
        "started_at": started.wall.to_string(),
        "finished_at": SystemClock.now().to_string(),
        "hot": hot,
        "bound": bounds,
        "decrypts": {
            "rate_per_second": arguments.rate,
            "plaintexts": counted(|answer| *answer == Answer::Plaintext),
            "refused": counted(|answer| matches!(answer, Answer::Refused { .. })),
            "rate_limited": counted(|answer| *answer == Answer::Limited),
            "failed": counted(|answer| matches!(answer, Answer::Failed(_))),
        },
        "off": started.switch_json(off, confirmed_by),
        "first_refusal": findings.first_refusal.map(|sample| started.sample_json(sample, off)),
        "last_plaintext": findings.last_plaintext.map(|sample| started.sample_json(sample, off)),
        "bound_counts_from": findings.from.map(|from| started.at(from)),
        "plaintexts_after_bound": findings.plaintexts_after_bound,
        "on": on.map(|on| started.switch_json(on, on_confirmed_by(&arguments))),
        "first_success": findings.first_success.zip(on).map(|(sample, on)| started.sample_json(sample, on)),
        "incidents": incidents,
        "verdict": findings.verdict.as_str(),
    });
    report::write(&path, &report, &key)?;
    println!("{}", summary(&findings, off, on, allowed));
    println!("report: {}\nsignature: {}", path.display(), report::signature_of(&path).display());
    print!("{}", key.verifying_key().to_pem());
    match (findings.verdict, findings.plaintexts_after_bound) {
        (Verdict::Passed, _) => Ok(()),
        (Verdict::TooLate, _) => Err(Failure::FaultFound),
        (Verdict::NotRefused, 1..) => {
            eprintln!("byok: no call was refused: check that the key was turned off");
            Err(Failure::FaultFound)
        }
        (Verdict::NotRefused, 0) => Err(Failure::Running("no call was refused in time".to_owned())),
        (Verdict::NotRestored, _) => Err(Failure::Running("service did not come back in time".to_owned())),
    }
}

fn on_confirmed_by(arguments: &Arguments) -> &'static str {
    match (&arguments.on_command, arguments.at_refusal) {
        (Some(_), _) => "command",
        (None, true) => "nobody",
        (None, false) => "enter",
    }
}

/// Removes from a URL everything that the report must not hold.
fn without_password(mut url: reqwest::Url) -> String {
    // These calls fail only if the URL has no host, and then there was no server to reach.
    let _ = (url.set_username(""), url.set_password(None));
    url.set_query(None);
    url.to_string()
}

fn report_name(at: Timestamp) -> PathBuf {
    let digits: String = at.to_string().chars().filter(char::is_ascii_digit).take(14).collect();
    PathBuf::from(format!("byok-drill-{digits}.json"))
}

fn token(arguments: &Arguments) -> Result<SecretText, Failure> {
    let text = match (&arguments.token, &arguments.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => std::fs::read_to_string(path)
            .map_err(|error| Failure::Running(format!("{}: {error}", path.display())))?,
        (None, None) => String::new(),
    };
    Ok(SecretText::new(text.trim().to_owned()))
}

/// Makes the key that signs the report, and writes it and its public key to new files.
fn new_signing_key(path: Option<&Path>) -> Result<Ed25519SigningKey, Failure> {
    let path = path.ok_or_else(|| Failure::Running("no signing key is named".to_owned()))?;
    report::write_new(path, Ed25519SigningKey::generate_pem().expose().as_bytes(), 0o600)?;
    let key = report::signing_key(path)?;
    report::write_new(&public_key_of(path), key.verifying_key().to_pem().as_bytes(), 0o644)?;
    Ok(key)
}

/// Returns the path of a signing key's public key.
fn public_key_of(signing_key: &Path) -> PathBuf {
    let mut name = signing_key.as_os_str().to_owned();
    name.push(".pub");
    PathBuf::from(name)
}

/// Returns the entries of incidents of this key version that were not there before; `null` if the
/// log may not be read.
fn new_incidents(before: Option<Vec<Value>>, after: Option<Vec<Value>>, canary: &Canary) -> Value {
    let (Some(before), Some(after)) = (before, after) else { return Value::Null };
    let known: Vec<&Value> = before.iter().map(|entry| &entry["id"]).collect();
    let ours = |entry: &&Value| {
        !known.contains(&&entry["id"]) && entry["items"][0]["key_version"] == *canary.key_version
    };
    let shown = |entry: &Value| {
        json!({
            "entry_id": entry["id"], "incident_id": entry["request_id"], "at": entry["at"], "outcome": entry["outcome"],
            "kms_request_id": entry["items"][0]["kms_request_id"],
        })
    };
    after.iter().filter(ours).map(shown).rev().collect()
}

fn summary(findings: &Findings<'_>, off: KeySwitch, on: Option<KeySwitch>, allowed: Duration) -> String {
    let after =
        |sample: &Sample, switch: KeySwitch| ms_between(switch.done.unwrap_or(switch.begun), sample.received);
    let time = |what: &str, which: &str, sample: Option<(&Sample, KeySwitch)>| match sample {
        Some((sample, switch)) => format!("{which} {what} after {} ms", after(sample, switch)),
        None => format!("no {what}"),
    };
    format!(
        "{}: {}, {} (allowed: {} ms), {} plaintexts after the bound, {}",
        findings.verdict.as_str(),
        time("refusal", "first", findings.first_refusal.map(|sample| (sample, off))),
        time("plaintext", "last", findings.last_plaintext.map(|sample| (sample, off))),
        allowed.as_millis(),
        findings.plaintexts_after_bound,
        time("success", "first", findings.first_success.zip(on)),
    )
}

/// The time when the drill began, by both clocks. Times are measured by the clock that nobody can
/// set, and shown by the other.
#[derive(Clone, Copy)]
struct Start {
    boot: BootTime,
    wall: Timestamp,
}

impl Start {
    fn at(self, moment: BootTime) -> String {
        self.wall.plus(moment.since(self.boot)).to_string()
    }

    fn switch_json(self, switch: KeySwitch, confirmed_by: &str) -> Value {
        json!({ "told_by": confirmed_by, "begun_at": self.at(switch.begun), "done_at": switch.done.map(|done| self.at(done)) })
    }

    fn sample_json(self, sample: &Sample, switch: KeySwitch) -> Value {
        let (status, code) = match &sample.answer {
            Answer::Refused { status, code } => (Some(*status), Some(code)),
            Answer::Plaintext | Answer::Limited | Answer::Failed(_) => (None, None),
        };
        let mut json = json!({
            "request_id": sample.request_id, "sent_at": self.at(sample.sent), "heard_at": self.at(sample.received),
            "after_begun_ms": ms_between(switch.begun, sample.received),
            "after_done_ms": switch.done.map(|done| ms_between(done, sample.received)),
        });
        if let (Some(status), Some(code)) = (status, code) {
            json["status"] = status.into();
            json["code"] = code.as_str().into();
        }
        json
    }
}

fn ms_between(from: BootTime, to: BootTime) -> i64 {
    if to >= from { millis(to.since(from)) } else { -millis(from.since(to)) }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn is_refusal(sample: &Sample, since: BootTime) -> bool {
    matches!(sample.answer, Answer::Refused { .. }) && sample.received >= since
}
