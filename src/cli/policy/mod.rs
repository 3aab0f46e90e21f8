//! `byok policy PROVIDER`: prints the rights that the customer has to grant byok at their KMS,
//! ready to be pasted: wrap and unwrap on the configured key, and nothing else. Rights for optional
//! features are listed separately. The command needs no credential, because the policy has to exist
//! first.

mod aws;
mod azure;
mod gcp;
mod vault;

use clap::{Args, ValueEnum};

use super::Failure;
use crate::config::{Env, Reader};

/// The KMS that the policy is for.
#[derive(Args)]
pub(super) struct Arguments {
    /// The KMS; the variables that name the key are read from the environment
    provider: Provider,
}

#[derive(Clone, Copy, ValueEnum)]
enum Provider {
    AwsKms,
    GcpKms,
    VaultTransit,
    AzureKeyVault,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let env = Env::of_process();
    let mut reader = Reader::new(&env);
    let policy = match arguments.provider {
        Provider::AwsKms => aws::policy(&mut reader),
        Provider::GcpKms => gcp::policy(&mut reader),
        Provider::VaultTransit => vault::policy(&mut reader),
        Provider::AzureKeyVault => azure::policy(&mut reader),
    };
    match reader.into_errors() {
        errors if errors.is_empty() => {
            print!("{policy}");
            Ok(())
        }
        errors => Err(Failure::Configuration(errors)),
    }
}
