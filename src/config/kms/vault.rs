//! A Transit engine: its address, the key, and byok's login.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::{KeyVersionStrategy, SecretSource, endpoint, secret_source, timeout};
use crate::config::Reader;
use crate::crypto::SecretText;

/// How to reach a Transit engine.
pub struct VaultSettings {
    /// `BYOK_VAULT_ADDR`: `https://host:8200`, without `/v1`.
    pub address: Url,
    /// `BYOK_VAULT_NAMESPACE`: sent as `X-Vault-Namespace` with every request, logins included.
    pub namespace: Option<String>,
    /// `BYOK_VAULT_MOUNT`: the path where the engine is mounted, without slashes around it; default
    /// `transit`.
    pub mount: String,
    /// `BYOK_VAULT_TRANSIT_KEY`: the key's name.
    pub key: String,
    /// `BYOK_KEY_VERSION_STRATEGY`.
    pub version: KeyVersionStrategy,
    /// How byok logs in.
    pub login: VaultLogin,
    /// `BYOK_VAULT_CACERT`: certificates in PEM. If set, only these are trusted, and the system's
    /// are not.
    pub ca_file: Option<PathBuf>,
    /// `BYOK_VAULT_CLIENT_CERT` and `BYOK_VAULT_CLIENT_KEY`: the client certificate for mutual TLS.
    pub client: Option<ClientCertificate>,
    /// `BYOK_KMS_TIMEOUT_MS`: how long a call may take, including retries and logins; default 5000.
    pub timeout: Duration,
    /// `BYOK_KMS_CALLS_PER_MINUTE`: the largest number of requests per minute; `None` means no
    /// limit.
    pub calls_per_minute: Option<NonZeroU32>,
}

/// How byok gets a Vault token.
pub enum VaultLogin {
    /// `BYOK_VAULT_TOKEN`.
    Token(SecretText),
    /// `BYOK_VAULT_TOKEN_FILE`: read again when it changes, so that an agent can replace it.
    TokenFile(PathBuf),
    /// `BYOK_VAULT_APPROLE_ROLE_ID` and its related variables.
    AppRole {
        /// `BYOK_VAULT_APPROLE_MOUNT`; default `approle`.
        mount: String,
        /// `BYOK_VAULT_APPROLE_ROLE_ID`.
        role_id: SecretText,
        /// `BYOK_VAULT_APPROLE_SECRET_ID` or its `_FILE` variant; `None` for a role that binds no
        /// secret id.
        secret_id: Option<SecretSource>,
    },
    /// `BYOK_VAULT_KUBERNETES_ROLE` and its related variables.
    Kubernetes {
        /// `BYOK_VAULT_KUBERNETES_MOUNT`; default `kubernetes`.
        mount: String,
        /// `BYOK_VAULT_KUBERNETES_ROLE`.
        role: String,
        /// `BYOK_VAULT_KUBERNETES_JWT_FILE`: the service account's token, which the kubelet
        /// replaces.
        jwt_file: PathBuf,
    },
}

/// byok's certificate for mutual TLS.
pub struct ClientCertificate {
    /// The certificate and its intermediate certificates, in PEM.
    pub certificate_file: PathBuf,
    /// Its private key in PEM.
    pub key_file: PathBuf,
}

/// The path of a pod's service account token in Kubernetes.
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// The name of the key; this is all that `byok policy` needs to know.
pub struct VaultKey {
    /// The mount, as in [`VaultSettings::mount`].
    pub mount: String,
    /// The key's name, as in [`VaultSettings::key`].
    pub key: String,
}

impl VaultKey {
    /// Reads the name of the key, and no credential.
    pub fn read(reader: &mut Reader<'_>) -> Self {
        let key = reader.required("BYOK_VAULT_TRANSIT_KEY", "the name of a Transit key");
        if !key.is_empty() && !is_path_segment(&key) {
            reader.error(
                "BYOK_VAULT_TRANSIT_KEY",
                "is not the name of a key: letters and digits, with `_`, `-` and `.` between them",
            );
        }
        Self { mount: mount(reader, "BYOK_VAULT_MOUNT", "transit"), key }
    }
}

impl VaultSettings {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        reader.required("BYOK_VAULT_ADDR", "Vault's address, such as `https://vault.example.com:8200`");
        let address = endpoint(reader, "BYOK_VAULT_ADDR", Some("BYOK_VAULT_ALLOW_HTTP"));
        let namespace = reader.text("BYOK_VAULT_NAMESPACE");
        if namespace.as_ref().is_some_and(|text| !text.bytes().all(|byte| byte.is_ascii_graphic())) {
            reader.error("BYOK_VAULT_NAMESPACE", "holds a character that no namespace has");
        }
        let VaultKey { mount, key } = VaultKey::read(reader);
        let version = KeyVersionStrategy::read(reader);
        let login = login(reader);
        let ca_file = reader.file("BYOK_VAULT_CACERT");
        let client = match (reader.file("BYOK_VAULT_CLIENT_CERT"), reader.file("BYOK_VAULT_CLIENT_KEY")) {
            (Some(certificate_file), Some(key_file)) => {
                Some(ClientCertificate { certificate_file, key_file })
            }
            (None, None) => None,
            (Some(_), None) => {
                reader.error("BYOK_VAULT_CLIENT_KEY", "is not set; BYOK_VAULT_CLIENT_CERT needs its key");
                None
            }
            (None, Some(_)) => {
                reader.error(
                    "BYOK_VAULT_CLIENT_CERT",
                    "is not set; BYOK_VAULT_CLIENT_KEY needs its certificate",
                );
                None
            }
        };
        let timeout = timeout(reader);
        Some(Self {
            address: address?,
            namespace,
            mount,
            key,
            version,
            login: login?,
            ca_file,
            client,
            timeout,
            calls_per_minute: None,
        })
    }
}

fn login(reader: &mut Reader<'_>) -> Option<VaultLogin> {
    let ways = ["BYOK_VAULT_TOKEN", "BYOK_VAULT_APPROLE_ROLE_ID", "BYOK_VAULT_KUBERNETES_ROLE"];
    let set: Vec<_> = ways.into_iter().filter(|name| reader.is_set(name)).collect();
    let [way] = set[..] else {
        let problem = match &set[..] {
            [] => format!(
                "is not set; set it, or {}, or {}, so that byok can log in to Vault",
                ways[1], ways[2]
            ),
            more => format!("is set together with {}; keep only one of them", more.join(", ")),
        };
        reader.error(set.first().copied().unwrap_or(ways[0]), problem);
        return None;
    };
    let login = if way == ways[0] {
        match secret_source(reader, way)? {
            SecretSource::Text(token) => VaultLogin::Token(token),
            SecretSource::File(path) => VaultLogin::TokenFile(path),
        }
    } else if way == ways[1] {
        let secret_id = "BYOK_VAULT_APPROLE_SECRET_ID";
        VaultLogin::AppRole {
            mount: mount(reader, "BYOK_VAULT_APPROLE_MOUNT", "approle"),
            role_id: reader.secret(way)?,
            secret_id: if reader.is_set(secret_id) { Some(secret_source(reader, secret_id)?) } else { None },
        }
    } else {
        const JWT_FILE: &str = "BYOK_VAULT_KUBERNETES_JWT_FILE";
        let jwt_file = reader.file(JWT_FILE).unwrap_or_else(|| SERVICE_ACCOUNT_TOKEN.into());
        reader.read_at_each_use(JWT_FILE);
        VaultLogin::Kubernetes {
            mount: mount(reader, "BYOK_VAULT_KUBERNETES_MOUNT", "kubernetes"),
            role: reader.required(way, "the name of a role"),
            jwt_file,
        }
    };
    Some(login)
}

fn mount(reader: &mut Reader<'_>, name: &str, default: &str) -> String {
    let mount = reader.text(name).unwrap_or_else(|| default.to_owned());
    let mount = mount.trim_matches('/');
    if !mount.split('/').all(is_path_segment) {
        reader.error(
            name,
            "is not a path: segments of letters, digits, `_`, `-` and `.`, with `/` between them",
        );
    }
    mount.to_owned()
}

/// Returns whether Vault accepts the text as a name in a path (`framework.GenericNameRegex`). Such
/// a name contains nothing with a meaning in a URL.
fn is_path_segment(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.bytes().all(|byte| word(byte) || byte == b'-' || byte == b'.')
        && text.bytes().next().is_some_and(word)
        && text.bytes().last().is_some_and(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::kms::Kms;
    use crate::config::{ConfigError, Env};
    use std::num::NonZeroU64;

    fn vault() -> Env {
        Env::from_pairs([
            ("BYOK_PROVIDER", "vault-transit"),
            ("BYOK_VAULT_ADDR", "https://vault.example.com"),
            ("BYOK_VAULT_TOKEN", "hvs.canary"),
            ("BYOK_VAULT_TRANSIT_KEY", "nself-byok"),
        ])
    }

    fn read(env: &Env) -> Result<Kms, Vec<ConfigError>> {
        let mut reader = Reader::new(env);
        let kms = Kms::read(&mut reader, false);
        let errors = reader.into_errors();
        assert!(errors.iter().all(|error| !error.to_string().contains("canary")));
        match kms {
            Some(kms) if errors.is_empty() => Ok(kms),
            _ => Err(errors),
        }
    }

    fn settings(env: &Env) -> VaultSettings {
        match read(env) {
            Ok(Kms::Vault(settings)) => *settings,
            Ok(_) => panic!("not a Vault"),
            Err(errors) => panic!("{errors:?}"),
        }
    }

    fn wrong(env: &Env) -> Vec<String> {
        read(env).err().unwrap().into_iter().map(|error| error.variable).collect()
    }

    #[test]
    fn the_seeds_four_variables_are_enough() {
        let settings = settings(&vault());
        assert_eq!(settings.mount, "transit");
        assert_eq!(settings.version, KeyVersionStrategy::Latest);
        assert_eq!(settings.timeout, Duration::from_secs(5));
    }

    #[test]
    fn a_key_version_can_be_pinned() {
        let strategy = |text| settings(&vault().with("BYOK_KEY_VERSION_STRATEGY", text)).version;
        assert_eq!(strategy("latest"), KeyVersionStrategy::Latest);
        assert_eq!(strategy("3"), KeyVersionStrategy::Pinned(NonZeroU64::new(3).unwrap()));
        for bad in ["0", "-1", "v3", "newest"] {
            assert_eq!(wrong(&vault().with("BYOK_KEY_VERSION_STRATEGY", bad)), ["BYOK_KEY_VERSION_STRATEGY"]);
        }
    }

    #[test]
    fn plain_http_goes_only_to_this_machine_unless_it_is_allowed() {
        for fine in ["http://127.0.0.1:8200", "http://localhost:8200", "http://[::1]:8200"] {
            settings(&vault().with("BYOK_VAULT_ADDR", fine));
        }
        for bad in
            ["http://vault:8200", "ftp://localhost", "https://a:b@vault", "https://vault/?x", "vault:8200"]
        {
            assert_eq!(wrong(&vault().with("BYOK_VAULT_ADDR", bad)), ["BYOK_VAULT_ADDR"], "{bad}");
        }
        settings(&vault().with("BYOK_VAULT_ADDR", "http://vault:8200").with("BYOK_VAULT_ALLOW_HTTP", "true"));
    }

    #[test]
    fn a_name_that_would_leave_its_path_segment_is_an_error() {
        for bad in ["../sys/seal", "a/b", "a?b", "..", "a%2f", "-a"] {
            assert_eq!(
                wrong(&vault().with("BYOK_VAULT_TRANSIT_KEY", bad)),
                ["BYOK_VAULT_TRANSIT_KEY"],
                "{bad}"
            );
        }
        assert_eq!(wrong(&vault().with("BYOK_VAULT_MOUNT", "a/../b")), ["BYOK_VAULT_MOUNT"]);
        assert_eq!(settings(&vault().with("BYOK_VAULT_MOUNT", "/team/transit/")).mount, "team/transit");
    }

    #[test]
    fn there_is_one_way_to_log_in() {
        let role = vault().with("BYOK_VAULT_APPROLE_ROLE_ID", "role");
        assert_eq!(wrong(&role), ["BYOK_VAULT_TOKEN"]);
        assert_eq!(wrong(&vault().with("BYOK_VAULT_TOKEN", "")), ["BYOK_VAULT_TOKEN"]);
        let role = role.with("BYOK_VAULT_TOKEN", "");
        assert!(matches!(settings(&role).login, VaultLogin::AppRole { secret_id: None, .. }));
        let role = role.with("BYOK_VAULT_APPROLE_SECRET_ID", "canary");
        assert!(matches!(
            settings(&role).login,
            VaultLogin::AppRole { secret_id: Some(SecretSource::Text(_)), .. }
        ));
    }

    #[test]
    fn a_token_in_a_file_is_kept_as_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hvs.canary\n").unwrap();
        let env =
            vault().with("BYOK_VAULT_TOKEN", "").with("BYOK_VAULT_TOKEN_FILE", file.path().to_str().unwrap());
        assert!(matches!(settings(&env).login, VaultLogin::TokenFile(_)));
    }

    #[test]
    fn a_client_certificate_needs_its_key() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let env = vault().with("BYOK_VAULT_CLIENT_CERT", file.path().to_str().unwrap());
        assert_eq!(wrong(&env), ["BYOK_VAULT_CLIENT_KEY"]);
    }
}
