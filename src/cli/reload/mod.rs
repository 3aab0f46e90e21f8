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
use crate::config::{self, Engine, Env, Files, Mistake};
use crate::jobs::Jobs;
use crate::model::SystemClock;
use crate::store::{self, Database};
use crate::telemetry::Reread;

use part::{Part, Value};

pub(super) use part::server_config;

/// How often files are checked for changes.
const EVERY: Duration = Duration::from_secs(1);
/// How often the server tries again to reach a database that does not answer at its new URL, and
/// checks that the thread that reads files is alive.
const AGAIN: Duration = Duration::from_secs(5);
/// The time limit for a database to answer at a new URL.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time without a check of the files after which the log reports it.
const LATE: Duration = Duration::from_secs(30);

/// The parts of the server that take over what was read again.
pub(super) struct Running {
    pub(super) app: Arc<App>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) database: Arc<dyn Database>,
    pub(super) tls: Option<watch::Sender<TlsAcceptor>>,
}

/// A part of the configuration that was read again.
struct Again {
    part: Part,
    variables: Vec<String>,
    value: Result<Value, Vec<Mistake>>,
}

/// The reason why what was read again is not in use.
enum NotTaken {
    /// It is invalid.
    Mistakes(Vec<Mistake>),
    /// It may be accepted later. The text says how the database reacts to it now.
    NotYet(config::Store, &'static str),
    /// It takes effect only after a restart.
    NeedsRestart,
}

/// Reads the configuration again whenever needed, until `stop` is cancelled.
pub(super) async fn keep(
    running: Running,
    env: Env,
    files: Files,
    mut hangups: Option<Signal>,
    stop: CancellationToken,
) {
    if files.is_empty() && hangups.is_none() {
        return;
    }
    let (asked, asks) = std_mpsc::channel();
    let (sender, mut again) = mpsc::unbounded_channel();
    let (looked, last_look) = watch::channel(Instant::now());
    let look = move || look(&env, files, &asks, &sender, &looked);
    if std::thread::Builder::new().name("files".to_owned()).spawn(look).is_err() {
        return warn!("no thread can be had that looks at files: they are read at the start alone");
    }
    let mut ticks = interval(AGAIN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut waiting, mut hangs) = (None, false);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = hung_up(&mut hangups) => {
                info!("SIGHUP: reading all files again");
                let _ = asked.send(());
            }
            Some(Again { part, variables, value }) = again.recv() => {
                if part == Part::Database {
                    waiting = None;
                }
                let taken = match value {
                    Ok(value) => running.take(value, part).await,
                    Err(mistakes) => Err(NotTaken::Mistakes(mistakes)),
                };
                waiting = running.said(part, &variables, taken).or(waiting);
            }
            _ = ticks.tick() => {
                let is_late = last_look.borrow().elapsed() > LATE;
                if is_late && !hangs {
                    warn!("files could not be looked at for {} s: their file system hangs", LATE.as_secs());
                }
                hangs = is_late;
                if let Some(settings) = waiting.take() {
                    match running.take_database(settings).await {
                        Err(NotTaken::NotYet(settings, _)) => waiting = Some(settings),
                        taken => waiting = running.said(Part::Database, &[], taken),
                    }
                }
            }
        }
    }
}

async fn hung_up(hangups: &mut Option<Signal>) {
    if let Some(signal) = hangups
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// Checks the files until nobody needs the results any more.
fn look(
    env: &Env,
    mut files: Files,
    asks: &std_mpsc::Receiver<()>,
    again: &mpsc::UnboundedSender<Again>,
    looked: &watch::Sender<Instant>,
) {
    loop {
        let (changed, everything) = match asks.recv_timeout(EVERY) {
            Ok(()) => (files.changed_at_once(), true),
            Err(std_mpsc::RecvTimeoutError::Timeout) => (files.changed(), false),
            Err(std_mpsc::RecvTimeoutError::Disconnected) => return,
        };
        let known = files.variables();
        for part in Part::ALL {
            let of_part = |names: &[String]| -> Vec<String> {
                names.iter().filter(|name| Part::of(name) == part).cloned().collect()
            };
            let variables = match everything && part.is_read_again() {
                true => of_part(&known),
                false => of_part(&changed),
            };
            if !variables.is_empty() {
                let value = part.read(env);
                if again.send(Again { part, variables, value }).is_err() {
                    return;
                }
            }
        }
        looked.send_replace(Instant::now());
    }
}

impl Running {
    async fn take(&self, value: Value, part: Part) -> Result<(), NotTaken> {
        match value {
            Value::Tls(config) => match &self.tls {
                Some(tls) => drop(tls.send_replace(TlsAcceptor::from(Arc::<ServerConfig>::from(config)))),
                None => return Err(NotTaken::NeedsRestart),
            },
            Value::Auth(auth) => {
                let (authenticator, policy) = assemble::parts_of_identity(&auth, Arc::new(SystemClock))
                    .map_err(|failure| NotTaken::Mistakes(mistakes_of(failure)))?;
                match part {
                    Part::Permissions => {
                        self.app.take_policy(policy.map_err(NotTaken::Mistakes)?);
                    }
                    _ => self.app.take_authenticator(authenticator.map_err(NotTaken::Mistakes)?),
                }
            }
            Value::Database(settings) => return self.take_database(*settings).await,
            Value::SigningKeys(keys) => {
                if !self.app.take_signing_keys(keys) {
                    return Err(NotTaken::NeedsRestart);
                }
            }
            Value::Webhooks(webhooks) => {
                if !self.jobs.take_webhooks(webhooks) {
                    return Err(NotTaken::NeedsRestart);
                }
            }
            Value::AtStartAlone => return Err(NotTaken::NeedsRestart),
        }
        Ok(())
    }

    /// Takes over other URLs once the same database answers at them. If no database has been
    /// reached yet, it accepts the URLs of any one.
    async fn take_database(&self, settings: config::Store) -> Result<(), NotTaken> {
        // This would be another engine. Opening an SQLite file would create it.
        if !matches!(settings.engine, Engine::Postgres(_)) {
            return Err(NotTaken::NeedsRestart);
        }
        let by_new = store::open(&settings).await.map_err(|error| mistake_in_url(&error.to_string()))?;
        if self.app.serves().is_none() {
            return self.switch_urls(&settings);
        }
        match timeout(PATIENCE, by_new.tenant(assemble::PRIMARY)).await {
            Ok(Ok(Some(tenant))) if self.app.serves().is_some_and(|serves| tenant.uid == serves) => {}
            Ok(Ok(_)) => {
                return Err(mistake_in_url("names another database than the one that is served from"));
            }
            Ok(Err(store::ReadError::Malformed)) => {
                return Err(mistake_in_url("names a database whose tables are none of this server's"));
            }
            // The file is often written before the password that it names is changed.
            Ok(Err(store::ReadError::Rejected)) => {
                return Err(NotTaken::NotYet(settings, "refuses to be read"));
            }
            Ok(Err(store::ReadError::Unavailable | store::ReadError::Busy)) | Err(_) => {
                return Err(NotTaken::NotYet(settings, "does not answer"));
            }
        }
        self.switch_urls(&settings)
    }

    fn switch_urls(&self, settings: &config::Store) -> Result<(), NotTaken> {
        match self.database.switch_urls(settings) {
            Ok(true) => Ok(()),
            Ok(false) => Err(NotTaken::NeedsRestart),
            Err(error) => Err(mistake_in_url(&error.to_string())),
        }
    }

    /// Reports the result. Returns the settings that are to be tried again, if any.
    fn said(&self, part: Part, variables: &[String], taken: Result<(), NotTaken>) -> Option<config::Store> {
        let name = part.as_str();
        let (outcome, again) = match taken {
            Ok(()) => {
                info!(part = name, "what its files hold now is in use");
                (Reread::Taken, None)
            }
            Err(NotTaken::Mistakes(mistakes)) => {
                for Mistake { variable, problem } in mistakes {
                    warn!(
                        part = name,
                        variable, problem, "a file that changed is of no use: what was in use stays so"
                    );
                }
                (Reread::Refused, None)
            }
            Err(NotTaken::NotYet(settings, does)) => {
                warn!(
                    part = name,
                    "by its new URL the database {does}: the one before stays in use, and this one is tried again every {} s",
                    AGAIN.as_secs()
                );
                (Reread::Refused, Some(settings))
            }
            Err(NotTaken::NeedsRestart) => {
                for variable in variables {
                    warn!(part = name, variable, "a file that changed is in use after a restart alone");
                }
                (Reread::NeedsRestart, None)
            }
        };
        self.app.rereads().count(name, outcome);
        again
    }
}

fn mistake_in_url(problem: &str) -> NotTaken {
    let variable = "DATABASE_URL".to_owned();
    NotTaken::Mistakes(vec![Mistake { variable, problem: problem.to_owned() }])
}

fn mistakes_of(failure: Failure) -> Vec<Mistake> {
    match failure {
        Failure::Configuration(mistakes) => mistakes,
        Failure::Running(problem) => vec![Mistake { variable: "BYOK_LISTEN".to_owned(), problem }],
        Failure::Refused(_) | Failure::Schema(_) | Failure::Unwell => Vec::new(),
    }
}
