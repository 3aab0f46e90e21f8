//! The rotation job, as the database holds it and the fronts show it.

use super::{ErrorCode, JobId, KeyVersion, Timestamp};

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It has work left; some replica holds its lease, or will.
    Running,
    /// It went through all DEKs.
    Done,
}

impl JobState {
    /// The name in the database and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Done => "DONE",
        }
    }

    /// The state of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Running, Self::Done].into_iter().find(|state| state.as_str() == name)
    }
}

/// How far a job is. All counts are of DEKs, but `kms_calls`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// To be re-wrapped, counted when the job began.
    pub total: u64,
    /// Re-wrapped by this job.
    pub rewrapped: u64,
    /// Passed over: they had the target version already.
    pub skipped: u64,
    /// Refused by the KMS one by one, such as a wrapped DEK that was altered by hand.
    pub failed: u64,
    /// Calls made to the KMS.
    pub kms_calls: u64,
}

/// A rotation: every DEK of a tenant is re-wrapped under one key version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Where it stands.
    pub state: JobState,
    /// The version that DEKs are re-wrapped to.
    pub target: KeyVersion,
    /// How far it is.
    pub progress: Progress,
    /// Why it makes no progress just now (the KMS is out of reach), until it does again.
    pub stalled: Option<ErrorCode>,
    /// When it was asked for.
    pub started_at: Timestamp,
    /// When it last committed its place.
    pub updated_at: Timestamp,
    /// When it was done.
    pub finished_at: Option<Timestamp>,
}
