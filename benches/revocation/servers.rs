//! The test servers of `scripts/servers`. The tests' support reads their addresses from the
//! environment.

use std::process::{Command, ExitCode, Stdio};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/servers");

/// Runs the bench of this name with the servers, and with the arguments of its command line.
pub(crate) fn bench<A>(
    name: &str,
    read: impl FnOnce(&[String]) -> Result<A, String>,
    run: impl FnOnce(&A) -> Result<(), String>,
) -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let arguments = match read(&words) {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("{name}: {problem}");
            return ExitCode::from(2);
        }
    };
    let outcome = if Servers::are_started() {
        run(&arguments)
    } else {
        Servers::start().and_then(|servers| servers.run_this_again(&words))
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{name}: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of the servers, which are stopped when this is dropped.
struct Servers(String);

impl Servers {
    /// Whether this process has the servers' addresses in its environment.
    #[expect(clippy::disallowed_methods, reason = "the tests' own environment")]
    fn are_started() -> bool {
        std::env::var("BYOK_TEST_VAULT_ADDR").is_ok()
    }

    fn start() -> Result<Self, String> {
        let output = Command::new(SCRIPT).arg("start").stderr(Stdio::inherit()).output();
        let output = output.map_err(|error| format!("{SCRIPT}: {error}"))?;
        if output.status.success() {
            Ok(Self(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
        } else {
            Err(format!("{SCRIPT} start failed"))
        }
    }

    /// Runs this binary again, with the servers' addresses in its environment.
    fn run_this_again(&self, words: &[String]) -> Result<(), String> {
        let file = std::fs::read_to_string(format!("{}/env", self.0)).map_err(|error| error.to_string())?;
        let variables = file.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        let this = std::env::current_exe().map_err(|error| error.to_string())?;
        let status =
            Command::new(this).args(words).envs(variables).status().map_err(|error| error.to_string())?;
        if status.success() { Ok(()) } else { Err("the bench failed".to_owned()) }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = Command::new(SCRIPT).args(["stop", &self.0]).status();
    }
}
