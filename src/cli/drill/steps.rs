//! The steps of a drill: requests to the operator, waiting for answers of the server, and a line in
//! the terminal that shows the current step.

use std::process::Stdio;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::Failure;
use crate::model::{BootTime, Clock as _, SystemClock};

use super::decrypt_load::DecryptLoad;
use super::verdict::{Answer, KeySwitch, Sample};

/// The number of decrypts that must succeed before the key is turned off, so that their times are
/// meaningful.
const HOT: usize = 20;
/// The time limit for these decrypts.
const WARM_UP: Duration = Duration::from_secs(30);

/// A drill in progress.
pub(super) struct Drill {
    load: DecryptLoad,
    bar: ProgressBar,
}

impl Drill {
    pub(super) fn start(load: DecryptLoad) -> Self {
        Self { load, bar: bar() }
    }

    pub(super) fn samples(&self) -> Vec<Sample> {
        self.load.samples()
    }

    pub(super) fn say(&self, what: &str) {
        self.bar.suspend(|| eprintln!("{what}"));
    }

    pub(super) async fn warm_up(&self) -> Result<(), Failure> {
        let failed = |sample: &Sample| !matches!(sample.answer, Answer::Plaintext | Answer::Limited);
        for _ in 0..WARM_UP.as_millis() / 50 {
            let samples = self.load.samples();
            if let Some(sample) = samples.iter().find(|sample| failed(sample)) {
                let problem =
                    format!("the record cannot be decrypted while the key is on: {:?}", sample.answer);
                return Err(Failure::Running(problem));
            }
            if samples.iter().filter(|sample| sample.answer == Answer::Plaintext).count() >= HOT {
                return Ok(());
            }
            self.bar.set_message(format!("warming up: {} decrypts", samples.len()));
            self.bar.tick();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(Failure::Running("the warm-up failed: the server answered too few decrypts".to_owned()))
    }

    /// Has the operator turn the key on or off: runs and times a command, or asks for Enter, or
    /// waits for neither.
    pub(super) async fn switch_key(
        &self,
        which: &str,
        command: Option<&str>,
        at_refusal: bool,
    ) -> Result<KeySwitch, Failure> {
        let begun = SystemClock.boot();
        let done = match (command, at_refusal) {
            (Some(command), _) => {
                self.say(&format!("turning the key {which}"));
                shell(command).await?;
                Some(SystemClock.boot())
            }
            (None, true) => {
                self.say(&format!("turn the key {which}"));
                None
            }
            (None, false) => {
                self.say(&format!("turn the key {which} now, then press Enter"));
                Some(enter().await?)
            }
        };
        Ok(KeySwitch { begun, done })
    }

    /// Waits for a result of this kind, and returns when it arrived.
    pub(super) async fn until(
        &self,
        what: &str,
        patience: Duration,
        such: impl Fn(&Sample) -> bool,
    ) -> Option<BootTime> {
        let began = SystemClock.boot();
        loop {
            let found = self.load.find(&such);
            let waited = SystemClock.boot().since(began);
            if found.is_some() || waited > patience {
                return found;
            }
            self.bar.set_message(format!("waiting for {what}: {:.1} s", waited.as_secs_f64()));
            self.bar.tick();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) async fn watch_until(&self, moment: BootTime) {
        while SystemClock.boot() < moment {
            self.bar.set_message("looking for plaintexts that come too late");
            self.bar.tick();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(super) fn finish(self) -> Vec<Sample> {
        self.bar.finish_and_clear();
        self.load.end()
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Runs a command in the shell. Its output goes to standard error.
pub(super) async fn shell(command: &str) -> Result<(), Failure> {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(std::io::stderr());
    let result = tokio::task::spawn_blocking(move || shell.status()).await;
    match result {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(Failure::Running(format!("the command ended with {status}"))),
        Ok(Err(error)) => Err(Failure::Running(format!("the command did not start: {error}"))),
        Err(_) => Err(Failure::Running("the command was interrupted".to_owned())),
    }
}

/// Waits for Enter, and returns when it was pressed.
async fn enter() -> Result<BootTime, Failure> {
    let (pressed, moment) = tokio::sync::oneshot::channel();
    // Use a separate thread, so that the process can end while it waits.
    std::thread::spawn(move || {
        let read = std::io::stdin().read_line(&mut String::new());
        let _ = pressed.send(matches!(read, Ok(1..)).then(|| SystemClock.boot()));
    });
    let nobody = "standard input has ended: name --off-command and --on-command, or --at-refusal";
    moment.await.ok().flatten().ok_or_else(|| Failure::Running(nobody.to_owned()))
}
