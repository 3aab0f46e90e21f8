//! Dispatch only: the command line lives in `byok::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    byok::cli::run()
}
