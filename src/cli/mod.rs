//! The command line, with one file for each subcommand. Only here, and in the server, does the code
//! name concrete providers and databases. Exit codes:
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the command failed: the log does not hold (`audit verify`), not done (`rotate`), … |
//! | 2 | the command line is not understood |
//! | 3 | the configuration has errors; each is named with its variable or file |
//! | 4 | `doctor` found a fault, or a `drill` a plaintext that came too late |
//! | 5 | the KMS refuses the key; work that was begun continues when the key is back |
//! | 6 | this binary cannot read the database's schema: nothing was checked |
//! | 141 | the reader of standard output closed it before the end |

#[macro_use]
mod output;

mod assemble;
mod audit;
mod dev;
mod dev_key;
mod doctor;
mod drill;
mod health;
mod memory;
mod migrate;
mod of_tenant;
mod policy;
mod reload;
mod rotate;
mod rotation_output;
mod schema;
mod serve;
mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::ConfigError;
use crate::store::MigrateError;

/// Field-level encryption for Hasura under a key that the customer holds in their own KMS.
#[derive(Parser)]
#[command(name = "byok", version, arg_required_else_help = true, propagate_version = true)]
#[command(after_help = "Configuration comes from the environment; `byok doctor` checks it. \
Exit codes: 0 done, 1 failed, 2 usage, 3 configuration, 4 doctor or drill found a fault, \
5 refused by the KMS, 6 the database has another schema.")]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve GraphQL and REST
    Serve,
    /// Serve everything on this machine with no configuration: an SQLite file and a local key under
    /// ./.byok
    Dev(dev::Arguments),
    /// Turn the key of `byok dev` off and on, or make a new version of it
    DevKey(dev_key::Arguments),
    /// Bring the database's schema up to date
    Migrate(migrate::Arguments),
    /// Re-wrap all DEKs under the current key version
    Rotate(rotate::Arguments),
    /// The audit log: verify it, export it, compare it with the KMS's log; its keys; legal hold,
    /// erasure, retention; the recovery after a restore
    Audit(Box<audit::Arguments>),
    /// Print the GraphQL schema, or the OpenAPI document
    Schema(schema::Arguments),
    /// Print the policy with the least privilege that byok needs on the configured key
    Policy(policy::Arguments),
    /// Mint a JWT for development
    Token(token::Arguments),
    /// Check configuration, database, roles and key, and say what is wrong, what that leaves
    /// unprotected, and what to do
    Doctor(of_tenant::OfTenant),
    /// Query the health of a running server, as a container's health check does; exit code 1 if it
    /// is not healthy
    Health(health::Arguments),
    /// Rehearse the kill switch on a running server with the real key, and write a signed report
    Drill(Box<drill::Arguments>),
}

/// The reason why a command ended without success.
enum Failure {
    /// The configuration has errors.
    Configuration(Vec<ConfigError>),
    /// The command failed; the sentence says at what.
    Running(String),
    /// The KMS refuses the use of the key; the sentence says what happens to work that was begun.
    Refused(String),
    /// The database's schema is older or newer than the one that this binary reads.
    Schema(MigrateError),
    /// `doctor` or a drill found a fault, and has reported it.
    FaultFound,
}

/// Runs the command of the process's command line.
pub fn run() -> ExitCode {
    let command = CommandLine::parse().command;
    no_core_dumps();
    as_many_files_as_permitted();
    // Installs the process's only TLS provider. This fails only if there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("byok: the runtime did not start: {error}");
            return ExitCode::from(1);
        }
    };
    let outcome = runtime.block_on(async {
        match command {
            Command::Serve => serve::run().await,
            Command::Dev(arguments) => dev::run(arguments).await,
            Command::DevKey(arguments) => dev_key::run(&arguments),
            Command::Migrate(arguments) => migrate::run(&arguments).await,
            Command::Rotate(arguments) => rotate::run(arguments).await,
            Command::Audit(arguments) => audit::run(*arguments).await,
            Command::Schema(arguments) => schema::run(&arguments),
            Command::Policy(arguments) => policy::run(&arguments),
            Command::Token(arguments) => token::run(&arguments),
            Command::Doctor(of) => doctor::run(&of.tenant).await,
            Command::Health(arguments) => health::run(arguments).await,
            Command::Drill(arguments) => drill::run(*arguments).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::FaultFound) => ExitCode::from(4),
        Err(Failure::Running(problem)) => {
            eprintln!("byok: {problem}");
            ExitCode::from(1)
        }
        Err(Failure::Refused(problem)) => {
            eprintln!("byok: {problem}");
            ExitCode::from(5)
        }
        Err(Failure::Schema(problem)) => {
            eprintln!("byok: the database was not read: {problem}");
            ExitCode::from(6)
        }
        Err(Failure::Configuration(errors)) => {
            let noun = if errors.len() == 1 { "error" } else { "errors" };
            eprintln!("byok: the configuration has {} {noun}:", errors.len());
            errors.iter().for_each(|error| eprintln!("  {error}"));
            ExitCode::from(3)
        }
    }
}

/// Disables core dumps, which would hold DEKs and plaintexts. A process that is not dumpable cannot
/// be traced by others either.
fn no_core_dumps() {
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// Raises the limit of open files. Each connection is a file, and the usual limit is 1,024, far
/// fewer than permitted.
fn as_many_files_as_permitted() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
}
