//! Reads parts of the configuration again while the server runs: on SIGHUP, and when a file that a
//! variable names has changed. A valid part replaces the previous one. An invalid one changes
//! nothing, and is reported in the log and the metrics. No message contains any part of a value.
//!
//! Files are read on a separate thread, so that a file system that hangs delays nothing else.

mod part;

use std::sync::{Arc, mpsc as std_mpsc};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Failure, assemble};
use crate::app::App;
use crate::config::{self, ConfigError, Engine, Env, Files};
use crate::jobs::Jobs;
use crate::model::SystemClock;
use crate::store::{self, Database};
use crate::telemetry::Reread;

use part::{Part, Value};

pub(super) use part::server_config;

/// The time between two checks of the files for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The time between two attempts to reach a database that does not answer at its new URL, and
/// between two checks that the thread that reads files is alive.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// The time limit for a database to answer at a new URL.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time without a check of the files after which the log reports it.
const OVERDUE: Duration = Duration::from_secs(30);

/// The parts of the server that take over what was read again.
pub(super) struct Running {
    pub(super) app: Arc<App>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) database: Arc<dyn Database>,
    pub(super) tls: Option<watch::Sender<TlsAcceptor>>,
}

/// A part of the configuration that was read again.
struct ReadPart {
    part: Part,
    variables: Vec<String>,
    value: Result<Value, Vec<ConfigError>>,
}

/// The reason why what was read again is not in use.
enum NotApplied {
    /// It is invalid.
    Errors(Vec<ConfigError>),
    /// It may be accepted later. The text says how the database reacts to it now.
    NotYet(config::Store, &'static str),
    /// It takes effect only after a restart.
    NeedsRestart,
}

/// Reads the configuration again whenever needed, until `stop` is cancelled.
pub(super) async fn run(
    running: Running,
    env: Env,
    files: Files,
    mut hangups: Option<Signal>,
    stop: CancellationToken,
) {
    if files.is_empty() && hangups.is_none() {
        return;
    }
    let (request, requests) = std_mpsc::channel();
    let (sender, mut again) = mpsc::unbounded_channel();
    let (checked, last_check) = watch::channel(Instant::now());
    let watch = move || watch_files(&env, files, &requests, &sender, &checked);
    if std::thread::Builder::new().name("files".to_owned()).spawn(watch).is_err() {
        return warn!(
            "the thread that checks files could not be started: a changed file takes effect only after a restart"
        );
    }
    let mut ticks = interval(RETRY_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut waiting, mut hangs) = (None, false);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = hangup(&mut hangups) => {
                info!("SIGHUP: reading all files again");
                let _ = request.send(());
            }
            Some(ReadPart { part, variables, value }) = again.recv() => {
                if part == Part::Database {
                    waiting = None;
                }
                let taken = match value {
                    Ok(value) => running.take(value, part).await,
                    Err(errors) => Err(NotApplied::Errors(errors)),
                };
                waiting = running.report(part, &variables, taken).or(waiting);
            }
            _ = ticks.tick() => {
                let is_late = last_check.borrow().elapsed() > OVERDUE;
                if is_late && !hangs {
                    warn!("files could not be checked for {} s: their file system hangs", OVERDUE.as_secs());
                }
                hangs = is_late;
                if let Some(settings) = waiting.take() {
                    match running.take_database(settings).await {
                        Err(NotApplied::NotYet(settings, _)) => waiting = Some(settings),
                        taken => waiting = running.report(Part::Database, &[], taken),
                    }
                }
            }
        }
    }
}

async fn hangup(hangups: &mut Option<Signal>) {
    if let Some(signal) = hangups
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// Checks the files until nobody needs the results any more.
fn watch_files(
    env: &Env,
    mut files: Files,
    requests: &std_mpsc::Receiver<()>,
    again: &mpsc::UnboundedSender<ReadPart>,
    checked: &watch::Sender<Instant>,
) {
    loop {
        let (changed, everything) = match requests.recv_timeout(CHECK_INTERVAL) {
            Ok(()) => (files.changed_at_once(), true),
            Err(std_mpsc::RecvTimeoutError::Timeout) => (files.changed(), false),
            Err(std_mpsc::RecvTimeoutError::Disconnected) => return,
        };
        let known = files.variables();
        for part in Part::ALL {
            let of_part = |names: &[String]| -> Vec<String> {
                names.iter().filter(|name| Part::of(name) == part).cloned().collect()
            };
            let is_asked = everything && part.is_read_again();
            let variables = of_part(if is_asked { &known } else { &changed });
            if !variables.is_empty() {
                let value = part.read(env);
                if again.send(ReadPart { part, variables, value }).is_err() {
                    return;
                }
            }
        }
        checked.send_replace(Instant::now());
    }
}

impl Running {
    async fn take(&self, value: Value, part: Part) -> Result<(), NotApplied> {
        match value {
            Value::Tls(config) => match &self.tls {
                Some(tls) => drop(tls.send_replace(TlsAcceptor::from(Arc::<ServerConfig>::from(config)))),
                None => return Err(NotApplied::NeedsRestart),
            },
            Value::Auth(auth) => {
                let (authenticator, policy) = assemble::parts_of_identity(&auth, Arc::new(SystemClock))
                    .map_err(|failure| NotApplied::Errors(errors_of(failure)))?;
                match part {
                    Part::Permissions => {
                        self.app.take_policy(policy.map_err(NotApplied::Errors)?);
                    }
                    _ => self.app.take_authenticator(authenticator.map_err(NotApplied::Errors)?),
                }
            }
            Value::Database(settings) => return self.take_database(*settings).await,
            Value::SigningKeys(keys) => {
                if !self.app.take_signing_keys(keys) {
                    return Err(NotApplied::NeedsRestart);
                }
            }
            Value::Webhooks(webhooks) => {
                if !self.jobs.take_webhooks(webhooks) {
                    return Err(NotApplied::NeedsRestart);
                }
            }
            Value::OnlyAtStart => return Err(NotApplied::NeedsRestart),
        }
        Ok(())
    }

    /// Takes over other URLs once the same database answers at them. If no database has been
    /// reached yet, URLs of any database are accepted.
    async fn take_database(&self, settings: config::Store) -> Result<(), NotApplied> {
        // This would be another engine. Opening an SQLite file would create it.
        if !matches!(settings.engine, Engine::Postgres(_)) {
            return Err(NotApplied::NeedsRestart);
        }
        let by_new = store::open(&settings).await.map_err(|error| url_error(&error.to_string()))?;
        if self.app.serves().is_none() {
            return self.switch_urls(&settings);
        }
        match timeout(PATIENCE, by_new.tenant(assemble::PRIMARY)).await {
            Ok(Ok(Some(tenant))) if self.app.serves().is_some_and(|serves| tenant.uid == serves) => {}
            Ok(Ok(_)) => {
                return Err(url_error("names another database than the one in use"));
            }
            Ok(Err(store::ReadError::Malformed)) => {
                return Err(url_error("names a database that does not have this server's tables"));
            }
            // The file is often written before the password that it names is changed.
            Ok(Err(store::ReadError::Rejected)) => {
                return Err(NotApplied::NotYet(settings, "refuses reads"));
            }
            Ok(Err(store::ReadError::Unavailable | store::ReadError::Busy)) | Err(_) => {
                return Err(NotApplied::NotYet(settings, "does not answer"));
            }
        }
        self.switch_urls(&settings)
    }

    fn switch_urls(&self, settings: &config::Store) -> Result<(), NotApplied> {
        match self.database.switch_urls(settings) {
            Ok(true) => Ok(()),
            Ok(false) => Err(NotApplied::NeedsRestart),
            Err(error) => Err(url_error(&error.to_string())),
        }
    }

    /// Reports the result. Returns the settings that are to be tried again, if any.
    fn report(
        &self,
        part: Part,
        variables: &[String],
        taken: Result<(), NotApplied>,
    ) -> Option<config::Store> {
        let name = part.as_str();
        let (outcome, again) = match taken {
            Ok(()) => {
                info!(part = name, "the new content of its files is in use");
                (Reread::Taken, None)
            }
            Err(NotApplied::Errors(errors)) => {
                for ConfigError { variable, problem } in errors {
                    warn!(
                        part = name,
                        variable, problem, "a changed file is not valid: its previous content stays in use"
                    );
                }
                (Reread::Refused, None)
            }
            Err(NotApplied::NotYet(settings, does)) => {
                warn!(
                    part = name,
                    "at its new URL the database {does}: the previous URL stays in use, and the new one is tried again every {} s",
                    RETRY_INTERVAL.as_secs()
                );
                (Reread::Refused, Some(settings))
            }
            Err(NotApplied::NeedsRestart) => {
                for variable in variables {
                    warn!(part = name, variable, "a changed file takes effect only after a restart");
                }
                (Reread::NeedsRestart, None)
            }
        };
        self.app.rereads().count(name, outcome);
        again
    }
}

fn url_error(problem: &str) -> NotApplied {
    let variable = "DATABASE_URL".to_owned();
    NotApplied::Errors(vec![ConfigError { variable, problem: problem.to_owned() }])
}

fn errors_of(failure: Failure) -> Vec<ConfigError> {
    match failure {
        Failure::Configuration(errors) => errors,
        Failure::Running(problem) => vec![ConfigError { variable: "BYOK_LISTEN".to_owned(), problem }],
        Failure::Refused(_) | Failure::Schema(_) | Failure::FaultFound => Vec::new(),
    }
}
