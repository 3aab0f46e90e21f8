//! Builds the use cases from the configuration. This is the only module that connects concrete
//! providers and databases to the interfaces that the rest of the code uses.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Failure;
use crate::admin::LogAdmin;
use crate::app::{App, Parts};
use crate::archive::Archive;
use crate::audit::Committer;
use crate::auth::{Authenticator, Policy};
use crate::config;
use crate::config::{Config, ConfigError, Env, Reader};
use crate::crypto;
use crate::jobs::{CheckpointParts, Checkpoints, Destination, Jobs, Receiver, Stream, Upkeep};
use crate::keyring::{self, Keyring};
use crate::kms::{
    AwsKms, AzureKeyVault, Connections, GcpKms, Kms, KmsDiagnosis, LocalKey, RequestCounts, VaultTransit,
};
use crate::model::{Clock, KeyId, SystemClock, Tenant, TenantUid};
use crate::rest::{DatabaseFound, DatabaseState};
use crate::store::{self, Batch, Change, CommitError, Database, KeyState, MigrateError, MigrationReport};
use crate::tenancy::{Key, KeySet, TenantSettings, Tenants};
use crate::webhook::Webhook;

/// The tenant of the single-tenant form.
pub(super) const PRIMARY: &str = "primary";
/// The pause before a start tries again to reach a database that is out of reach.
const PAUSE: Duration = Duration::from_secs(1);

/// The parts of a server, or of a command that works like one.
pub(super) struct Assembled {
    pub(super) app: Arc<App>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) state: DatabaseState,
    pub(super) database: Arc<dyn Database>,
    pub(super) server: config::Server,
    /// The work that is still to be done before a call can be answered.
    pub(super) opening: Opening,
    /// The task that fetches JWKs for as long as it runs.
    pub(super) refresh: JoinHandle<()>,
}

/// Builds everything, for requests that run on the runtime `requests`. The database and the KMS may
/// be down: nothing is sent to either.
pub(super) async fn assemble(
    config: Config,
    requests: Handle,
    stop: CancellationToken,
) -> Result<Assembled, Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (authenticator, policy) = identity(&config.auth, clock.clone())?;
    let Provider { kms, connections, requests: kms_requests, .. } = provider(config.kms)?;
    let key = Key { id: KeyId::FIRST, kms: kms.clone(), connections };
    let keys = KeySet::new(key, []);
    let webhook = config.webhook.map(webhook).transpose()?.map(Arc::new);
    let settings = TenantSettings { policy: Arc::new(policy), rates: config.rates, webhook };
    let has_owner = config.store.has_owner();
    let streams = streams(config.audit_streams)?;
    let database = open(&config.store).await?;
    let store: Arc<dyn store::Store> = database.clone();
    let committer = Arc::new(Committer::start_for(requests, store.clone(), clock.clone()));
    let admin = LogAdmin::new(database.clone(), committer.clone(), clock.clone(), None);
    if config.row_mac.keys.is_none() {
        warn!(
            "BYOK_ROW_MAC_KEY is not set: anyone who can write to the database can change rows of DEKs unnoticed"
        );
    }
    let tenants = Tenants::fixed(keys, settings);
    let keyring = Keyring::new(keyring::Parts {
        store: store.clone(),
        log: store.clone(),
        tenants: tenants.clone(),
        committer: committer.clone(),
        clock: clock.clone(),
        cache: config.dek_cache,
        pool: config.dek_pool,
        guard: config.key_guard,
        row_mac: config.row_mac,
    });
    let kms_log = kms.profile().logs_context.then(|| tenants.clone());
    let checkpoints = Arc::new(checkpoints(config.audit, store.clone(), kms_log)?);
    let jobs = Jobs {
        tenants: tenants.clone(),
        store: store.clone(),
        keyring: keyring.clone(),
        committer: committer.clone(),
        clock: clock.clone(),
        checkpoints: checkpoints.clone(),
        streams: streams.clone(),
    };
    let app = App::new(Parts {
        tenants,
        keyring,
        committer,
        store,
        kms_requests,
        authenticator: Arc::new(authenticator),
        limits: config.limits,
        in_flight: config.server.in_flight,
        clock,
        checkpoints: checkpoints.clone(),
        streams,
    });
    let app = Arc::new(app);
    let state = DatabaseState::unknown(database.level());
    let opening = Opening {
        database: database.clone(),
        state: state.clone(),
        admin,
        app: app.clone(),
        tenant: PRIMARY.to_owned(),
        checkpoints,
        retention: config.audit_retention,
        has_owner,
    };
    let identity = app.clone();
    let refresh = tokio::spawn(async move { identity.keep_identity_keys_fresh(&stop).await });
    Ok(Assembled { app, jobs: Arc::new(jobs), state, database, server: config.server, opening, refresh })
}

/// The steps between a server that listens and one that serves.
pub(super) struct Opening {
    database: Arc<dyn Database>,
    state: DatabaseState,
    admin: LogAdmin,
    app: Arc<App>,
    /// The name of the tenant that is served.
    tenant: String,
    checkpoints: Arc<Checkpoints>,
    retention: config::AuditRetention,
    has_owner: bool,
}

impl Opening {
    /// Serves this tenant, under the key of the configuration. Unlike the primary one, which a
    /// start creates, it must exist.
    pub(super) fn for_tenant(self, tenant: String) -> Self {
        Self { tenant, ..self }
    }

    /// Waits for a database that is out of reach, migrates it to the schema that this binary needs,
    /// checks the log against what was published, and begins to serve calls. Returns the task that
    /// does the database's regular upkeep.
    ///
    /// # Errors
    /// The database was reached, but cannot be used.
    pub(super) async fn open(self, stop: CancellationToken) -> Result<JoinHandle<()>, Failure> {
        let Self { database, state, admin, app, tenant, checkpoints, retention, has_owner } = self;
        let MigrationReport { applied, .. } = migrate(&*database).await?;
        let tenant = match tenant.as_str() {
            PRIMARY => primary(&*database).await?,
            name => under_configured_key(&*database, name).await?,
        };
        let exposure = database.exposure().await;
        let audit_protected = exposure.as_ref().is_ok_and(|exposure| !exposure.any());
        state.set(DatabaseFound { applied, audit_protected });
        check_log(&checkpoints, &Arc::new(tenant.clone())).await;
        app.open(tenant);
        // Without the owner's rights, `byok audit prune` drops old entries.
        let owns = has_owner || exposure.is_ok_and(|exposure| exposure.owns_audit);
        let upkeep = Upkeep { database, admin: owns.then_some(admin), checkpoints, retention };
        Ok(tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = upkeep.run() => {}
            }
        }))
    }
}

/// Opens the database that the environment names, whatever its schema.
pub(super) async fn database_only(env: &Env) -> Result<Arc<dyn Database>, Failure> {
    let mut reader = Reader::new(env);
    let settings = config::Store::read(&mut reader, None);
    match settings {
        Some(settings) => open(&settings).await,
        None => Err(Failure::Configuration(reader.into_errors())),
    }
}

/// Does the same, but requires a schema that this binary reads. What is read from another schema
/// says nothing about the log.
pub(super) async fn database(env: &Env) -> Result<Arc<dyn Database>, Failure> {
    readable(database_only(env).await?).await
}

async fn readable(database: Arc<dyn Database>) -> Result<Arc<dyn Database>, Failure> {
    database.schema().await.map_err(read_failure)?.usable().map_err(Failure::Schema)?;
    Ok(database)
}

/// Opens the database that the environment names, and reads the tenant with this name, which must
/// exist.
pub(super) async fn log(env: &Env, tenant: &str) -> Result<(Arc<dyn Database>, Tenant), Failure> {
    with_tenant(database(env).await?, tenant).await
}

/// Does the same as the owner of the tables.
pub(super) async fn as_owner(env: &Env, tenant: &str) -> Result<(Arc<dyn Database>, Tenant), Failure> {
    with_tenant(database_as_owner(env).await?, tenant).await
}

/// Opens the database as the owner of the tables.
pub(super) async fn database_as_owner(env: &Env) -> Result<Arc<dyn Database>, Failure> {
    let mut reader = Reader::new(env);
    match config::Store::read(&mut reader, None) {
        Some(settings) => readable(open(&settings.as_owner()).await?).await,
        None => Err(Failure::Configuration(reader.into_errors())),
    }
}

async fn with_tenant(
    database: Arc<dyn Database>,
    name: &str,
) -> Result<(Arc<dyn Database>, Tenant), Failure> {
    let tenant = database.tenant(name).await.map_err(read_failure)?;
    Ok((database, tenant.ok_or_else(|| no_tenant(name))?))
}

/// Returns the failure for a tenant that does not exist.
pub(super) fn no_tenant(name: &str) -> Failure {
    Failure::Running(match name {
        PRIMARY => "there is no log yet: nothing was ever served".to_owned(),
        _ => format!("there is no tenant {name:?}"),
    })
}

/// Reads the tenant with this name, which must exist, must not be locked, and must have no other
/// current key than the one of the configuration.
async fn under_configured_key(database: &dyn Database, name: &str) -> Result<Tenant, Failure> {
    let row = database.tenant_named(name).await.map_err(read_failure)?.ok_or_else(|| no_tenant(name))?;
    if row.locked {
        return Err(Failure::Running(format!("the tenant {name:?} is locked")));
    }
    let keys = database.keys(row.tenant.uid).await.map_err(read_failure)?;
    let mut current = keys.iter().filter(|key| key.state == KeyState::Current);
    if current.any(|key| key.id != KeyId::FIRST || key.provider.is_some()) {
        return Err(Failure::Running(format!(
            "the tenant {name:?} has a key of its own, which is not the one of this configuration"
        )));
    }
    Ok(row.tenant)
}

/// Returns the failure for a database that cannot be read.
pub(super) fn read_failure(error: store::ReadError) -> Failure {
    Failure::Running(match error {
        store::ReadError::Unavailable | store::ReadError::Busy => "the database is out of reach".to_owned(),
        store::ReadError::Rejected => {
            "the database refuses reads: check the rights of the role (`byok doctor`)".to_owned()
        }
        store::ReadError::Malformed => {
            "a row of the database is damaged, or not of a form that the server writes".to_owned()
        }
    })
}

/// A part of the identity settings, or its errors.
type Read<T> = Result<T, Vec<ConfigError>>;

/// Builds the authenticator and the policy, each with its own errors.
pub(super) fn parts_of_identity(
    settings: &config::Auth,
    clock: Arc<dyn Clock>,
) -> Result<(Read<Authenticator>, Read<Policy>), Failure> {
    // This client fetches JWKs. If an identity provider redirects, the target is not the one that
    // was configured.
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build();
    let client = client.map_err(|_| Failure::Running("the HTTP client cannot be built".to_owned()))?;
    Ok((Authenticator::new(settings, client, clock), Policy::of(settings)))
}

/// Builds the authenticator and the policy, and reports the errors of both.
pub(super) fn identity(
    settings: &config::Auth,
    clock: Arc<dyn Clock>,
) -> Result<(Authenticator, Policy), Failure> {
    match parts_of_identity(settings, clock)? {
        (Ok(authenticator), Ok(policy)) => Ok((authenticator, policy)),
        (authenticator, policy) => {
            let errors = [authenticator.err(), policy.err()];
            Err(Failure::Configuration(errors.into_iter().flatten().flatten().collect()))
        }
    }
}

/// One KMS, with a separate interface for each kind of use.
pub(super) struct Provider {
    pub(super) kms: Arc<dyn Kms>,
    pub(super) diagnosis: Arc<dyn KmsDiagnosis>,
    pub(super) connections: Option<Arc<dyn Connections>>,
    pub(super) requests: Arc<RequestCounts>,
}

impl Provider {
    fn of<P: Kms + KmsDiagnosis + 'static>(
        provider: P,
        connections: Option<Arc<dyn Connections>>,
        requests: Arc<RequestCounts>,
    ) -> Self {
        let provider = Arc::new(provider);
        Self { kms: provider.clone(), diagnosis: provider, connections, requests }
    }
}

/// Builds the configured KMS. Sends nothing.
pub(super) fn provider(settings: config::Kms) -> Result<Provider, Failure> {
    let errors = |error: ConfigError| Failure::Configuration(vec![error]);
    Ok(match settings {
        config::Kms::Aws(settings) => {
            let aws = AwsKms::new(*settings).map_err(errors)?;
            let (connections, requests) = (aws.connections(), aws.request_counts());
            Provider::of(aws, Some(connections), requests)
        }
        config::Kms::Gcp(settings) => {
            let gcp = GcpKms::new(*settings).map_err(errors)?;
            let (connections, requests) = (gcp.connections(), gcp.request_counts());
            Provider::of(gcp, Some(connections), requests)
        }
        config::Kms::Azure(settings) => {
            let azure = AzureKeyVault::new(*settings).map_err(errors)?;
            let (connections, requests) = (azure.connections(), azure.request_counts());
            Provider::of(azure, Some(connections), requests)
        }
        config::Kms::Vault(settings) => {
            let vault = VaultTransit::new(*settings).map_err(errors)?;
            let (connections, requests) = (vault.connections(), vault.request_counts());
            Provider::of(vault, Some(connections), requests)
        }
        // A local key sends no requests out of this process.
        config::Kms::Local(path) => {
            Provider::of(LocalKey::open(path).map_err(errors)?, None, Arc::new(RequestCounts::new("local")))
        }
    })
}

/// Builds the checkpoints of all tenants' logs. If `kms_log` is given, they are also published in
/// the log of each tenant's KMS. Reads and sends nothing.
pub(super) fn checkpoints(
    settings: config::Audit,
    store: Arc<dyn store::Store>,
    kms_log: Option<Tenants>,
) -> Result<Checkpoints, Failure> {
    let config::Audit { origin, keys, destinations } = settings;
    let config::CheckpointDestinations { directory, bucket, webhook: hook, every } = destinations;
    let unbuilt = || Failure::Running("the HTTP client of the bucket cannot be built".to_owned());
    let bucket = bucket.map(|bucket| Archive::bucket(bucket).ok_or_else(unbuilt)).transpose()?;
    let archives = [directory.map(Archive::directory), bucket].into_iter().flatten().map(Receiver::Archive);
    let hook = hook.map(webhook).transpose()?.map(Receiver::Webhook);
    Ok(Checkpoints::new(CheckpointParts {
        store,
        deployment: origin,
        keys,
        destinations: archives.chain(hook).chain(kms_log.map(Receiver::Kms)).map(Destination::new).collect(),
        publish_every: every,
        clock: Arc::new(SystemClock),
    }))
}

/// Checks the log against what was published, before anything is served.
async fn check_log(checkpoints: &Checkpoints, tenant: &Arc<Tenant>) {
    if !checkpoints.signs() {
        warn!(
            "no key signs checkpoints of the audit log: the owner of the database can rewrite the log unnoticed"
        );
    }
    let log = checkpoints.of(tenant);
    while log.check().await.is_err() {
        warn!("the audit log cannot be read: trying again");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Builds a webhook. Sends nothing.
fn webhook(settings: config::Webhook) -> Result<Webhook, Failure> {
    Webhook::new(settings)
        .ok_or_else(|| Failure::Running("the HTTP client of the webhook cannot be built".to_owned()))
}

/// Builds the streams of entries. Opens and sends nothing.
fn streams(settings: config::AuditStreams) -> Result<Arc<[Stream]>, Failure> {
    let file = settings.file.map(Stream::to_file);
    let posted = settings.webhook.map(webhook).transpose()?.map(Stream::to_webhook);
    Ok(file.into_iter().chain(posted).collect())
}

pub(super) async fn open(settings: &config::Store) -> Result<Arc<dyn Database>, Failure> {
    store::open(settings).await.map_err(|error| Failure::Running(error.to_string()))
}

async fn migrate(database: &dyn Database) -> Result<MigrationReport, Failure> {
    loop {
        match database.migrate().await {
            Ok(report) => return Ok(report),
            Err(MigrateError::Unavailable) => warn!("the database is out of reach: trying again"),
            Err(error) => return Err(Failure::Running(format!("the database cannot be used: {error}"))),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Returns the tenant `primary`, which the first replica creates.
async fn primary(database: &dyn Database) -> Result<Tenant, Failure> {
    loop {
        match database.tenant(PRIMARY).await {
            Ok(Some(tenant)) => return Ok(tenant),
            Ok(None) => {
                let tenant = Tenant { uid: TenantUid(crypto::random()), name: PRIMARY.to_owned() };
                let changes = vec![Change::CreateTenant(tenant.clone())];
                match database.commit(&Batch::of_changes(tenant.uid, changes)).await {
                    Ok(_) => continue,
                    Err(CommitError::Rejected | CommitError::Fenced | CommitError::Rewound) => {
                        return Err(Failure::Running("the database refuses writes".to_owned()));
                    }
                    Err(CommitError::Moved { .. } | CommitError::Unavailable | CommitError::Unknown) => {}
                }
            }
            Err(store::ReadError::Rejected | store::ReadError::Malformed) => {
                return Err(Failure::Running("the database refuses reads".to_owned()));
            }
            Err(store::ReadError::Unavailable | store::ReadError::Busy) => {
                warn!("the database is out of reach: trying again")
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
