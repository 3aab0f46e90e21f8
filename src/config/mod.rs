//! The configuration: everything that byok reads from the environment, one file per section. No
//! other module reads it. Each section is read completely before anything is reported, so that all
//! errors are reported together.

mod audit;
mod audit_retention;
mod audit_stream;
mod auth;
mod checkpoint_destinations;
mod dek_cache;
mod dek_pool;
mod env;
mod files;
mod key_guard;
mod kms;
mod limits;
mod network;
mod postgres_url;
mod rates;
mod row_mac;
mod server;
mod store;
mod telemetry;
mod variables;
mod webhook;

use std::path::PathBuf;

pub use audit::{Audit, SigningKeys};
pub use audit_retention::AuditRetention;
pub use audit_stream::AuditStreams;
pub use auth::{Auth, File, Jwt};
pub use checkpoint_destinations::{CheckpointBucket, CheckpointDestinations};
pub use dek_cache::DekCache;
pub use dek_pool::DekPool;
pub use env::{ConfigError, Env, Reader};
pub use files::{FileProblem, Files, read_file, read_text};
pub use key_guard::KeyGuard;
pub use kms::{
    AwsCredentials, AwsKeyArn, AwsKeyName, AwsRole, AwsSettings, AzureAlgorithm, AzureCredential,
    AzureIdentitySource, AzureKey, AzureService, AzureSettings, ClientCertificate, GcpCredentials,
    GcpIdentity, GcpKey, GcpSettings, KeyVersionStrategy, Kms, SecretSource, VaultKey, VaultLogin,
    VaultSettings,
};
pub(crate) use kms::{is_azure_version, is_same_azure_authority};
pub use limits::Limits;
pub use network::Network;
pub use rates::Rates;
pub use row_mac::{RowMac, RowMacKeys};
pub use server::{Server, Tls};
pub use store::{Engine, Postgres, Store};
pub use telemetry::{LogFormat, Telemetry};
pub use webhook::{Webhook, WebhookKey};

/// The values that apply if the environment does not set them.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// The SQLite file to use if the deployment needs no database URL.
    pub sqlite: Option<PathBuf>,
    /// Whether the provider `local` is accepted.
    pub local_key: bool,
    /// Whether GraphiQL is served.
    pub console: bool,
    /// The form of log lines.
    pub log_format: LogFormat,
}

impl Defaults {
    /// Returns the defaults of `byok serve`.
    pub fn serve() -> Self {
        Self { sqlite: None, local_key: false, console: false, log_format: LogFormat::Json }
    }
}

/// The whole configuration of a server.
pub struct Config {
    /// The listener and its limits.
    pub server: Server,
    /// The limits on the rate of calls and items.
    pub rates: Rates,
    /// The limits on a call.
    pub limits: Limits,
    /// The DEK cache.
    pub dek_cache: DekCache,
    /// The DEK pool.
    pub dek_pool: DekPool,
    /// The settings for watching the key.
    pub key_guard: KeyGuard,
    /// The secret that binds the rows of DEKs.
    pub row_mac: RowMac,
    /// Checkpoints of the audit log.
    pub audit: Audit,
    /// Who may call, and what they may do.
    pub auth: Auth,
    /// The database.
    pub store: Store,
    /// The KMS.
    pub kms: Kms,
    /// Logs and traces.
    pub telemetry: Telemetry,
    /// How long entries are kept.
    pub audit_retention: AuditRetention,
    /// The webhook that incidents are announced to, if any.
    pub webhook: Option<Webhook>,
    /// The destinations that entries are streamed to, if any.
    pub audit_streams: AuditStreams,
    /// The files that the configuration was read from.
    pub files: Files,
}

impl Config {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// Every error, not only the first.
    pub fn read(env: &Env, defaults: &Defaults) -> Result<Self, Vec<ConfigError>> {
        let mut reader = Reader::new(env);
        let rates = Rates::read(&mut reader);
        let limits = Limits::read(&mut reader, &rates);
        let server = Server::read(&mut reader, defaults.console, limits.body_bytes);
        let dek_cache = DekCache::read(&mut reader);
        let dek_pool = DekPool::read(&mut reader, &dek_cache);
        let key_guard = KeyGuard::read(&mut reader);
        let row_mac = RowMac::read(&mut reader);
        let audit = Audit::read(&mut reader);
        let auth = Auth::read(&mut reader);
        let store = Store::read(&mut reader, defaults.sqlite.as_deref());
        let kms = Kms::read(&mut reader, defaults.local_key);
        let telemetry = Telemetry::read(&mut reader, defaults.log_format);
        let audit_retention = AuditRetention::read(&mut reader);
        let webhook = Webhook::read(&mut reader);
        let audit_streams = AuditStreams::read(&mut reader);
        let files = reader.take_files();
        let mut errors = reader.into_errors();
        errors.extend(variables::unknown(env));
        match (store, kms) {
            (Some(store), Some(mut kms)) if errors.is_empty() => {
                kms.limit_calls(limits.kms_calls_per_minute);
                Ok(Self {
                    server,
                    rates,
                    limits,
                    dek_cache,
                    dek_pool,
                    key_guard,
                    row_mac,
                    audit,
                    auth,
                    store,
                    kms,
                    telemetry,
                    audit_retention,
                    webhook,
                    audit_streams,
                    files,
                })
            }
            _ => Err(errors),
        }
    }
}
