//! `byok doctor`: checks the configuration, the identity provider, the database, the roles, the
//! webhooks and the key. For each it says what is wrong, what it leaves unprotected and what to do.
//! It changes nothing in the database, except that it adds an entry that says which stored DEKs it
//! has tried to unwrap. It also wraps and unwraps one DEK that is not kept anywhere.

mod audit;
mod destinations;
mod key;
mod rows;
mod stored;

use std::sync::Arc;
use std::time::Duration;

use super::{Failure, assemble, memory, migrate};
use crate::auth::KeysFound;
use crate::config;
use crate::config::{Config, Defaults, Engine, Env};
use crate::model::{SystemClock, Tenant};
use crate::store::{Database, Exposure, MigrateError, ReadError, StreamName};

/// The time limit for the database and the key to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Prints one line for each finding, and counts the faults.
#[derive(Default)]
struct Findings {
    faults: usize,
}

impl Findings {
    fn ok(&mut self, what: &str) {
        println!("ok    {what}");
    }

    /// Reports something that works, but leaves something unprotected.
    fn warn(&mut self, what: &str, remedy: &str) {
        println!("warn  {what}\n      → {remedy}");
    }

    /// Reports something that does not work.
    fn fail(&mut self, what: &str, remedy: &str) {
        self.faults += 1;
        println!("FAIL  {what}\n      → {remedy}");
    }
}

/// The log that is checked.
struct Log {
    database: Arc<dyn Database>,
    tenant: Arc<Tenant>,
}

pub(super) async fn run(tenant: &str) -> Result<(), Failure> {
    let mut findings = Findings::default();
    let env = Env::of_process();
    let config = match Config::read(&env, &Defaults::serve()) {
        Ok(config) => config,
        Err(errors) => {
            for error in &errors {
                println!("FAIL  {error}");
            }
            return Err(Failure::FaultFound);
        }
    };
    findings.ok("configuration: every variable is understood");
    listener(&mut findings, &config.server);
    identity(&mut findings, &config.auth).await;
    swap(&mut findings);
    let has_tables = database(&mut findings, &config.store, &config.audit_streams, tenant).await;
    let log = if has_tables { log(&config.store, tenant).await? } else { None };
    destinations::stream_file(&mut findings, &config.audit_streams);
    for (of, webhook) in [
        ("incidents", &config.webhook),
        ("checkpoints", &config.audit.destinations.webhook),
        ("the audit stream", &config.audit_streams.webhook),
    ] {
        destinations::webhook(&mut findings, of, webhook.as_ref()).await;
    }
    let may_append = audit::check(&mut findings, config.audit, log.as_ref()).await;
    rows::check(&mut findings, config.row_mac, &config.kms, log.as_ref()).await;
    let key = key::check(&mut findings, config.kms).await;
    stored::check(&mut findings, log.as_ref(), key.filter(|_| may_append)).await;
    probing(&mut findings, &config.key_guard);
    match findings.faults {
        0 => Ok(()),
        _ => Err(Failure::FaultFound),
    }
}

/// Reads the tenant whose log is checked. `None` if the database cannot be read, which is reported
/// elsewhere, or if nothing was ever served.
///
/// # Errors
/// There is no such tenant.
async fn log(settings: &config::Store, tenant: &str) -> Result<Option<Log>, Failure> {
    let Ok(database) = assemble::open(settings).await else { return Ok(None) };
    match database.tenant(tenant).await {
        Ok(Some(tenant)) => Ok(Some(Log { database, tenant: Arc::new(tenant) })),
        Ok(None) if tenant != assemble::PRIMARY => Err(assemble::no_tenant(tenant)),
        Ok(None) | Err(_) => Ok(None),
    }
}

/// Reports what the probes of a key cost, in the units that the provider bills.
fn probing(findings: &mut Findings, guard: &config::KeyGuard) {
    let every = guard.probe_every.as_secs();
    let month = Duration::from_secs(30 * 24 * 3_600).as_secs() / every.max(1);
    findings.ok(&format!(
        "key: probed every {every} s while it is in use: {month} requests to the KMS in 30 days for one key version, whatever \
         the number of servers; a key that is turned off stops them within {} s",
        guard.bound().as_secs_f64()
    ));
}

fn swap(findings: &mut Findings) {
    match (memory::may_lock(), memory::swap_is_on()) {
        (true, _) => findings.ok("memory: `serve` locks it, so that nothing of it reaches swap"),
        (false, false) => findings.ok("memory: there is no swap that it could reach"),
        (false, true) => findings.warn(
            "memory: this process may not lock it, and swap is on: DEKs and plaintexts in use can reach a disk",
            "allow it (LimitMEMLOCK=infinity in a systemd unit, `docker run --ulimit memlock=-1`, or the capability IPC_LOCK), \
             or serve on a node without swap",
        ),
    }
}

fn listener(findings: &mut Findings, server: &config::Server) {
    match (&server.tls, server.listen.ip().is_loopback()) {
        (Some(_), _) => findings.ok("listener: TLS"),
        (None, true) => findings.ok("listener: this machine only"),
        (None, false) => findings.warn(
            "listener: plaintexts and tokens cross the network unencrypted, unless a proxy in front terminates TLS",
            "set BYOK_TLS_CERT_FILE and BYOK_TLS_KEY_FILE, or keep the port inside a private network",
        ),
    }
    if server.console {
        findings.warn(
            "console: GraphiQL is served to everybody who reaches the port",
            "leave BYOK_CONSOLE unset in production",
        );
    }
}

async fn identity(findings: &mut Findings, auth: &config::Auth) {
    match assemble::identity(auth, Arc::new(SystemClock)) {
        Ok((authenticator, _)) => {
            findings.ok("identity: JWT configuration and permissions are understood");
            authenticator.try_keys().await.into_iter().for_each(|found| jwk_url(findings, found));
        }
        Err(Failure::Configuration(errors)) => {
            errors
                .iter()
                .for_each(|error| findings.fail(&error.to_string(), "correct it; `serve` refuses it too"));
        }
        Err(Failure::Running(problem)) => findings.fail(&problem, "correct it; `serve` refuses it too"),
        Err(Failure::Refused(_) | Failure::Schema(_) | Failure::FaultFound) => {}
    }
    if auth.hasura_secrets.is_empty() {
        findings.warn(
            "identity: no shared secret with Hasura: x-hasura-* headers are ignored, only JWTs and admin tokens count",
            "set BYOK_HASURA_SECRET here and send it from Hasura, where Hasura authenticates by admin secret or webhook",
        );
    }
    if !auth.require_exp {
        findings
            .warn("identity: JWTs without `exp` are accepted for ever", "leave BYOK_JWT_REQUIRE_EXP unset");
    }
}

/// Reports the answer of a `jwk_url`.
fn jwk_url(findings: &mut Findings, found: KeysFound) {
    let KeysFound { host, keys } = found;
    match keys {
        Err(problem) => findings.fail(
            &format!("identity: the keys of jwk_url cannot be fetched from {host}: {problem}"),
            "check jwk_url, and that this machine may connect to it; until a server has them, it answers every JWT with 503",
        ),
        Ok((usable, unused)) => {
            match usable {
                0 => findings.fail(
                    &format!("identity: {host} has no key that JWTs can be verified with"),
                    "let the identity provider sign with RS256 to RS512, PS256 to PS512, ES256, ES384 or EdDSA",
                ),
                _ => findings.ok(&format!("identity: {host} has {usable} keys that JWTs are verified with")),
            }
            for key in unused {
                findings.warn(
                    &format!("identity: a key of {host} is not used: {key}"),
                    "tokens that are signed with it are refused; no matter if none are",
                );
            }
        }
    }
}

/// Checks the database. Returns whether its content can be checked.
async fn database(
    findings: &mut Findings,
    settings: &config::Store,
    streams: &config::AuditStreams,
    tenant: &str,
) -> bool {
    let database = match assemble::open(settings).await {
        Ok(database) => database,
        Err(Failure::Running(problem)) => {
            findings.fail(&problem, "correct DATABASE_URL");
            return false;
        }
        Err(Failure::Configuration(_) | Failure::Refused(_) | Failure::Schema(_) | Failure::FaultFound) => {
            return false;
        }
    };
    match tokio::time::timeout(PATIENCE, database.schema()).await {
        Err(_) | Ok(Err(ReadError::Unavailable | ReadError::Busy)) => {
            findings.fail("database: out of reach", "check DATABASE_URL and that the database runs");
            return false;
        }
        Ok(Err(ReadError::Rejected | ReadError::Malformed)) => {
            findings.fail("database: it refuses reads", "check the rights of DATABASE_URL's role");
            return false;
        }
        Ok(Ok(report)) => match report.usable() {
            Ok(()) => {
                findings
                    .ok(&format!("database: {} of {} migrations applied", report.applied, report.expected));
                if report.waiting > 0 {
                    findings.warn(
                        "database: the serving role can still write the tables that the previous release wrote itself",
                        &migrate::waiting(report.waiting),
                    );
                }
            }
            // Not a fault: `serve` applies the missing migrations.
            Err(MigrateError::SchemaTooOld { applied, expected }) => {
                missing_tables(findings, settings, applied, expected);
                one_url(findings, settings, true);
                return false;
            }
            Err(error) => {
                findings.fail(&format!("database: {error}"), "run `byok migrate`, or upgrade this binary")
            }
        },
    }
    let owns = database.exposure().await.map_or(true, |exposure| exposure.owns_audit || exposure.superuser);
    one_url(findings, settings, owns);
    exposure(findings, &*database).await;
    let configured =
        [(StreamName::File, streams.file.is_some()), (StreamName::Webhook, streams.webhook.is_some())];
    for (name, _) in configured.into_iter().filter(|(_, is_on)| *is_on) {
        stream(findings, &*database, tenant, name).await;
    }
    true
}

/// Reports a database that lacks tables, which `serve` makes.
fn missing_tables(findings: &mut Findings, settings: &config::Store, applied: u32, expected: u32) {
    let by = match &settings.engine {
        Engine::Postgres(postgres) if postgres.migration_url.is_some() => {
            ", by the role of BYOK_MIGRATION_DATABASE_URL"
        }
        Engine::Postgres(_) => ", by the role of DATABASE_URL, which needs the right to create tables",
        Engine::Sqlite { .. } => "",
    };
    findings.ok(&match applied {
        0 => format!("database: it is empty; tables and log will be made at start{by}"),
        _ => format!(
            "database: {applied} of {expected} migrations applied; the others will be made at start{by}"
        ),
    });
}

/// Warns if one URL both serves and migrates. Before there are tables, the role that migrates
/// becomes their owner.
fn one_url(findings: &mut Findings, settings: &config::Store, owns: bool) {
    if let Engine::Postgres(postgres) = &settings.engine
        && postgres.migration_url.is_none()
        && owns
    {
        findings.warn(
            "database: one URL serves and migrates, so a stolen serving role owns the audit log",
            "set BYOK_MIGRATION_DATABASE_URL to the owner's URL, and DATABASE_URL to a role that owns nothing",
        );
    }
}

/// Reports how far a stream of a tenant's log has come.
async fn stream(findings: &mut Findings, database: &dyn Database, tenant: &str, name: StreamName) {
    let shown = name.as_str();
    let read = async {
        let Some(tenant) = database.tenant(tenant).await? else { return Ok(None) };
        let row = database.streams(tenant.uid).await?.into_iter().find(|row| row.name == name);
        let end = database.log_size(tenant.uid).await?;
        Ok(row.map(|row| (end.saturating_sub(row.next), row.failing_since)))
    };
    match read.await {
        Err(ReadError::Unavailable | ReadError::Busy | ReadError::Rejected | ReadError::Malformed) => {
            findings.fail(&format!("audit stream {shown}: its position cannot be read"), "run `byok migrate`");
        }
        Ok(None) => findings.ok(&format!("audit stream {shown}: not begun; a server begins it")),
        Ok(Some((behind, None))) => {
            findings.ok(&format!("audit stream {shown}: {behind} entries behind the log"));
        }
        Ok(Some((behind, Some(since)))) => findings.fail(
            &format!("audit stream {shown}: it has failed since {since}; {behind} entries behind the log"),
            "repair its destination; the server's log has the error. Nothing is lost: the stream continues from there",
        ),
    }
}

async fn exposure(findings: &mut Findings, database: &dyn Database) {
    let Ok(exposure) = database.exposure().await else {
        return findings
            .fail("database: the serving role's rights cannot be read", "run `byok migrate` first");
    };
    let Exposure {
        owns_audit,
        superuser,
        may_change_entries,
        unguarded,
        volatile,
        schema_is_open,
        open_search_path,
    } = exposure;
    let own = "serve with a role of its own that owns nothing, and set BYOK_MIGRATION_DATABASE_URL";
    for (open, what, remedy) in [
        (
            superuser,
            "database: the serving role is a superuser; nothing in the database protects the log from it",
            own,
        ),
        (owns_audit, "database: the serving role owns the audit log and could drop it or its triggers", own),
        (
            may_change_entries,
            "database: the serving role has the right to change entries; only triggers refuse it",
            own,
        ),
        (
            unguarded,
            "database: a trigger that refuses changes of entries is missing or off",
            "run `byok migrate`, and find out who turned it off",
        ),
        (
            volatile,
            "database: fsync or full_page_writes is off, so a power cut loses acknowledged entries",
            "turn both on",
        ),
        (
            schema_is_open,
            "database: roles that own neither the tables nor their schema may make objects in it, and so functions that other \
             roles call instead of PostgreSQL's own",
            "as the schema's owner, REVOKE CREATE ON SCHEMA … FROM PUBLIC and from each such role, or give byok a schema of \
             its own",
        ),
        (
            open_search_path,
            "database: a function of byok's can be made to call functions of other roles: its search_path is not pg_catalog, pg_temp",
            "run `byok migrate`, and find out who changed it",
        ),
    ] {
        if open {
            findings.warn(what, remedy);
        }
    }
    if !exposure.any() {
        findings.ok("database: the serving role can neither change nor drop entries");
    }
}
