//! The rotation job, as the database holds it and the fronts show it.

use super::{ErrorCode, JobId, KeyVersion, Timestamp};

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It has work left; some replica holds its lease, or will.
    Running,
    /// It has work left, and nobody works on it until it is resumed.
    Paused,
    /// It went through all DEKs.
    Done,
    /// It was ended before that; what it re-wrapped stays so.
    Cancelled,
}

impl JobState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Running, Self::Paused, Self::Done, Self::Cancelled];

    /// The name in the database and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::Done => "DONE",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// The state of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether the job has work left. A tenant has one such job at most.
    pub fn is_live(self) -> bool {
        match self {
            Self::Running | Self::Paused => true,
            Self::Done | Self::Cancelled => false,
        }
    }
}

/// What an operator may have done with a job that is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobCommand {
    /// Nobody works on it until it is resumed.
    Pause,
    /// It is worked on again.
    Resume,
    /// It ends where it is.
    Cancel,
}

impl JobCommand {
    /// The word for it in the API, and in the detail of its entry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
        }
    }

    /// The state that it leads to.
    pub fn leads_to(self) -> JobState {
        match self {
            Self::Pause => JobState::Paused,
            Self::Resume => JobState::Running,
            Self::Cancel => JobState::Cancelled,
        }
    }

    /// Whether a job in this state takes it: one that is live, or that is where it leads to already.
    pub fn is_taken_by(self, state: JobState) -> bool {
        state.is_live() || state == self.leads_to()
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
    /// When it was done, or cancelled.
    pub finished_at: Option<Timestamp>,
}
