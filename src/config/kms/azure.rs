//! A key in Azure Key Vault or a managed HSM: its name, its cloud, and byok's identity.
//!
//! This module restricts where a request may go. The vault's host must be one label before a suffix
//! that Microsoft owns (a private endpoint keeps that public name; only its address differs). The
//! authority must belong to the same cloud, and the metadata service must be the one that every
//! Azure machine has. Loopback may replace each of them.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::{SecretSource, endpoint, is_loopback, secret_source, timeout};
use crate::config::Reader;

/// How to reach the key, and byok's identity.
pub struct AzureSettings {
    /// The key.
    pub key: AzureKey,
    /// `BYOK_AZURE_TENANT_ID`: the customer's Entra tenant. A managed identity needs none. If a
    /// tenant is set, the vault's challenge must match it.
    pub tenant: Option<String>,
    /// `BYOK_AZURE_AUTHORITY_HOST`: the authority that issues tokens. The default depends on the
    /// cloud.
    pub authority: Url,
    /// byok's credential.
    pub credential: AzureCredential,
    /// `BYOK_AZURE_CA_FILE`: certificates in PEM. If set, only these are trusted, and the system's
    /// are not.
    pub ca_file: Option<PathBuf>,
    /// `BYOK_KMS_TIMEOUT_MS`: how long a call may take, including retries and tokens; default 5000.
    pub timeout: Duration,
    /// `BYOK_KMS_CALLS_PER_MINUTE`: the largest number of requests per minute; `None` means no
    /// limit.
    pub calls_per_minute: Option<NonZeroU32>,
}

/// The key; this is all that `byok policy` needs to know.
#[derive(Clone)]
pub struct AzureKey {
    /// The vault in `BYOK_AZURE_KEY_ID`: `https://<vault>.vault.azure.net`.
    pub vault: Url,
    /// The key's name in `BYOK_AZURE_KEY_ID`.
    pub name: String,
    /// The version that wraps, from `BYOK_AZURE_KEY_ID` or `BYOK_KEY_VERSION_STRATEGY`: 32 hex
    /// digits. `None` means the current version.
    pub version: Option<String>,
    /// The service that holds the key.
    pub service: AzureService,
    /// The audience of byok's tokens, and the only resource that a challenge may name:
    /// `https://vault.azure.net`.
    pub resource: String,
    /// `BYOK_AZURE_ALGORITHM`: how the key wraps.
    pub algorithm: AzureAlgorithm,
}

/// The service that holds a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AzureService {
    /// Azure Key Vault.
    Vault,
    /// Azure Key Vault Managed HSM.
    ManagedHsm,
}

/// How a key wraps. The value is Azure's own name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AzureAlgorithm {
    /// `RSA-OAEP-256`: an RSA key of 2048, 3072 or 4096 bits.
    RsaOaep256,
    /// `A256KW`: AES key wrap (RFC 3394) under a symmetric key of 256 bits, which only a managed
    /// HSM has.
    A256Kw,
}

impl AzureAlgorithm {
    /// Returns whether wrapping needs only the public half of the key.
    pub fn anybody_wraps(self) -> bool {
        match self {
            Self::RsaOaep256 => true,
            Self::A256Kw => false,
        }
    }

    /// Returns Azure's name of the algorithm.
    pub fn name(self) -> &'static str {
        match self {
            Self::RsaOaep256 => "RSA-OAEP-256",
            Self::A256Kw => "A256KW",
        }
    }
}

/// How byok gets a token.
pub enum AzureCredential {
    /// `BYOK_AZURE_CLIENT_SECRET` or its `_FILE` variant.
    ClientSecret {
        /// `BYOK_AZURE_CLIENT_ID`.
        client_id: String,
        /// The secret. It is read again for each token if it is in a file.
        secret: SecretSource,
    },
    /// A token of another issuer, such as that of a Kubernetes service account.
    WorkloadIdentity {
        /// `BYOK_AZURE_CLIENT_ID`, else `AZURE_CLIENT_ID`.
        client_id: String,
        /// `BYOK_AZURE_FEDERATED_TOKEN_FILE`, else `AZURE_FEDERATED_TOKEN_FILE`. It is read again
        /// for each token.
        token_file: PathBuf,
    },
    /// The identity of the machine or app that byok runs on.
    ManagedIdentity {
        /// `BYOK_AZURE_CLIENT_ID`, else `AZURE_CLIENT_ID`: a user-assigned identity. `None` means
        /// the system-assigned one.
        client_id: Option<String>,
        /// The source of the tokens.
        source: AzureIdentitySource,
    },
}

/// The source of tokens of managed identities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AzureIdentitySource {
    /// The instance metadata service: `http://169.254.169.254`, or one on loopback
    /// (`BYOK_AZURE_IMDS_HOST`).
    Imds(Url),
    /// The endpoint that App Service and Container Apps name in `IDENTITY_ENDPOINT`: loopback or
    /// link-local.
    Endpoint(Url),
}

/// A cloud: its authorities, and the suffixes of its vaults and managed HSMs, from the page "Azure
/// Key Vault security domains and endpoints". The first authority is the default; the others are
/// aliases that a vault's challenge may use.
struct Cloud {
    authorities: &'static [&'static str],
    vault: &'static str,
    managed_hsm: &'static str,
}

const CLOUDS: [Cloud; 3] = [
    Cloud {
        authorities: &[
            "login.microsoftonline.com",
            "login.windows.net",
            "login.microsoft.com",
            "sts.windows.net",
        ],
        vault: "vault.azure.net",
        managed_hsm: "managedhsm.azure.net",
    },
    Cloud {
        authorities: &["login.chinacloudapi.cn", "login.partner.microsoftonline.cn"],
        vault: "vault.azure.cn",
        managed_hsm: "managedhsm.azure.cn",
    },
    Cloud {
        authorities: &["login.microsoftonline.us", "login.usgovcloudapi.net"],
        vault: "vault.usgovcloudapi.net",
        managed_hsm: "managedhsm.usgovcloudapi.net",
    },
];

/// The address of the metadata service on every Azure machine.
const IMDS: &str = "http://169.254.169.254";

impl AzureKey {
    /// Reads the name of the key, and no credential. Returns `None` if an error was recorded.
    pub fn read(reader: &mut Reader<'_>) -> Option<Self> {
        const NAME: &str = "BYOK_AZURE_KEY_ID";
        const WHAT: &str = "a key's URL, such as `https://my-vault.vault.azure.net/keys/my-key`";
        let before = reader.error_count();
        if reader.required(NAME, WHAT).is_empty() {
            return None;
        }
        let url = endpoint(reader, NAME, None)?;
        if url.scheme() != "https" {
            reader.error(NAME, "is plain HTTP, over which Azure's client sends no token: use https");
        }
        let segments: Vec<_> = url.path_segments().map(Iterator::collect).unwrap_or_default();
        let (name, in_url) = match segments[..] {
            ["keys", name] => (name, None),
            ["keys", name, version] => (name, Some(version)),
            _ => {
                reader.error(NAME, format!("is not {WHAT}"));
                return None;
            }
        };
        if !is_key_name(name) {
            reader.error(NAME, "names no key: 1 to 127 letters, digits and `-`");
        }
        if in_url.is_some_and(|version| !is_azure_version(version)) {
            reader.error(NAME, "names no key version: 32 hexadecimal digits");
        }
        let service = service_of(&url);
        if service.is_none() {
            let suffixes: Vec<_> = CLOUDS.iter().flat_map(|cloud| [cloud.vault, cloud.managed_hsm]).collect();
            let suffixes = suffixes.join(", ");
            reader.error(NAME, format!("names a host that is not a vault: one label before {suffixes}"));
        }
        let algorithm = match reader.text("BYOK_AZURE_ALGORITHM").as_deref() {
            None | Some("RSA-OAEP-256") => AzureAlgorithm::RsaOaep256,
            Some("A256KW")
                if service.as_ref().is_none_or(|(service, _)| *service != Some(AzureService::Vault)) =>
            {
                AzureAlgorithm::A256Kw
            }
            Some("A256KW") => {
                reader.error("BYOK_AZURE_ALGORITHM", "is `A256KW`, which only a managed HSM's keys have");
                AzureAlgorithm::A256Kw
            }
            Some(_) => {
                reader.error("BYOK_AZURE_ALGORITHM", "is neither `RSA-OAEP-256` nor `A256KW`");
                AzureAlgorithm::RsaOaep256
            }
        };
        let version = version(reader, in_url);
        let (service, resource) = service?;
        // On loopback only the algorithm indicates the service.
        let service = service.unwrap_or(match algorithm {
            AzureAlgorithm::RsaOaep256 => AzureService::Vault,
            AzureAlgorithm::A256Kw => AzureService::ManagedHsm,
        });
        let resource = resource.unwrap_or(match service {
            AzureService::Vault => CLOUDS[0].vault,
            AzureService::ManagedHsm => CLOUDS[0].managed_hsm,
        });
        let mut vault = url.clone();
        vault.set_path("");
        let key = Self {
            vault,
            name: name.to_owned(),
            version,
            service,
            resource: format!("https://{resource}"),
            algorithm,
        };
        (reader.error_count() == before).then_some(key)
    }
}

impl AzureSettings {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let key = AzureKey::read(reader);
        let authority = authority(reader, key.as_ref());
        let tenant = guid(reader, &["BYOK_AZURE_TENANT_ID", "AZURE_TENANT_ID"]);
        let credential = credential(reader);
        if tenant.is_none() && !matches!(credential, Some(AzureCredential::ManagedIdentity { .. }) | None) {
            missing(reader, "BYOK_AZURE_TENANT_ID", "the customer's Entra tenant id");
        }
        let ca_file = reader.file("BYOK_AZURE_CA_FILE");
        let timeout = timeout(reader);
        let (key, authority, credential) = (key?, authority?, credential?);
        Some(Self { key, tenant, authority, credential, ca_file, timeout, calls_per_minute: None })
    }
}

/// Returns whether `other` is the same authority, possibly under another of its names. On loopback,
/// where the proxies of tests come and go, every port counts as the same. Nothing is ever sent to
/// the authority that a challenge names.
pub(crate) fn is_same_azure_authority(authority: &Url, other: &Url) -> bool {
    let (Some(host), Some(other_host)) = (authority.host_str(), other.host_str()) else { return false };
    let aliases = |cloud: &&Cloud| cloud.authorities.contains(&host);
    is_loopback(authority) && is_loopback(other)
        || other.scheme() == "https"
            && other.port().is_none()
            && CLOUDS.iter().find(aliases).is_some_and(|cloud| cloud.authorities.contains(&other_host))
}

/// Returns the service that a URL's host belongs to and the host's suffix. On loopback both are
/// unknown. Returns `None` for any other host.
fn service_of(url: &Url) -> Option<(Option<AzureService>, Option<&'static str>)> {
    if is_loopback(url) {
        return Some((None, None));
    }
    let (label, suffix) = url.host_str()?.split_once('.')?;
    let known = CLOUDS.iter().find_map(|cloud| match suffix {
        _ if suffix == cloud.vault => Some((AzureService::Vault, cloud.vault)),
        _ if suffix == cloud.managed_hsm => Some((AzureService::ManagedHsm, cloud.managed_hsm)),
        _ => None,
    });
    let (service, suffix) = known.filter(|_| url.port().is_none() && is_key_name(label))?;
    Some((Some(service), Some(suffix)))
}

/// Reads the version that wraps: pinned in the URL, or set by the strategy.
fn version(reader: &mut Reader<'_>, in_url: Option<&str>) -> Option<String> {
    const NAME: &str = "BYOK_KEY_VERSION_STRATEGY";
    let strategy = reader.text(NAME);
    match (strategy.as_deref(), in_url) {
        (None, version) => version.map(str::to_ascii_lowercase),
        (Some("latest"), None) => None,
        (Some("latest"), Some(_)) => {
            reader.error(NAME, "is `latest`, and BYOK_AZURE_KEY_ID names a version: keep one of them");
            None
        }
        (Some(text), _) if !is_azure_version(text) => {
            reader.error(NAME, "is neither `latest` nor a key version: 32 hexadecimal digits");
            None
        }
        (Some(text), Some(version)) if !text.eq_ignore_ascii_case(version) => {
            reader.error(NAME, "names another version than BYOK_AZURE_KEY_ID: keep one of them");
            None
        }
        (Some(text), _) => Some(text.to_ascii_lowercase()),
    }
}

fn authority(reader: &mut Reader<'_>, key: Option<&AzureKey>) -> Option<Url> {
    let names = ["BYOK_AZURE_AUTHORITY_HOST", "AZURE_AUTHORITY_HOST"];
    let cloud = CLOUDS.iter().find(|cloud| {
        key.is_some_and(|key| {
            [cloud.vault, cloud.managed_hsm].iter().any(|host| key.resource.ends_with(host))
        })
    });
    let cloud = cloud.unwrap_or(&CLOUDS[0]);
    let Some(name) = names.into_iter().find(|name| reader.is_set(name)) else {
        return Url::parse(&format!("https://{}", cloud.authorities[0])).ok();
    };
    let mut url = endpoint(reader, name, None)?;
    let known = url.host_str().is_some_and(|host| cloud.authorities.contains(&host)) && url.port().is_none();
    if url.scheme() != "https" || url.path() != "/" || !(known || is_loopback(&url)) {
        let takes = cloud.authorities.join("` or `https://");
        reader.error(name, format!("is not an authority of the key's cloud; it takes `https://{takes}`"));
        return None;
    }
    url.set_path("");
    Some(url)
}

fn credential(reader: &mut Reader<'_>) -> Option<AzureCredential> {
    const KIND: &str = "BYOK_AZURE_CREDENTIAL";
    const SECRET: &str = "BYOK_AZURE_CLIENT_SECRET";
    const TOKEN_FILE: &str = "BYOK_AZURE_FEDERATED_TOKEN_FILE";
    let client_id = guid(reader, &["BYOK_AZURE_CLIENT_ID", "AZURE_CLIENT_ID"]);
    let kind = match (reader.text(KIND), reader.is_set(SECRET), reader.is_set(TOKEN_FILE)) {
        (Some(kind), ..) => kind,
        (None, true, true) => {
            let both =
                format!("is not set, and both {SECRET} and {TOKEN_FILE} are: set it to choose one of them");
            reader.error(KIND, both);
            return None;
        }
        (None, true, false) => "client-secret".to_owned(),
        (None, false, true) => "workload-identity".to_owned(),
        (None, false, false) if reader.is_set("AZURE_FEDERATED_TOKEN_FILE") => "workload-identity".to_owned(),
        (None, false, false) => "managed-identity".to_owned(),
    };
    let required = |reader: &mut Reader<'_>| {
        if client_id.is_none() {
            missing(reader, "BYOK_AZURE_CLIENT_ID", "the application's client id");
        }
        client_id.clone()
    };
    match kind.as_str() {
        "client-secret" => {
            let client_id = required(reader);
            if !reader.is_set(SECRET) {
                missing(reader, SECRET, "the application's secret");
            }
            let secret = secret_source(reader, SECRET)?;
            Some(AzureCredential::ClientSecret { client_id: client_id?, secret })
        }
        "workload-identity" => {
            let client_id = required(reader);
            const TOKEN_FILES: [&str; 2] = [TOKEN_FILE, "AZURE_FEDERATED_TOKEN_FILE"];
            let token_file = TOKEN_FILES.into_iter().find_map(|name| reader.file(name));
            TOKEN_FILES.into_iter().for_each(|name| reader.read_at_each_use(name));
            if token_file.is_none() {
                missing(reader, TOKEN_FILE, "a file that holds a token of the trusted issuer");
            }
            Some(AzureCredential::WorkloadIdentity { client_id: client_id?, token_file: token_file? })
        }
        "managed-identity" => {
            Some(AzureCredential::ManagedIdentity { client_id, source: identity_source(reader)? })
        }
        _ => {
            reader.error(KIND, "is neither `client-secret` nor `workload-identity` nor `managed-identity`");
            None
        }
    }
}

fn identity_source(reader: &mut Reader<'_>) -> Option<AzureIdentitySource> {
    const ENDPOINT: &str = "IDENTITY_ENDPOINT";
    const HOST: &str = "BYOK_AZURE_IMDS_HOST";
    if let Some(text) = reader.text(ENDPOINT) {
        let url = Url::parse(&text).ok().filter(|url| is_loopback(url) || is_link_local(url));
        if url.is_none() {
            reader.error(
                ENDPOINT,
                "is not an address of this machine, such as App Service and Container Apps set",
            );
        }
        return url.map(AzureIdentitySource::Endpoint);
    }
    if !reader.is_set(HOST) {
        return Url::parse(IMDS).ok().map(AzureIdentitySource::Imds);
    }
    let url = endpoint(reader, HOST, None)?;
    if !is_loopback(&url) || url.path() != "/" {
        reader.error(HOST, format!("is not on this machine; without it the service is {IMDS}"));
        return None;
    }
    Some(AzureIdentitySource::Imds(url))
}

fn is_link_local(url: &Url) -> bool {
    let host = url.host_str().and_then(|host| host.parse::<IpAddr>().ok());
    matches!(host, Some(IpAddr::V4(ip)) if ip.is_link_local())
}

/// Reads an id in Entra's form, from the first of these variables that is set.
fn guid(reader: &mut Reader<'_>, names: &[&str]) -> Option<String> {
    let (name, text) = names.iter().find_map(|name| Some((name, reader.text(name)?)))?;
    if text.len() != 36 || uuid::Uuid::try_parse(&text).is_err() {
        reader.error(name, "is not an id such as `00000000-0000-0000-0000-000000000000`");
    }
    Some(text.to_ascii_lowercase())
}

fn missing(reader: &mut Reader<'_>, name: &str, what: &str) {
    reader.error(name, format!("is not set; it takes {what}"));
}

/// Returns whether Azure accepts the text as the name of a key. Such a name contains nothing with a
/// meaning in a URL.
fn is_key_name(text: &str) -> bool {
    (1..=127).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Returns whether the text has the form of a version's id in Azure.
pub(crate) fn is_azure_version(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::kms::Kms;
    use crate::config::{ConfigError, Env};

    const KEY: &str = "https://my-vault.vault.azure.net/keys/my-key";
    const VERSION: &str = "0123456789abcdef0123456789ABCDEF";
    const ID: &str = "6f9619ff-8b86-d011-b42d-00c04fc964ff";

    fn azure() -> Env {
        Env::from_pairs([
            ("BYOK_PROVIDER", "azure-key-vault"),
            ("BYOK_AZURE_KEY_ID", KEY),
            ("BYOK_AZURE_TENANT_ID", ID),
            ("BYOK_AZURE_CLIENT_ID", ID),
            ("BYOK_AZURE_CLIENT_SECRET", "canary"),
        ])
    }

    fn managed() -> Env {
        Env::from_pairs([("BYOK_PROVIDER", "azure-key-vault"), ("BYOK_AZURE_KEY_ID", KEY)])
    }

    fn read(env: &Env) -> Result<AzureSettings, Vec<ConfigError>> {
        let mut reader = Reader::new(env);
        let kms = Kms::read(&mut reader, false);
        let errors = reader.into_errors();
        assert!(errors.iter().all(|error| !error.to_string().contains("canary")));
        match kms {
            Some(Kms::Azure(settings)) if errors.is_empty() => Ok(*settings),
            _ => Err(errors),
        }
    }

    fn settings(env: &Env) -> AzureSettings {
        read(env).unwrap_or_else(|errors| panic!("{errors:?}"))
    }

    fn wrong(env: &Env) -> Vec<String> {
        read(env).err().unwrap().into_iter().map(|error| error.variable).collect()
    }

    #[test]
    fn a_key_and_a_secret_are_enough() {
        let settings = settings(&azure());
        assert_eq!(settings.key.vault.as_str(), "https://my-vault.vault.azure.net/");
        assert_eq!(settings.key.name, "my-key");
        assert_eq!(settings.key.version, None);
        assert_eq!(settings.key.algorithm, AzureAlgorithm::RsaOaep256);
        assert_eq!(settings.authority.as_str(), "https://login.microsoftonline.com/");
        assert!(matches!(settings.credential, AzureCredential::ClientSecret { .. }));
        assert_eq!(settings.timeout, Duration::from_secs(5));
    }

    #[test]
    fn the_host_decides_service_resource_and_authority() {
        for (host, service, resource, authority) in [
            ("vault.azure.net", AzureService::Vault, "https://vault.azure.net", "login.microsoftonline.com"),
            (
                "managedhsm.azure.net",
                AzureService::ManagedHsm,
                "https://managedhsm.azure.net",
                "login.microsoftonline.com",
            ),
            ("vault.azure.cn", AzureService::Vault, "https://vault.azure.cn", "login.chinacloudapi.cn"),
            (
                "managedhsm.usgovcloudapi.net",
                AzureService::ManagedHsm,
                "https://managedhsm.usgovcloudapi.net",
                "login.microsoftonline.us",
            ),
        ] {
            let settings = settings(&azure().with("BYOK_AZURE_KEY_ID", &format!("https://a.{host}/keys/k")));
            assert_eq!(settings.key.service, service);
            assert_eq!(settings.key.resource, resource);
            assert_eq!(settings.authority.host_str(), Some(authority));
        }
    }

    #[test]
    fn a_host_that_is_not_microsofts_is_an_error() {
        for bad in [
            "https://vault.azure.net/keys/k",
            "https://a.b.vault.azure.net/keys/k",
            "https://a.vault.azure.net.evil.net/keys/k",
            "https://a.privatelink.vaultcore.azure.net/keys/k",
            "https://a.vault.azure.net:8443/keys/k",
            "https://a@evil.net/keys/k",
            "https://kms.example.com/keys/k",
            "http://a.vault.azure.net/keys/k",
            "http://127.0.0.1/keys/k",
            "https://a.vault.azure.net/secrets/k",
            "https://a.vault.azure.net/keys/k/",
            "https://a.vault.azure.net/keys/k/1",
            "https://a.vault.azure.net/keys/a%2Fb",
            "https://a.vault.azure.net/keys/",
            "not a url",
        ] {
            let errors = wrong(&azure().with("BYOK_AZURE_KEY_ID", bad));
            assert!(errors.iter().all(|name| name == "BYOK_AZURE_KEY_ID") && !errors.is_empty(), "{bad}");
        }
        settings(&azure().with("BYOK_AZURE_KEY_ID", "https://127.0.0.1:8443/keys/k"));
    }

    #[test]
    fn a_version_is_pinned_by_url_or_strategy_not_both_differently() {
        let lower = VERSION.to_ascii_lowercase();
        let pinned = azure().with("BYOK_AZURE_KEY_ID", &format!("{KEY}/{VERSION}"));
        assert_eq!(settings(&pinned).key.version.as_deref(), Some(&*lower));
        let strategy = |env: Env, text| env.with("BYOK_KEY_VERSION_STRATEGY", text);
        assert_eq!(settings(&strategy(azure(), VERSION)).key.version.as_deref(), Some(&*lower));
        assert_eq!(settings(&strategy(azure(), "latest")).key.version, None);
        assert_eq!(settings(&strategy(pinned.clone(), VERSION)).key.version.as_deref(), Some(&*lower));
        for (env, text) in [(pinned.clone(), "latest"), (pinned, &"0".repeat(32)), (azure(), "3")] {
            assert_eq!(wrong(&strategy(env, text)), ["BYOK_KEY_VERSION_STRATEGY"]);
        }
    }

    #[test]
    fn aes_is_for_managed_hsms() {
        let aes = |env: Env| env.with("BYOK_AZURE_ALGORITHM", "A256KW");
        let hsm = azure().with("BYOK_AZURE_KEY_ID", "https://a.managedhsm.azure.net/keys/k");
        assert_eq!(settings(&aes(hsm)).key.algorithm, AzureAlgorithm::A256Kw);
        assert_eq!(wrong(&aes(azure())), ["BYOK_AZURE_ALGORITHM"]);
        assert_eq!(wrong(&azure().with("BYOK_AZURE_ALGORITHM", "RSA1_5")), ["BYOK_AZURE_ALGORITHM"]);
    }

    #[test]
    fn an_authority_is_one_of_the_keys_cloud() {
        let with = |text| azure().with("BYOK_AZURE_AUTHORITY_HOST", text);
        for fine in ["https://login.microsoftonline.com/", "https://login.windows.net", "https://127.0.0.1:1"]
        {
            settings(&with(fine));
        }
        for bad in [
            "https://login.microsoftonline.us",
            "https://login.microsoftonline.com.evil.net",
            "https://login.microsoftonline.com/tenant",
            "https://login.microsoftonline.com:8443",
            "http://login.microsoftonline.com",
            "https://evil.net",
        ] {
            assert_eq!(wrong(&with(bad)), ["BYOK_AZURE_AUTHORITY_HOST"], "{bad}");
        }
    }

    #[test]
    fn what_a_cluster_injects_is_a_workload_identity() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let injected = managed()
            .with("AZURE_CLIENT_ID", ID)
            .with("AZURE_TENANT_ID", ID)
            .with("AZURE_FEDERATED_TOKEN_FILE", file.path().to_str().unwrap())
            .with("AZURE_AUTHORITY_HOST", "https://login.microsoftonline.com/");
        assert!(matches!(settings(&injected).credential, AzureCredential::WorkloadIdentity { .. }));
        let ours = injected.clone().with("BYOK_AZURE_CLIENT_SECRET", "canary");
        assert!(matches!(settings(&ours).credential, AzureCredential::ClientSecret { .. }));
        let managed = injected.with("BYOK_AZURE_CREDENTIAL", "managed-identity");
        assert!(matches!(settings(&managed).credential, AzureCredential::ManagedIdentity { .. }));
    }

    #[test]
    fn what_a_credential_lacks_is_named() {
        let kind = |kind| managed().with("BYOK_AZURE_CREDENTIAL", kind);
        assert_eq!(wrong(&kind("client-secret")), ["BYOK_AZURE_CLIENT_ID", "BYOK_AZURE_CLIENT_SECRET"]);
        assert_eq!(
            wrong(&kind("workload-identity")),
            ["BYOK_AZURE_CLIENT_ID", "BYOK_AZURE_FEDERATED_TOKEN_FILE"]
        );
        assert_eq!(wrong(&kind("password")), ["BYOK_AZURE_CREDENTIAL"]);
        assert_eq!(wrong(&azure().with("BYOK_AZURE_TENANT_ID", "")), ["BYOK_AZURE_TENANT_ID"]);
        assert_eq!(wrong(&azure().with("BYOK_AZURE_TENANT_ID", "contoso.com")), ["BYOK_AZURE_TENANT_ID"]);
        let both = azure().with("BYOK_AZURE_FEDERATED_TOKEN_FILE", "/dev/null");
        assert_eq!(wrong(&both), ["BYOK_AZURE_CREDENTIAL"]);
    }

    #[test]
    fn a_managed_identitys_tokens_come_from_this_machine() {
        let source = |env: &Env| match settings(env).credential {
            AzureCredential::ManagedIdentity { source, .. } => source,
            _ => panic!("not a managed identity"),
        };
        assert_eq!(source(&managed()), AzureIdentitySource::Imds(Url::parse(IMDS).unwrap()));
        for fine in ["http://localhost:42356/msi/token", "http://169.254.129.2:8081/msi/token"] {
            let env = managed().with("IDENTITY_ENDPOINT", fine);
            assert_eq!(source(&env), AzureIdentitySource::Endpoint(Url::parse(fine).unwrap()));
        }
        assert_eq!(wrong(&managed().with("IDENTITY_ENDPOINT", "http://evil.net/")), ["IDENTITY_ENDPOINT"]);
        let host = |text| managed().with("BYOK_AZURE_IMDS_HOST", text);
        assert!(matches!(source(&host("http://127.0.0.1:1")), AzureIdentitySource::Imds(_)));
        assert_eq!(wrong(&host("http://10.0.0.1")), ["BYOK_AZURE_IMDS_HOST"]);
    }

    #[test]
    fn a_challenge_may_use_another_name_of_the_same_authority() {
        let url = |text| Url::parse(text).unwrap();
        let ours = url("https://login.microsoftonline.com");
        assert!(is_same_azure_authority(&ours, &url("https://login.windows.net/tenant")));
        for bad in
            ["https://login.microsoftonline.us", "http://login.windows.net", "https://login.windows.net:1"]
        {
            assert!(!is_same_azure_authority(&ours, &url(bad)), "{bad}");
        }
        let loopback = url("https://127.0.0.1:1");
        assert!(is_same_azure_authority(&loopback, &url("https://127.0.0.1:2")));
        assert!(!is_same_azure_authority(&loopback, &ours) && !is_same_azure_authority(&ours, &loopback));
    }
}
