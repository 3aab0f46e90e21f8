//! A key in Google Cloud KMS: its name, and byok's identity.

use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::gcp_credentials::{GcpCredentials, is_account};
use super::{KeyVersionStrategy, SecretSource, endpoint, is_loopback, timeout};
use crate::config::Reader;
use crate::config::files::{FileProblem, read_text};
use crate::crypto::SecretText;

const KEY_NAME: &str = "BYOK_GCP_KEY_NAME";
const CREDENTIALS: &str = "BYOK_GCP_CREDENTIALS_JSON";
const IMPERSONATE: &str = "BYOK_GCP_IMPERSONATE_SERVICE_ACCOUNT";
const METADATA_HOST: &str = "GCE_METADATA_HOST";

/// How to reach Google Cloud KMS.
pub struct GcpSettings {
    /// `BYOK_GCP_KEY_NAME`.
    pub key: GcpKey,
    /// `BYOK_KEY_VERSION_STRATEGY`, or the version at the end of `BYOK_GCP_KEY_NAME`.
    pub version: KeyVersionStrategy,
    /// The source of byok's credential.
    pub identity: GcpIdentity,
    /// `BYOK_GCP_IMPERSONATE_SERVICE_ACCOUNT`: the account that byok impersonates.
    pub impersonate: Option<String>,
    /// `BYOK_GCP_ENDPOINT`: the endpoint of KMS, without `/v1`; default
    /// `https://cloudkms.googleapis.com`.
    pub endpoint: Url,
    /// `BYOK_GCP_IAM_ENDPOINT`: the endpoint for impersonation, without `/v1`; default
    /// `https://iamcredentials.googleapis.com`.
    pub iam_endpoint: Url,
    /// `BYOK_GCP_CA_FILE`: certificates in PEM. If set, only these are trusted, and the system's
    /// are not.
    pub ca_file: Option<PathBuf>,
    /// `BYOK_KMS_TIMEOUT_MS`: how long a call may take, including retries and tokens; default 5000.
    pub timeout: Duration,
    /// `BYOK_KMS_CALLS_PER_MINUTE`: the largest number of requests per minute; `None` means no
    /// limit.
    pub calls_per_minute: Option<NonZeroU32>,
}

/// The source of byok's credential, in the order of application default credentials
/// (<https://cloud.google.com/docs/authentication/application-default-credentials>).
pub enum GcpIdentity {
    /// `BYOK_GCP_CREDENTIALS_JSON` (a path, or the JSON itself), else
    /// `GOOGLE_APPLICATION_CREDENTIALS`, else gcloud's well-known file. A file is read again for
    /// each token. See [`GcpCredentials::parse`].
    Credentials(SecretSource),
    /// The metadata server, at this address: the one in `GCE_METADATA_HOST`, else
    /// `metadata.google.internal`.
    Metadata(Url),
}

/// The name of the key; this is all that `byok policy` needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcpKey {
    /// The project's id or number.
    pub project: String,
    /// The location: `europe-west3`, `global`.
    pub location: String,
    /// The key ring.
    pub ring: String,
    /// The key's short name.
    pub key: String,
    /// The version at the end of the name.
    pub version: Option<NonZeroU64>,
}

impl GcpKey {
    /// Reads the name of the key, and no credential. Returns `None` if an error was recorded.
    pub fn read(reader: &mut Reader<'_>) -> Option<Self> {
        const WHAT: &str = "`projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY`, with `/cryptoKeyVersions/N` to pin a version";
        let name = reader.required(KEY_NAME, WHAT);
        let key = Self::parse(&name);
        if key.is_none() && !name.is_empty() {
            reader.error(KEY_NAME, format!("is not the name of a key; it takes {WHAT}"));
        }
        key
    }

    /// Returns the resource name of the key, without a version.
    pub fn name(&self) -> String {
        let Self { project, location, ring, key, .. } = self;
        format!("projects/{project}/locations/{location}/keyRings/{ring}/cryptoKeys/{key}")
    }

    fn parse(name: &str) -> Option<Self> {
        let parts: Vec<_> = name.split('/').collect();
        let (parts, version) = match parts[..] {
            [.., "cryptoKeyVersions", version] => (&parts[..parts.len() - 2], Some(number(version)?)),
            _ => (&parts[..], None),
        };
        let &["projects", project, "locations", location, "keyRings", ring, "cryptoKeys", key] = parts else {
            return None;
        };
        // `example.com:project` is a project of a domain.
        let good = is_name(project, b"-.:")
            && is_name(location, b"-")
            && is_name(ring, b"-_")
            && is_name(key, b"-_");
        good.then(|| Self {
            project: project.to_owned(),
            location: location.to_owned(),
            ring: ring.to_owned(),
            key: key.to_owned(),
            version,
        })
    }
}

impl GcpSettings {
    /// Reads the account to impersonate, and no credential.
    pub fn impersonated(reader: &mut Reader<'_>) -> Option<String> {
        let account = reader.text(IMPERSONATE)?;
        if !is_account(&account) {
            reader.error(
                IMPERSONATE,
                "is not a service account such as `byok@project.iam.gserviceaccount.com`",
            );
        }
        Some(account)
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let key = GcpKey::read(reader);
        let version = version(reader, key.as_ref().and_then(|key| key.version));
        let identity = identity(reader);
        let impersonate = Self::impersonated(reader);
        let endpoint = address(reader, "BYOK_GCP_ENDPOINT", "https://cloudkms.googleapis.com");
        let iam_endpoint = address(reader, "BYOK_GCP_IAM_ENDPOINT", "https://iamcredentials.googleapis.com");
        let ca_file = reader.file("BYOK_GCP_CA_FILE");
        let timeout = timeout(reader);
        Some(Self {
            key: key?,
            version,
            identity: identity?,
            impersonate,
            endpoint,
            iam_endpoint,
            ca_file,
            timeout,
            calls_per_minute: None,
        })
    }
}

/// Reads an address. After an error it returns the default, which is then not used.
fn address(reader: &mut Reader<'_>, name: &str, default: &str) -> Url {
    endpoint(reader, name, None).unwrap_or_else(|| Url::parse(default).expect("the default is an address"))
}

fn version(reader: &mut Reader<'_>, named: Option<NonZeroU64>) -> KeyVersionStrategy {
    const STRATEGY: &str = "BYOK_KEY_VERSION_STRATEGY";
    let strategy = KeyVersionStrategy::read(reader);
    let Some(named) = named.map(KeyVersionStrategy::Pinned) else { return strategy };
    if reader.is_set(STRATEGY) && strategy != named {
        reader.error(
            STRATEGY,
            format!("contradicts the version that {KEY_NAME} ends with; keep only one of them"),
        );
    }
    named
}

fn identity(reader: &mut Reader<'_>) -> Option<GcpIdentity> {
    const FILE: &str = "BYOK_GCP_CREDENTIALS_JSON_FILE";
    const DEFAULT_FILE: &str = "GOOGLE_APPLICATION_CREDENTIALS";
    let given = reader.text(CREDENTIALS).map(SecretText::new);
    if given.is_some() && reader.text(FILE).is_some() {
        reader.error(CREDENTIALS, format!("is set together with {FILE}; keep only one of them"));
        return None;
    }
    match given {
        Some(json) if json.expose().trim_start().starts_with('{') => {
            check(reader, CREDENTIALS, json.expose())?;
            return Some(GcpIdentity::Credentials(SecretSource::Text(json)));
        }
        Some(path) => return file(reader, CREDENTIALS, path.expose().into()),
        None => {}
    }
    for name in [FILE, DEFAULT_FILE] {
        if let Some(path) = reader.text(name) {
            return file(reader, name, path.into());
        }
    }
    match well_known_file(reader) {
        Some(path) => file(reader, DEFAULT_FILE, path),
        None => metadata(reader).map(GcpIdentity::Metadata),
    }
}

/// Reads a credential file. It is read now, so that an error shows at the start, and again for
/// each token.
fn file(reader: &mut Reader<'_>, name: &str, path: PathBuf) -> Option<GcpIdentity> {
    match read_text(&path) {
        Ok(text) => {
            check(reader, name, &text)?;
            Some(GcpIdentity::Credentials(SecretSource::File(path)))
        }
        Err(problem) => {
            let problem = match (name, problem) {
                // A text that is not a path may be the credential itself, in base64 or quotes.
                (CREDENTIALS, FileProblem::Unreadable(kind)) => {
                    format!("is neither JSON nor the path of a file that can be read: {kind}")
                }
                _ => problem.to_string(),
            };
            reader.error(name, problem);
            None
        }
    }
}

fn check(reader: &mut Reader<'_>, name: &str, json: &str) -> Option<()> {
    match GcpCredentials::parse(json) {
        Ok(_) => Some(()),
        Err(problem) => {
            reader.error(name, problem);
            None
        }
    }
}

/// Returns the file that `gcloud auth application-default login` writes, if it exists.
fn well_known_file(reader: &mut Reader<'_>) -> Option<PathBuf> {
    let folder = match reader.text("CLOUDSDK_CONFIG") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(reader.text("HOME")?).join(".config/gcloud"),
    };
    Some(folder.join("application_default_credentials.json")).filter(|path| path.is_file())
}

/// Reads the address of the metadata server. The server gives a token to anyone who asks, over
/// plain HTTP, so it must be this machine's own.
fn metadata(reader: &mut Reader<'_>) -> Option<Url> {
    let host = reader.text(METADATA_HOST).unwrap_or_else(|| "metadata.google.internal".to_owned());
    let address = Url::parse(&format!("http://{host}")).ok().filter(|address| {
        let bare = address.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let link_local = match bare.parse() {
            Ok(IpAddr::V4(ip)) => ip.is_link_local(),
            Ok(IpAddr::V6(ip)) => ip.is_unicast_link_local() || bare == "fd20:ce::254",
            Err(_) => matches!(bare, "metadata.google.internal" | "metadata.google.internal."),
        };
        let plain = address.path() == "/" && address.query().is_none() && address.fragment().is_none();
        (link_local || is_loopback(address)) && plain && !host.contains('@')
    });
    if address.is_none() {
        reader.error(
            METADATA_HOST,
            "is neither `metadata.google.internal` nor an address of this machine or its link: byok requests its token there",
        );
    }
    address
}

fn number(text: &str) -> Option<NonZeroU64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn is_name(text: &str, more: &[u8]) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || more.contains(&byte);
    (1..=100).contains(&text.len())
        && text.bytes().all(good)
        && text.bytes().any(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Env, Kms};

    const NAME: &str = "projects/p-1/locations/europe-west3/keyRings/r_1/cryptoKeys/nself-byok";
    const USER: &str =
        r#"{"type":"authorized_user","client_id":"c","client_secret":"canary","refresh_token":"canary"}"#;

    fn gcp() -> Env {
        Env::from_pairs([("BYOK_PROVIDER", "gcp-kms"), (KEY_NAME, NAME), (CREDENTIALS, USER)])
    }

    fn read(env: &Env) -> Result<GcpSettings, Vec<String>> {
        let mut reader = Reader::new(env);
        let kms = Kms::read(&mut reader, false);
        let errors = reader.into_errors();
        assert!(errors.iter().all(|error| !error.to_string().contains("canary")));
        match kms {
            Some(Kms::Gcp(settings)) if errors.is_empty() => Ok(*settings),
            _ => Err(errors.into_iter().map(|error| error.variable).collect()),
        }
    }

    fn settings(env: &Env) -> GcpSettings {
        read(env).unwrap_or_else(|wrong| panic!("{wrong:?}"))
    }

    fn wrong(env: &Env) -> Vec<String> {
        read(env).err().unwrap()
    }

    #[test]
    fn the_seeds_two_variables_are_enough() {
        let settings = settings(&gcp());
        assert_eq!(settings.key.name(), NAME);
        assert_eq!(settings.version, KeyVersionStrategy::Latest);
        assert_eq!(settings.endpoint.as_str(), "https://cloudkms.googleapis.com/");
        assert!(matches!(settings.identity, GcpIdentity::Credentials(SecretSource::Text(_))));
    }

    #[test]
    fn a_name_that_is_not_a_keys_is_an_error() {
        for bad in [
            "nself-byok",
            "projects/p/locations/l/keyRings/r",
            "projects/p/locations/l/keyRings/r/cryptoKeys/../../x",
            "projects/p/locations/l/keyRings/r/cryptoKeys/..",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k:destroy",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k?x",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/0",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/+1",
            "/projects/p/locations/l/keyRings/r/cryptoKeys/k",
        ] {
            assert_eq!(wrong(&gcp().with(KEY_NAME, bad)), [KEY_NAME], "{bad}");
        }
        let of_a_domain = "projects/example.com:p/locations/global/keyRings/r/cryptoKeys/k";
        assert_eq!(settings(&gcp().with(KEY_NAME, of_a_domain)).key.name(), of_a_domain);
    }

    #[test]
    fn a_version_is_pinned_by_name_or_strategy_not_both_differently() {
        const STRATEGY: &str = "BYOK_KEY_VERSION_STRATEGY";
        let three = KeyVersionStrategy::Pinned(NonZeroU64::new(3).unwrap());
        let named = gcp().with(KEY_NAME, &format!("{NAME}/cryptoKeyVersions/3"));
        assert_eq!(settings(&named).version, three);
        assert_eq!(settings(&named).key.name(), NAME);
        assert_eq!(settings(&gcp().with(STRATEGY, "3")).version, three);
        assert_eq!(settings(&named.clone().with(STRATEGY, "3")).version, three);
        for other in ["latest", "2"] {
            assert_eq!(wrong(&named.clone().with(STRATEGY, other)), [STRATEGY]);
        }
    }

    #[test]
    fn a_credential_is_looked_for_where_googles_own_clients_look() {
        let folder = tempfile::tempdir().unwrap();
        let well_known = folder.path().join("application_default_credentials.json");
        std::fs::write(&well_known, USER).unwrap();
        let none = gcp().with(CREDENTIALS, "");
        assert!(matches!(settings(&none).identity, GcpIdentity::Metadata(_)));
        let file = |env: &Env| match settings(env).identity {
            GcpIdentity::Credentials(SecretSource::File(path)) => path,
            _ => panic!("no file"),
        };
        assert_eq!(file(&none.clone().with("CLOUDSDK_CONFIG", folder.path().to_str().unwrap())), well_known);
        let path = well_known.to_str().unwrap();
        for name in ["GOOGLE_APPLICATION_CREDENTIALS", CREDENTIALS, "BYOK_GCP_CREDENTIALS_JSON_FILE"] {
            assert_eq!(file(&none.clone().with(name, path)), well_known, "{name}");
        }
    }

    #[test]
    fn a_file_that_is_missing_or_no_credential_is_an_error() {
        for bad in ["/nowhere", "{}", "{\"canary\"", r#"{"type":"service_account"}"#] {
            assert_eq!(wrong(&gcp().with(CREDENTIALS, bad)), [CREDENTIALS], "{bad}");
        }
    }

    #[test]
    fn a_credential_in_another_spelling_is_never_shown_as_a_file() {
        for bad in ["eyJjYW5hcnkiOiJjYW5hcnkifQ-canary", "'{\"private_key\":\"canary\"}'"] {
            assert_eq!(wrong(&gcp().with(CREDENTIALS, bad)), [CREDENTIALS]);
        }
    }

    #[test]
    fn a_token_is_asked_of_this_machines_metadata_server_only() {
        let host = |host: &str| read(&gcp().with(CREDENTIALS, "").with(METADATA_HOST, host));
        for fine in
            ["169.254.169.254", "metadata.google.internal", "127.0.0.1:8080", "[fd20:ce::254]", "localhost"]
        {
            assert!(host(fine).is_ok(), "{fine}");
        }
        for bad in [
            "10.0.0.1",
            "evil.net",
            "metadata.google.internal.evil.net",
            "127.0.0.1@evil.net",
            "localhost/x",
            "",
        ] {
            assert_eq!(host(bad).is_ok(), bad.is_empty(), "{bad}");
        }
    }

    #[test]
    fn another_endpoint_is_https_or_this_machine() {
        settings(&gcp().with("BYOK_GCP_ENDPOINT", "https://cloudkms.europe-west3.rep.googleapis.com"));
        settings(&gcp().with("BYOK_GCP_ENDPOINT", "http://127.0.0.1:9"));
        for name in ["BYOK_GCP_ENDPOINT", "BYOK_GCP_IAM_ENDPOINT"] {
            for bad in ["http://cloudkms.googleapis.com", "https://a:b@c", "https://a/?x", "cloudkms"] {
                assert_eq!(wrong(&gcp().with(name, bad)), [name], "{bad}");
            }
        }
    }

    #[test]
    fn who_is_acted_as_is_a_service_account() {
        settings(&gcp().with(IMPERSONATE, "byok@p-1.iam.gserviceaccount.com"));
        for bad in ["byok", "a@b@c", "a@b:generateIdToken", "../a@b"] {
            assert_eq!(wrong(&gcp().with(IMPERSONATE, bad)), [IMPERSONATE], "{bad}");
        }
    }
}
