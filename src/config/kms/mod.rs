//! The KMS that holds the key: one file per provider, and what the providers have in common.
//! Nothing is sent from here: a KMS that is down does not prevent the server from starting.

mod aws;
mod azure;
mod gcp;
mod gcp_credentials;
mod vault;

use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::Reader;
use crate::crypto::SecretText;

pub use aws::{AwsCredentials, AwsKeyArn, AwsKeyName, AwsRole, AwsSettings};
pub use azure::{
    AzureAlgorithm, AzureCredential, AzureIdentitySource, AzureKey, AzureService, AzureSettings,
};
pub(crate) use azure::{is_azure_version, is_same_azure_authority};
pub use gcp::{GcpIdentity, GcpKey, GcpSettings};
pub use gcp_credentials::GcpCredentials;
pub use vault::{ClientCertificate, VaultKey, VaultLogin, VaultSettings};

/// The KMS that `BYOK_PROVIDER` names.
pub enum Kms {
    /// `aws-kms`: AWS KMS.
    Aws(Box<AwsSettings>),
    /// `gcp-kms`: Google Cloud KMS.
    Gcp(Box<GcpSettings>),
    /// `vault-transit`: HashiCorp Vault's or OpenBao's Transit engine.
    Vault(Box<VaultSettings>),
    /// `azure-key-vault`: a key in Azure Key Vault or a managed HSM.
    Azure(Box<AzureSettings>),
    /// `local`: a key in this file (`BYOK_LOCAL_KEY_FILE`, default `.byok/local-key.json`). It
    /// protects nothing from anyone who can read the file, so only `byok dev` accepts it.
    Local(PathBuf),
}

/// The key version that wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyVersionStrategy {
    /// `latest`: the KMS decides.
    Latest,
    /// The number of a version.
    Pinned(NonZeroU64),
}

/// A secret, or the file that currently holds it.
pub enum SecretSource {
    /// The secret itself.
    Text(SecretText),
    /// A file that is read at each use. One trailing line break is cut.
    File(PathBuf),
}

impl Kms {
    /// Reads the section. Returns `None` if an error was recorded. `allow_local` is for `byok dev`
    /// and tests.
    pub fn read(reader: &mut Reader<'_>, allow_local: bool) -> Option<Self> {
        const WHAT: &str =
            "the KMS that holds the key: `aws-kms`, `gcp-kms`, `vault-transit` or `azure-key-vault`";
        let before = reader.error_count();
        let name = reader.required("BYOK_PROVIDER", WHAT);
        let kms = match name.as_str() {
            "aws-kms" => AwsSettings::read(reader).map(|settings| Self::Aws(Box::new(settings))),
            "gcp-kms" => GcpSettings::read(reader).map(|settings| Self::Gcp(Box::new(settings))),
            "vault-transit" => VaultSettings::read(reader).map(|settings| Self::Vault(Box::new(settings))),
            "azure-key-vault" => AzureSettings::read(reader).map(|settings| Self::Azure(Box::new(settings))),
            "local" if allow_local => {
                if reader.text("BYOK_KEY_VERSION_STRATEGY").is_some_and(|text| text != "latest") {
                    reader.error(
                        "BYOK_KEY_VERSION_STRATEGY",
                        "must be `latest`: the local key pins no version",
                    );
                }
                let path = reader.text("BYOK_LOCAL_KEY_FILE");
                Some(Self::Local(path.unwrap_or_else(|| ".byok/local-key.json".to_owned()).into()))
            }
            "local" => {
                reader.error(
                    "BYOK_PROVIDER",
                    format!("is `local`, which only `byok dev` takes; it takes {WHAT}"),
                );
                None
            }
            "" => None,
            _ => {
                reader.error("BYOK_PROVIDER", format!("names no known KMS; it takes {WHAT}"));
                None
            }
        };
        kms.filter(|_| reader.error_count() == before)
    }

    /// Returns whether wrapping needs no secret, as with a public key. If so, anybody may have made
    /// a wrapped DEK.
    pub fn anybody_wraps(&self) -> bool {
        matches!(self, Self::Azure(settings) if settings.key.algorithm.anybody_wraps())
    }

    /// Sets the limit on requests per minute (`BYOK_KMS_CALLS_PER_MINUTE`). A key in a file has no
    /// costs and no limit.
    pub fn limit_calls(&mut self, per_minute: Option<NonZeroU32>) {
        match self {
            Self::Aws(settings) => settings.calls_per_minute = per_minute,
            Self::Gcp(settings) => settings.calls_per_minute = per_minute,
            Self::Vault(settings) => settings.calls_per_minute = per_minute,
            Self::Azure(settings) => settings.calls_per_minute = per_minute,
            Self::Local(_) => {}
        }
    }
}

impl KeyVersionStrategy {
    /// Reads the strategy for providers whose versions are numbers.
    fn read(reader: &mut Reader<'_>) -> Self {
        match reader.text("BYOK_KEY_VERSION_STRATEGY").as_deref() {
            None | Some("latest") => Self::Latest,
            Some(text) => text.parse().map(Self::Pinned).unwrap_or_else(|_| {
                reader.error(
                    "BYOK_KEY_VERSION_STRATEGY",
                    "is neither `latest` nor the number of a key version",
                );
                Self::Latest
            }),
        }
    }
}

/// Reads `BYOK_KMS_TIMEOUT_MS`: how long a call to the KMS may take, including retries and logins.
fn timeout(reader: &mut Reader<'_>) -> Duration {
    Duration::from_millis(reader.number("BYOK_KMS_TIMEOUT_MS", 5_000, 100..=60_000))
}

/// Reads the address of a KMS, if it is set. It must be https, because over plain HTTP everyone on
/// the network path could read the credential and every DEK. Plain HTTP is accepted to this
/// machine; elsewhere only if a flag for it exists and is set.
fn endpoint(reader: &mut Reader<'_>, name: &str, http_flag: Option<&str>) -> Option<Url> {
    let allow_http = http_flag.is_some_and(|flag| reader.flag(flag, false));
    let text = reader.text(name)?;
    let Ok(address) = Url::parse(&text) else {
        reader.error(name, "is not an address such as `https://kms.example.com:8200`");
        return None;
    };
    let problem = match address.scheme() {
        "https" => None,
        "http" if is_loopback(&address) || allow_http => None,
        "http" => {
            let or = http_flag.map(|flag| format!(", or set {flag}=true if the network between is private"));
            Some(format!("is plain HTTP to another machine: use https{}", or.unwrap_or_default()))
        }
        _ => Some("is neither https nor http".to_owned()),
    };
    let extra = !address.username().is_empty()
        || address.password().is_some()
        || address.query().is_some()
        || address.fragment().is_some();
    match problem.or(extra.then(|| "holds more than scheme, host, port and path".to_owned())) {
        Some(problem) => {
            reader.error(name, problem);
            None
        }
        None => Some(address),
    }
}

/// Reads byok's credentials for AWS services other than KMS.
pub(super) use aws::credentials as aws_credentials;

/// Returns whether the address is on this machine.
pub(super) fn is_loopback(address: &Url) -> bool {
    address.host_str().is_some_and(|host| {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

/// Reads a secret that is read again later if it is in a file. It is also read once here, so that a
/// error shows at the start.
fn secret_source(reader: &mut Reader<'_>, name: &str) -> Option<SecretSource> {
    let now = reader.secret(name)?;
    if !now.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
        reader.error(name, "holds a character that is not visible ASCII");
        return None;
    }
    let file_variable = format!("{name}_FILE");
    reader.read_at_each_use(&file_variable);
    Some(match reader.text(&file_variable) {
        Some(path) => SecretSource::File(path.into()),
        None => SecretSource::Text(now),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    fn wrong(provider: &str) -> Vec<String> {
        let env = Env::from_pairs([("BYOK_PROVIDER", provider)]);
        let mut reader = Reader::new(&env);
        assert!(Kms::read(&mut reader, false).is_none());
        reader.into_errors().into_iter().map(|error| error.variable).collect()
    }

    #[test]
    fn the_local_key_is_for_dev_only() {
        assert_eq!(wrong("local"), ["BYOK_PROVIDER"]);
        let env = Env::from_pairs([("BYOK_PROVIDER", "local")]);
        assert!(matches!(Kms::read(&mut Reader::new(&env), true), Some(Kms::Local(_))));
    }

    #[test]
    fn a_provider_that_is_not_known_is_an_error() {
        assert_eq!(wrong("pigeon"), ["BYOK_PROVIDER"]);
        assert_eq!(wrong(""), ["BYOK_PROVIDER"]);
    }
}
