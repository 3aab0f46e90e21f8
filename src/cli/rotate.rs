//! `byok rotate`: starts a tenant's rotation job, or joins the one that is running, works on it
//! here and shows its progress. Running servers work on it too; whichever process holds the lease
//! does the work. It also pauses, resumes and cancels a rotation.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::assemble::{Assembled, assemble};
use super::of_tenant::OfTenant;
use super::rotation_output::RotationOutput;
use crate::app::{App, Rotation};
use crate::config::{Config, Defaults, Env};
use crate::model::{
    ErrorCode, Identity, Job, JobCommand, JobId, JobState, Means, Progress, Refusal, RequestId, Session,
};
use crate::telemetry;
use crate::tenancy::Caller;

/// How often the job is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// How long a job may be stalled for a reason that does not pass by itself. A key that was just
/// turned on is used again within some seconds.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(15);
/// How long a job may make no progress for any other reason: a KMS that is out of reach, or a spent
/// budget of calls.
const STALL_PATIENCE: Duration = Duration::from_secs(300);

/// How long this command waits for a database that is out of reach when it starts.
const DATABASE_PATIENCE: Duration = Duration::from_secs(15);

/// How to rotate.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    of: OfTenant,
    /// Print what a rotation would do, and change nothing
    #[arg(long, group = "what")]
    dry_run: bool,
    /// Pause this rotation until it is resumed
    #[arg(long, value_name = "ID", value_parser = job_id, group = "what")]
    pause: Option<JobId>,
    /// Resume this rotation, and work on it here
    #[arg(long, value_name = "ID", value_parser = job_id, group = "what")]
    resume: Option<JobId>,
    /// End this rotation early; DEKs that it re-wrapped stay re-wrapped
    #[arg(long, value_name = "ID", value_parser = job_id, group = "what")]
    cancel: Option<JobId>,
    /// Start or resume the rotation, and leave the work to the running servers
    #[arg(long, conflicts_with_all = ["dry_run", "pause", "cancel"])]
    detach: bool,
}

fn job_id(text: &str) -> Result<JobId, &'static str> {
    text.parse().map_err(|_| "not the id of a rotation, which is a UUID")
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = Config::read(&Env::of_process(), &Defaults::serve()).map_err(Failure::Configuration)?;
    let _telemetry = telemetry::start(&config.telemetry).map_err(Failure::Running)?;
    let stop = CancellationToken::new();
    let Assembled { app, jobs, opening, .. } = assemble(config, Handle::current(), stop.clone()).await?;
    let opening = opening.for_tenant(arguments.of.tenant).open(stop.clone());
    let opened = tokio::time::timeout(DATABASE_PATIENCE, opening).await;
    opened
        .map_err(|_| Failure::Running("the database is out of reach; nothing was changed".to_owned()))??;
    let identity = Identity {
        role: Arc::from("admin"),
        user: None,
        session: Session::default(),
        means: Means::Operator,
    };
    let caller: Caller = app.caller(identity, RequestId::fresh()).map_err(failure)?;
    let ended = arguments.pause.map(|id| (id, JobCommand::Pause));
    if let Some((id, command)) = ended.or(arguments.cancel.map(|id| (id, JobCommand::Cancel))) {
        let job = app.command_rotation(&caller, id, command).await.map_err(failure)?;
        println!("{}", RotationOutput::state(&job));
        return Ok(());
    }
    let job = match arguments.resume {
        Some(id) => app.command_rotation(&caller, id, JobCommand::Resume).await.map_err(failure)?,
        None => match app.rotate(&caller, arguments.dry_run).await.map_err(not_started)? {
            Rotation::Forecast { target, deks, kms_calls } => {
                println!(
                    "would re-wrap {deks} DEKs under {target}, with {kms_calls} KMS calls; nothing was changed"
                );
                return Ok(());
            }
            Rotation::Job(job) => job,
        },
    };
    if arguments.detach {
        println!("rotation {} to {}: {} DEKs", job.id, job.target, job.progress.total);
        return Ok(());
    }
    let working = jobs.start(stop.clone());
    let watched = watch(&app, &caller, job).await;
    stop.cancel();
    let _ = working.await;
    let job = watched?;
    let progress = job.progress;
    println!(
        "rotation {} to {}: {} re-wrapped, {} already there, {} failed, {} KMS calls",
        job.id, job.target, progress.rewrapped, progress.skipped, progress.failed, progress.kms_calls
    );
    match (job.state, progress.failed) {
        (JobState::Running | JobState::Done, 0) => Ok(()),
        (JobState::Running | JobState::Done, failed) => {
            Err(Failure::Running(format!("{failed} DEKs could not be re-wrapped; the log names them")))
        }
        (JobState::Paused, _) => Err(Failure::Running(format!(
            "the rotation was paused; `byok rotate --resume {}` continues it",
            job.id
        ))),
        (JobState::Cancelled, _) => Err(Failure::Running(
            "the rotation was cancelled; DEKs that it re-wrapped stay re-wrapped".to_owned(),
        )),
    }
}

/// Shows the job until it is no longer running, or makes no progress for too long.
async fn watch(app: &App, caller: &Caller, mut job: Job) -> Result<Job, Failure> {
    let mut output = RotationOutput::start(&job);
    let mut patience = Patience::begin(Instant::now());
    // An earlier reason does not describe the current state: the process that recorded it may be
    // gone, while its lease has not ended yet.
    let joined = job.updated_at;
    while job.state == JobState::Running {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let why = match app.rotation(caller, Some(job.id)).await {
            Ok(now) => {
                if progress_counts(&now) != progress_counts(&job) {
                    patience = Patience::begin(Instant::now());
                }
                job = now;
                job.stalled.filter(|_| job.updated_at != joined)
            }
            // The database is out of reach. The job waits for it, and so does this command.
            Err(refusal) if refusal.code.retryable() => Some(refusal.code),
            Err(refusal) => return Err(failure(refusal)),
        };
        output.update(&job, why);
        if job.state == JobState::Running
            && let Some(why) = patience.over(Instant::now(), why)
        {
            output.end();
            return Err(gave_up(&job, why));
        }
    }
    output.end();
    Ok(job)
}

/// Returns the counts that show progress. They leave out the number of calls, which also grows with
/// calls made in vain.
fn progress_counts(job: &Job) -> [u64; 3] {
    let Progress { rewrapped, skipped, failed, .. } = job.progress;
    [rewrapped, skipped, failed]
}

/// How long this command waits for a job that makes no progress.
struct Patience {
    progress_at: Instant,
    /// The reason why it is stalled, and since when.
    stalled: Option<(ErrorCode, Instant)>,
}

impl Patience {
    fn begin(now: Instant) -> Self {
        Self { progress_at: now, stalled: None }
    }

    /// Returns why to stop waiting, if it is time to stop. The inner `None` means that no reason
    /// was recorded for the job.
    fn over(&mut self, now: Instant, why: Option<ErrorCode>) -> Option<Option<ErrorCode>> {
        self.stalled = why.map(|why| match self.stalled {
            Some((before, since)) if before == why => (why, since),
            _ => (why, now),
        });
        let refused =
            self.stalled.is_some_and(|(why, since)| !why.retryable() && now - since >= REFUSAL_PATIENCE);
        (refused || now - self.progress_at >= STALL_PATIENCE).then_some(why)
    }
}

/// Returns the failure for a job that is left in its current state.
fn gave_up(job: &Job, why: Option<ErrorCode>) -> Failure {
    let (id, done) = (job.id, job.progress.rewrapped);
    let of = format!("{done} of {} DEKs are re-wrapped", job.progress.total);
    match why {
        Some(code @ ErrorCode::KmsAccessDenied) => Failure::Refused(format!(
            "{}: {} Rotation {id} is kept, {of}; running servers, or `byok rotate`, continue it when the key is back",
            code.as_str(),
            code.message()
        )),
        Some(code) => Failure::Running(format!(
            "{}: {} Rotation {id} is kept, {of}; running servers, or `byok rotate`, continue it once that is repaired",
            code.as_str(),
            code.message()
        )),
        None => Failure::Running(format!(
            "rotation {id} makes no progress; it is kept, {of}. See the log of the process that works on it"
        )),
    }
}

fn not_started(refusal: Refusal) -> Failure {
    match refusal.code {
        ErrorCode::KmsAccessDenied => Failure::Refused(format!(
            "{}: {} No rotation was started; one that is running is kept, and continues when the key is back",
            refusal.code.as_str(),
            refusal.message
        )),
        _ => failure(refusal),
    }
}

fn failure(refusal: Refusal) -> Failure {
    Failure::Running(format!("{}: {}", refusal.code.as_str(), refusal.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_waited_for_shortly_and_an_outage_longer() {
        let began = Instant::now();
        let (denied, away) = (Some(ErrorCode::KmsAccessDenied), Some(ErrorCode::KmsUnavailable));
        let mut patience = Patience::begin(began);
        assert_eq!(patience.over(began, denied), None);
        assert_eq!(patience.over(began + REFUSAL_PATIENCE / 2, away), None);
        assert_eq!(patience.over(began + REFUSAL_PATIENCE, denied), None, "it counts anew");
        assert_eq!(patience.over(began + REFUSAL_PATIENCE * 2, denied), Some(denied));
        let mut patience = Patience::begin(began);
        assert_eq!(patience.over(began + REFUSAL_PATIENCE * 2, away), None);
        assert_eq!(patience.over(began + STALL_PATIENCE, away), Some(away));
        assert_eq!(Patience::begin(began).over(began + STALL_PATIENCE, None), Some(None));
    }
}
