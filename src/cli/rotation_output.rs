//! Shows the progress of a rotation for `byok rotate`. On a terminal this is one line that is
//! updated. Elsewhere it is a line for each change of state and, while the job runs, one every ten
//! seconds.

use std::io::{IsTerminal as _, stderr, stdout};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::model::{ErrorCode, Job, JobState};

/// The time between two lines of progress if the state does not change.
const INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct RotationOutput {
    /// The progress bar, on a terminal.
    bar: Option<ProgressBar>,
    state: JobState,
    why: Option<ErrorCode>,
    printed_at: Instant,
}

impl RotationOutput {
    pub(super) fn start(job: &Job) -> Self {
        let bar = (stdout().is_terminal() && stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(job.progress.total);
            let template = "{bar:40} {pos}/{len} DEKs  {per_sec}  {eta} left  {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        let output = Self { bar, state: job.state, why: None, printed_at: Instant::now() };
        output.print(&Self::state(job));
        output
    }

    /// Shows what is new. `why` is what the job waits for.
    pub(super) fn update(&mut self, job: &Job, why: Option<ErrorCode>) {
        if job.state != self.state {
            self.print(&Self::state(job));
        } else if why != self.why {
            let change = match why {
                Some(code) => format!("waiting: {}, {}", code.as_str(), code.message()),
                None => "continues".to_owned(),
            };
            self.print(&format!("rotation {}: {change}", job.id));
        } else if self.bar.is_none() && self.printed_at.elapsed() >= INTERVAL {
            self.print(&Self::state(job));
        } else {
            self.progress(job);
            return;
        }
        (self.state, self.why, self.printed_at) = (job.state, why, Instant::now());
        self.progress(job);
    }

    /// Removes the progress bar.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Returns a line that describes the job.
    pub(super) fn state(job: &Job) -> String {
        let done = job.progress.rewrapped + job.progress.failed;
        let Job { id, target, state, .. } = job;
        format!("rotation {id} to {target}: {}, {done} of {} DEKs", state.as_str(), job.progress.total)
    }

    fn progress(&self, job: &Job) {
        if let Some(bar) = &self.bar {
            bar.set_length(job.progress.total);
            bar.set_position(job.progress.rewrapped + job.progress.failed);
            bar.set_message(self.why.map_or("", ErrorCode::as_str));
        }
    }

    fn print(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => println!("{line}"),
        }
    }
}
