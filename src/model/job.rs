//! The rotation job.

use super::{ErrorCode, JobId, KeyVersion, Timestamp};

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It has work left; a replica holds its lease, or will.
    Running,
    /// It has work left, and waits to be resumed.
    Paused,
    /// It went through all DEKs.
    Done,
    /// It was ended before it went through all DEKs; those it re-wrapped stay re-wrapped.
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

/// A command of an operator for a live job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobCommand {
    /// Pause the job until it is resumed.
    Pause,
    /// Resume the paused job.
    Resume,
    /// End the job early.
    Cancel,
}

impl JobCommand {
    /// The name in the API, and in the detail of its entry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
        }
    }

    /// The state after the command.
    pub fn leads_to(self) -> JobState {
        match self {
            Self::Pause => JobState::Paused,
            Self::Resume => JobState::Running,
            Self::Cancel => JobState::Cancelled,
        }
    }

    /// Whether a job in this state accepts the command: if it is live, or already in the state
    /// after the command.
    pub fn is_taken_by(self, state: JobState) -> bool {
        state.is_live() || state == self.leads_to()
    }
}

/// The progress of a job. All counts except `kms_calls` are of DEKs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The DEKs to re-wrap, counted when the job began.
    pub total: u64,
    /// The DEKs re-wrapped by this job.
    pub rewrapped: u64,
    /// The DEKs skipped, since they had the target version already.
    pub skipped: u64,
    /// The DEKs that the KMS refused to re-wrap, such as one altered in the database.
    pub failed: u64,
    /// The calls to the KMS.
    pub kms_calls: u64,
}

/// A rotation: every DEK of a tenant is re-wrapped under one key version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The id of the job.
    pub id: JobId,
    /// The state.
    pub state: JobState,
    /// The version that DEKs are re-wrapped under.
    pub target: KeyVersion,
    /// The progress.
    pub progress: Progress,
    /// Why it makes no progress at the moment, such as a KMS out of reach; `None` while it does.
    pub stalled: Option<ErrorCode>,
    /// When it was started.
    pub started_at: Timestamp,
    /// When it last committed its progress.
    pub updated_at: Timestamp,
    /// When it was done or cancelled.
    pub finished_at: Option<Timestamp>,
}
