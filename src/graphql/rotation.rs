//! Rotations in the schema.

use async_graphql::{ID, SimpleObject};

use crate::app::Rotation;
use crate::model::{ErrorCode, Job, JobState};

use super::enums::EnumValue;
use super::scalars::{Bigint, Timestamptz};

/// A rotation, which re-wraps every data key under one version of the customer's key.
#[derive(SimpleObject)]
#[graphql(name = "ByokRotation")]
pub(super) struct RotationStatus {
    /// The id; null for a dry run, which stores nothing.
    id: Option<ID>,
    /// The state; null for a dry run.
    state: Option<EnumValue<JobState>>,
    /// Whether this only reports what a rotation would do.
    dry_run: bool,
    /// The version that data keys are re-wrapped under.
    target: String,
    /// The number of data keys to re-wrap when it began.
    total: Bigint,
    /// The number of data keys re-wrapped.
    rewrapped: Bigint,
    /// The number of data keys skipped, since they had the target version already.
    skipped: Bigint,
    /// The number of data keys that the KMS refused to re-wrap.
    failed: Bigint,
    /// The number of calls to the KMS; for a dry run, the number it would take.
    kms_calls: Bigint,
    /// The part that is done, from 0 to 100; null for a dry run.
    percent: Option<f64>,
    /// Why it makes no progress at the moment; null while it does.
    stalled: Option<EnumValue<ErrorCode>>,
    /// When it was started.
    started_at: Option<Timestamptz>,
    /// When it last committed its progress.
    updated_at: Option<Timestamptz>,
    /// When it was done or cancelled.
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
            state: Some(EnumValue(job.state)),
            dry_run: false,
            target: job.target.to_string(),
            total: Bigint(job.progress.total),
            rewrapped: Bigint(job.progress.rewrapped),
            skipped: Bigint(job.progress.skipped),
            failed: Bigint(job.progress.failed),
            kms_calls: Bigint(job.progress.kms_calls),
            percent: Some(percent(&job)),
            stalled: job.stalled.map(EnumValue),
            started_at: Some(Timestamptz(job.started_at)),
            updated_at: Some(Timestamptz(job.updated_at)),
            finished_at: job.finished_at.map(Timestamptz),
        }
    }
}

/// The progress, rounded down to a tenth. Data keys made while the job runs can take it past its
/// total, so only its state makes it 100.
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
    fn only_a_job_that_is_done_has_a_hundred_percent() {
        assert_eq!(percent(&job(JobState::Running, 0, 0)), 0.0);
        assert_eq!(percent(&job(JobState::Running, 3, 1)), 33.3);
        assert_eq!(percent(&job(JobState::Running, 3, 4)), 99.9);
        assert_eq!(percent(&job(JobState::Done, 3, 2)), 100.0);
        assert_eq!(percent(&job(JobState::Paused, 3, 3)), 99.9);
        assert_eq!(percent(&job(JobState::Cancelled, 3, 1)), 33.3);
    }
}
