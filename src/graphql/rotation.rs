//! A rotation, as the schema shows it.

use async_graphql::{ID, SimpleObject};

use crate::app::Rotation;
use crate::model::{ErrorCode, Job, JobState};

use super::scalars::{Bigint, Timestamptz};
use super::words::Word;

/// A rotation: every data key is re-wrapped under one version of the customer's key.
#[derive(SimpleObject)]
#[graphql(name = "ByokRotation")]
pub(super) struct RotationStatus {
    /// Its id; null for a dry run, which leaves nothing behind.
    id: Option<ID>,
    /// Where it stands; null for a dry run.
    state: Option<Word<JobState>>,
    /// Whether this only says what a rotation would do.
    dry_run: bool,
    /// The version that data keys are re-wrapped to.
    target: String,
    /// How many data keys there were to re-wrap when it began.
    total: Bigint,
    /// How many were re-wrapped.
    rewrapped: Bigint,
    /// How many were passed over, since they had the target version already.
    skipped: Bigint,
    /// How many the KMS refused one by one.
    failed: Bigint,
    /// How many calls the KMS saw; for a dry run, how many it would see.
    kms_calls: Bigint,
    /// How much is done, from 0 to 100; null for a dry run.
    percent: Option<f64>,
    /// Why it makes no progress just now, until it does again.
    stalled: Option<Word<ErrorCode>>,
    /// When it was asked for.
    started_at: Option<Timestamptz>,
    /// When it last committed its place.
    updated_at: Option<Timestamptz>,
    /// When it was done, or cancelled.
    finished_at: Option<Timestamptz>,
}

impl From<Rotation> for RotationStatus {
    fn from(rotation: Rotation) -> Self {
        match rotation {
            Rotation::Job(job) => job.into(),
            Rotation::Forecast { target, deks, kms_calls } => Self {
                id: None,
                state: None,
                dry_run: true,
                target: target.to_string(),
                total: Bigint(deks),
                rewrapped: Bigint(0),
                skipped: Bigint(0),
                failed: Bigint(0),
                kms_calls: Bigint(kms_calls),
                percent: None,
                stalled: None,
                started_at: None,
                updated_at: None,
                finished_at: None,
            },
        }
    }
}

impl From<Job> for RotationStatus {
    fn from(job: Job) -> Self {
        Self {
            id: Some(job.id.into()),
            state: Some(Word(job.state)),
            dry_run: false,
            target: job.target.to_string(),
            total: Bigint(job.progress.total),
            rewrapped: Bigint(job.progress.rewrapped),
            skipped: Bigint(job.progress.skipped),
            failed: Bigint(job.progress.failed),
            kms_calls: Bigint(job.progress.kms_calls),
            percent: Some(percent(&job)),
            stalled: job.stalled.map(Word),
            started_at: Some(Timestamptz(job.started_at)),
            updated_at: Some(Timestamptz(job.updated_at)),
            finished_at: job.finished_at.map(Timestamptz),
        }
    }
}

/// To a tenth. Keys that are made while the job runs can take it past its total; it is done when it says so.
fn percent(job: &Job) -> f64 {
    match job.state {
        JobState::Done => 100.0,
        _ if job.progress.total == 0 => 0.0,
        JobState::Running | JobState::Paused | JobState::Cancelled => {
            let done = (job.progress.rewrapped + job.progress.failed) as f64 / job.progress.total as f64;
            (done * 1_000.0).floor().min(999.0) / 10.0
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{JobId, KeyVersion, Progress, Timestamp};

    use super::*;

    fn job(state: JobState, total: u64, rewrapped: u64) -> Job {
        Job {
            id: JobId::new(),
            state,
            target: KeyVersion::new("k", "2"),
            progress: Progress { total, rewrapped, ..Progress::default() },
            stalled: None,
            started_at: Timestamp(0),
            updated_at: Timestamp(0),
            finished_at: None,
        }
    }

    #[test]
    fn a_hundred_percent_means_done() {
        assert_eq!(percent(&job(JobState::Running, 0, 0)), 0.0);
        assert_eq!(percent(&job(JobState::Running, 3, 1)), 33.3);
        assert_eq!(percent(&job(JobState::Running, 3, 4)), 99.9);
        assert_eq!(percent(&job(JobState::Done, 3, 2)), 100.0);
        assert_eq!(percent(&job(JobState::Paused, 3, 3)), 99.9);
        assert_eq!(percent(&job(JobState::Cancelled, 3, 1)), 33.3);
    }
}
