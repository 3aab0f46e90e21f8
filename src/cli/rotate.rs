//! `byok rotate`: starts the job, or rejoins it, works on it here and shows how far it is. Servers that run work on it
//! too; whoever holds the lease.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::assemble::{Assembled, assemble};
use crate::app::Rotation;
use crate::config::{Config, Defaults, Env};
use crate::model::{Caller, Identity, Job, JobState, Means, Refusal, RequestId, Session};
use crate::{telemetry, worker};

/// How to rotate.
#[derive(Args)]
pub(super) struct Arguments {
    /// Say what a rotation would do, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Start the job and leave it to the servers that run
    #[arg(long)]
    detach: bool,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = Config::read(&Env::of_process(), &Defaults::serve()).map_err(Failure::Configuration)?;
    let _telemetry = telemetry::start(&config.telemetry).map_err(Failure::Running)?;
    let stop = CancellationToken::new();
    let Assembled { app, opening, .. } = assemble(config, Handle::current(), stop.clone()).await?;
    opening.open(stop.clone()).await?;
    let identity = Identity {
        role: Arc::from("admin"),
        user: None,
        session: Session::default(),
        means: Means::Operator,
    };
    let caller: Caller = app.caller(identity, RequestId::fresh()).map_err(said)?;
    let job = match app.rotate(&caller, arguments.dry_run).await.map_err(said)? {
        Rotation::Forecast { target, deks, kms_calls } => {
            println!(
                "would re-wrap {deks} DEKs under {target}, with {kms_calls} KMS calls; nothing was changed"
            );
            return Ok(());
        }
        Rotation::Job(job) => job,
    };
    if arguments.detach {
        println!("rotation {} to {}: {} DEKs", job.id, job.target, job.progress.total);
        return Ok(());
    }
    let working = worker::start(app.clone(), stop.clone());
    let bar = ProgressBar::new(job.progress.total);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} DEKs  {per_sec}  {eta} left  {msg}")
    {
        bar.set_style(style);
    }
    let job = watch(&app, &caller, job, &bar).await?;
    stop.cancel();
    let _ = working.await;
    bar.finish_and_clear();
    let progress = job.progress;
    println!(
        "rotation {} to {}: {} re-wrapped, {} already there, {} failed, {} KMS calls",
        job.id, job.target, progress.rewrapped, progress.skipped, progress.failed, progress.kms_calls
    );
    match progress.failed {
        0 => Ok(()),
        failed => Err(Failure::Running(format!("{failed} DEKs could not be re-wrapped; the log names them"))),
    }
}

async fn watch(
    app: &crate::app::App,
    caller: &Caller,
    mut job: Job,
    bar: &ProgressBar,
) -> Result<Job, Failure> {
    while job.state == JobState::Running {
        tokio::time::sleep(Duration::from_millis(200)).await;
        match app.rotation(caller, Some(job.id)).await {
            Ok(now) => job = now,
            // The database is out of reach; the job waits for it, and so do we.
            Err(refusal) if refusal.code.retryable() => bar.set_message(refusal.code.as_str()),
            Err(refusal) => return Err(said(refusal)),
        }
        bar.set_position(job.progress.rewrapped + job.progress.failed);
        bar.set_message(job.stalled.map_or("", |code| code.as_str()));
    }
    Ok(job)
}

fn said(refusal: Refusal) -> Failure {
    Failure::Running(format!("{}: {}", refusal.code.as_str(), refusal.message))
}
