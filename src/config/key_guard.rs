//! How closely a key is watched.

use std::time::Duration;

use super::Reader;

/// How often a key in use is tested, and how soon it is used again after it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyGuard {
    /// `BYOK_KEY_PROBE_SECONDS`: the time between two probes of a key version whose DEKs are in
    /// memory.
    pub probe_every: Duration,
    /// `BYOK_KEY_PROBE_TIMEOUT_MS`: the time limit for the answer to a probe.
    pub probe_timeout: Duration,
    /// `BYOK_KEY_RESUME_SECONDS`: how long probes must succeed, without a failure, before a revoked
    /// key is used again.
    pub resume_after: Duration,
}

impl KeyGuard {
    /// Reads the section.
    pub fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            probe_every: Duration::from_secs(reader.number("BYOK_KEY_PROBE_SECONDS", 1, 1..=60)),
            probe_timeout: Duration::from_millis(reader.number(
                "BYOK_KEY_PROBE_TIMEOUT_MS",
                2_000,
                100..=30_000,
            )),
            resume_after: Duration::from_secs(reader.number("BYOK_KEY_RESUME_SECONDS", 3, 0..=3_600)),
        }
    }

    /// Returns A: the largest age of the last successful probe under which byok may answer.
    pub fn bound(&self) -> Duration {
        self.probe_every + self.probe_timeout
    }
}
