//! The parts of the configuration that are in files, and which of them can be replaced while the
//! server runs.

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{
    self, Audit, Auth, CheckpointDestinations, ConfigError, Env, FileProblem, Reader, SigningKeys, Tls,
    Webhook, read_file,
};
use crate::jobs::Webhooks;

/// The settings that are read again together. A part is replaced as a whole, or stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The certificate of the listener, and its key.
    Tls,
    /// The settings that identify callers: JWT configuration, the secret shared with Hasura, admin
    /// tokens.
    Callers,
    /// The permissions of callers.
    Permissions,
    /// The URLs of the database.
    Database,
    /// The keys that sign checkpoints.
    SigningKeys,
    /// Webhooks: addresses and secrets.
    Webhooks,
    /// The secrets of the rows' MACs. Every replica must know a secret before one uses it, and rows
    /// move from one secret to the next at a start: see docs/row-macs.md.
    RowMac,
    /// Certificates for connections to the KMS, and credentials that identify byok there. Existing
    /// proofs of the key were made with them.
    Kms,
}

/// A part that was read again and has no errors by itself.
pub(super) enum Value {
    Tls(Box<ServerConfig>),
    Auth(Auth),
    Database(Box<config::Store>),
    SigningKeys(SigningKeys),
    Webhooks(Webhooks),
    OnlyAtStart,
}

impl Part {
    pub(super) const ALL: [Self; 8] = [
        Self::Tls,
        Self::Callers,
        Self::Permissions,
        Self::Database,
        Self::SigningKeys,
        Self::Webhooks,
        Self::RowMac,
        Self::Kms,
    ];

    /// Returns the name in the log and the metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Callers => "callers",
            Self::Permissions => "permissions",
            Self::Database => "database",
            Self::SigningKeys => "signing_keys",
            Self::Webhooks => "webhooks",
            Self::RowMac => "row_mac",
            Self::Kms => "kms",
        }
    }

    /// Returns the part that a variable, or its `_FILE` variant, belongs to.
    pub(super) fn of(variable: &str) -> Self {
        match variable.strip_suffix("_FILE").unwrap_or(variable) {
            "BYOK_TLS_CERT" | "BYOK_TLS_KEY" => Self::Tls,
            "BYOK_PERMISSIONS" => Self::Permissions,
            "DATABASE_URL" | "BYOK_DATABASE_URL" | "BYOK_MIGRATION_DATABASE_URL" => Self::Database,
            "BYOK_AUDIT_SIGNING_KEY" | "BYOK_AUDIT_PREVIOUS_SIGNING_KEY" => Self::SigningKeys,
            "BYOK_ROW_MAC_KEY" | "BYOK_ROW_MAC_KEY_PREVIOUS" => Self::RowMac,
            name if name.contains("_WEBHOOK_") => Self::Webhooks,
            name if name.starts_with("HASURA_") || name.starts_with("BYOK_HASURA_") => Self::Callers,
            "BYOK_ADMIN_TOKEN" | "BYOK_ADMIN_TOKENS" | "BYOK_REQUIRE_JWT" | "BYOK_JWT_REQUIRE_EXP" => {
                Self::Callers
            }
            _ => Self::Kms,
        }
    }

    /// Returns whether it can be replaced while the server runs.
    pub(super) fn is_read_again(self) -> bool {
        !matches!(self, Self::RowMac | Self::Kms)
    }

    /// Reads the part again.
    ///
    /// # Errors
    /// The errors of this part. Those of other parts do not count.
    pub(super) fn read(self, env: &Env) -> Result<Value, Vec<ConfigError>> {
        let mut reader = Reader::new(env);
        let value = match self {
            Self::Tls => {
                let tls = config::Server::read_tls(&mut reader);
                let config = tls.map(|tls| server_config(&tls)).transpose();
                let config = config.map_err(|error| vec![error])?;
                config.map(|config| Value::Tls(Box::new(config)))
            }
            Self::Callers | Self::Permissions => Some(Value::Auth(Auth::read(&mut reader))),
            Self::Database => {
                config::Store::read(&mut reader, None).map(|settings| Value::Database(Box::new(settings)))
            }
            Self::SigningKeys => Audit::read(&mut reader).keys.map(Value::SigningKeys),
            Self::Webhooks => {
                let CheckpointDestinations { webhook: checkpoints, .. } =
                    Audit::read(&mut reader).destinations;
                Some(Value::Webhooks(Webhooks {
                    incidents: Webhook::read(&mut reader),
                    checkpoints,
                    stream: config::AuditStreams::read(&mut reader).webhook,
                }))
            }
            Self::RowMac | Self::Kms => Some(Value::OnlyAtStart),
        };
        let errors: Vec<ConfigError> =
            reader.into_errors().into_iter().filter(|error| Self::of(&error.variable) == self).collect();
        match value {
            Some(value) if errors.is_empty() => Ok(value),
            _ => Err(errors),
        }
    }
}

/// Builds the settings of inbound TLS from the two files.
///
/// # Errors
/// One of the files has an error, or the two do not belong together.
pub(in crate::cli) fn server_config(tls: &Tls) -> Result<ServerConfig, ConfigError> {
    const CERTIFICATES: &str = "BYOK_TLS_CERT_FILE";
    const KEY: &str = "BYOK_TLS_KEY_FILE";
    let error = |variable: &str, problem: &str| ConfigError {
        variable: variable.to_owned(),
        problem: problem.to_owned(),
    };
    let unread = |variable| move |problem: FileProblem| error(variable, &problem.to_string());
    let certificates = read_file(&tls.certificates).map_err(unread(CERTIFICATES))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificates).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain.ok_or_else(|| error(CERTIFICATES, "holds no PEM certificates"))?;
    let key = read_file(&tls.key).map_err(unread(KEY))?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| error(KEY, "holds no PEM private key"))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|_| error(KEY, "does not belong to the certificate"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_in_one_part_leaves_the_others_readable() {
        let env = Env::from_pairs([
            ("BYOK_PERMISSIONS_FILE", "/nowhere"),
            ("BYOK_HASURA_SECRET", "a-secret-of-some-length"),
            ("BYOK_AUDIT_SIGNING_KEY", "no key"),
        ]);
        assert!(Part::Callers.read(&env).is_ok());
        let errors = Part::Permissions.read(&env).err().unwrap();
        assert_eq!(errors[0].variable, "BYOK_PERMISSIONS_FILE");
        assert_eq!(Part::SigningKeys.read(&env).err().unwrap().len(), 1);
        assert!(Part::Webhooks.read(&env).is_ok());
    }

    #[test]
    fn parts_that_cannot_be_replaced_need_a_restart() {
        for name in ["BYOK_VAULT_CACERT", "BYOK_AZURE_CA_FILE", "BYOK_ROW_MAC_KEY_FILE", "BYOK_GCP_CA_FILE"] {
            assert!(!Part::of(name).is_read_again(), "{name}");
        }
        for name in ["BYOK_TLS_KEY_FILE", "DATABASE_URL_FILE", "BYOK_INCIDENT_WEBHOOK_SECRET_FILE"] {
            assert!(Part::of(name).is_read_again(), "{name}");
        }
    }
}
