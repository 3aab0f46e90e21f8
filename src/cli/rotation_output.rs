//! Shows the progress of a rotation for `byok rotate`. On a terminal this is one line that is
//! updated. Elsewhere it is a line for each change of state and, while the job runs, one every ten
//! seconds.

use std::io::{IsTerminal as _, stderr, stdout};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::model::{ErrorCode, Job, JobState};

/// The time between two lines of progress if the state does not change.
const EVERY: Duration = Duration::from_secs(10);

pub(super) struct Shown {
    /// The progress bar, on a terminal.
    bar: Option<ProgressBar>,
    state: JobState,
    why: Option<ErrorCode>,
    said_at: Instant,
}

impl Shown {
    pub(super) fn start(job: &Job) -> Self {
        let bar = (stdout().is_terminal() && stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(job.progress.total);
            let template = "{bar:40} {pos}/{len} DEKs  {per_sec}  {eta} left  {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        let shown = Self { bar, state: job.state, why: None, said_at: Instant::now() };
        shown.say(&Self::state(job));
        shown
    }

    /// Shows what is new. `why` is what the job waits for.
    pub(super) fn look(&mut self, job: &Job, why: Option<ErrorCode>) {
        if job.state != self.state {
            self.say(&Self::state(job));
        } else if why != self.why {
            let said = match why {
                Some(code) => format!("waiting: {}, {}", code.as_str(), code.message()),
                None => "continues".to_owned(),
            };
            self.say(&format!("rotation {}: {said}", job.id));
        } else if self.bar.is_none() && self.said_at.elapsed() >= EVERY {
            self.say(&Self::state(job));
        } else {
            self.progress(job);
            return;
        }
        (self.state, self.why, self.said_at) = (job.state, why, Instant::now());
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

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => println!("{line}"),
        }
    }
}
