//! A server for several tenants in this process: use cases and jobs on one PostgreSQL database, and
//! a KMS for each tenant.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use byok::app::{App, Committed, Context, DecryptItem, EncryptItem, Plaintext};
use byok::audit::Committer;
use byok::auth::{Authenticator, MintClaims, mint};
use byok::config::{self, Auth, DekCache, DekPool, Env, Jwt, KeyGuard, Limits, Reader, RowMac, SigningKeys};
use byok::crypto::{Ed25519SigningKey, SecretText};
use byok::jobs::{CheckpointParts, Checkpoints, Destination, Jobs, Receiver, Stream};
use byok::keyring::Keyring;
use byok::kms::RequestCounts;
use byok::model::{Clock, ErrorCode, Operation, RequestId, SystemClock, Tenant, TenantUid};
use byok::store::{Change, Commits as _, Postgres};
use byok::tenancy::{Caller, TenantSettings, Tenants};
use byok::webhook::Webhook;
use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap};
use tokio_util::sync::CancellationToken;

use super::postgres::{TestDatabase, execute, migrated};
use super::rows::changes;
use super::tenancy::{ample_settings, first_key};
use super::tenant_kms::{Mode, TenantKms};

pub(crate) const SHARED_SECRET: &str = "a-secret-of-some-length";
const WEBHOOK_SECRET: &str = "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMnIHdlYmhvb2s=";
const JWT_KEY: &str = "a-key-of-at-least-thirty-two-bytes-for-hs256";

/// A server for several tenants, which stops when it is dropped.
pub(crate) struct Several {
    pub(crate) app: Arc<App>,
    pub(crate) store: Arc<Postgres>,
    pub(crate) kmses: HashMap<String, Arc<TenantKms>>,
    stop: CancellationToken,
    database: TestDatabase,
    _folder: tempfile::TempDir,
}

impl Several {
    /// Serves tenants with these names on a new database. The first has the uid 0101…, the second
    /// 0202…, and so on.
    pub(crate) async fn of(names: &[&str]) -> Self {
        let (database, store) = migrated().await;
        Self::on(database, store, names).await
    }

    /// Serves tenants with these names on this database, through this store.
    pub(crate) async fn on(database: TestDatabase, store: Arc<Postgres>, names: &[&str]) -> Self {
        Self::posting(database, store, names, None).await
    }

    /// Serves such tenants, and posts their incidents, checkpoints and entries below this URL.
    pub(crate) async fn posting_to(url: &str, names: &[&str]) -> Self {
        let (database, store) = migrated().await;
        Self::posting(database, store, names, Some(url)).await
    }

    async fn posting(
        database: TestDatabase,
        store: Arc<Postgres>,
        names: &[&str],
        url: Option<&str>,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut kmses = HashMap::new();
        for (n, name) in (1_u8..).zip(names) {
            let tenant = Tenant { uid: TenantUid([n; 16]), name: (*name).to_owned() };
            let created = store.commit(&changes(tenant.uid, vec![Change::CreateTenant(tenant)])).await;
            created.expect("a tenant is created");
            let kms = TenantKms::create(folder.path().join(format!("{name}.json")));
            kmses.insert((*name).to_owned(), Arc::new(kms));
        }
        let webhook = |path: &str| url.map(|url| webhook(&format!("{url}/{path}")));
        let keys = url.map(|_| {
            let key = SigningKeys::new(Ed25519SigningKey::generate_pem(), None);
            key.map_err(drop).expect("a signing key")
        });
        let checkpoint_webhook = webhook("checkpoints").map(Receiver::Webhook).map(Destination::new);
        let streams: Arc<[Stream]> = webhook("entries").map(Stream::to_webhook).into_iter().collect();
        let settings = TenantSettings { webhook: webhook("incidents").map(Arc::new), ..ample_settings() };
        let of_tenant = kmses.clone();
        let tenants = Tenants::claimed(
            store.clone(),
            Box::new(move |tenant, _| Some(first_key(of_tenant.get(&tenant.name)?.clone()))),
            settings,
        );
        let seconds = Duration::from_secs;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let committer = Arc::new(Committer::start(store.clone(), clock.clone()));
        let keyring = Keyring::new(byok::keyring::Parts {
            store: store.clone(),
            log: store.clone(),
            tenants: tenants.clone(),
            committer: committer.clone(),
            clock: clock.clone(),
            cache: DekCache { time_to_live: seconds(300), entries: 10_000 },
            pool: DekPool { size: 0 },
            // A long timeout, so that a busy machine does not look like an outage.
            guard: KeyGuard { probe_every: seconds(1), probe_timeout: seconds(9), resume_after: seconds(0) },
            row_mac: RowMac::default(),
        });
        let checkpoints = Arc::new(Checkpoints::new(CheckpointParts {
            store: store.clone(),
            deployment: "byok".to_owned(),
            keys,
            destinations: checkpoint_webhook.into_iter().collect(),
            publish_every: seconds(1),
            clock: clock.clone(),
        }));
        let env = Env::from_pairs([
            ("HASURA_GRAPHQL_JWT_SECRET", jwt_secret()),
            ("BYOK_HASURA_SECRET", SHARED_SECRET.to_owned()),
        ]);
        let auth = Auth::read(&mut Reader::new(&env));
        let authenticator = Authenticator::new(&auth, super::http(), clock.clone());
        let app = Arc::new(App::new(byok::app::Parts {
            tenants: tenants.clone(),
            store: store.clone(),
            kms_requests: Arc::new(RequestCounts::new("local")),
            keyring: keyring.clone(),
            committer: committer.clone(),
            authenticator: Arc::new(authenticator.map_err(drop).expect("the settings are sound")),
            limits: Limits::read(&mut Reader::new(&env), &ample_settings().rates),
            in_flight: 2_048,
            clock: clock.clone(),
            checkpoints: checkpoints.clone(),
            streams: streams.clone(),
        }));
        let jobs = Jobs {
            tenants,
            store: store.clone(),
            keyring: keyring.clone(),
            committer,
            clock,
            checkpoints,
            streams,
        };
        let stop = CancellationToken::new();
        drop(Arc::new(jobs).start(stop.clone()));
        Self { app, store, kmses, stop, database, _folder: folder }
    }

    pub(crate) fn set(&self, tenant: &str, mode: Mode) {
        self.kmses[tenant].set(mode);
    }

    /// The caller whose JWT names this tenant.
    pub(crate) async fn caller(&self, tenant: &str) -> Result<Caller, ErrorCode> {
        self.admit(&headers(&[("x-hasura-tenant-id", tenant)])).await
    }

    /// The caller of a request with these headers.
    pub(crate) async fn admit(&self, headers: &HeaderMap) -> Result<Caller, ErrorCode> {
        let admitted = self.app.admit(headers, &Extensions::new(), RequestId::fresh()).await;
        admitted.map_err(|refusal| refusal.code)
    }

    /// Encrypts the record's id as this caller.
    pub(crate) async fn encrypt_as(&self, caller: &Caller, record: &str) -> Result<String, ErrorCode> {
        let item = EncryptItem {
            plaintext: Ok(Plaintext::new(record.as_bytes().to_vec())),
            context: context(record),
        };
        let answered = self.app.encrypt(caller, vec![Ok(item)]).await;
        let mut answered = answered.map_err(|refusal| refusal.code)?;
        answered.committed.into_iter().for_each(Committed::given);
        answered.answers.remove(0).map(|one| one.ciphertext).map_err(|refusal| refusal.code)
    }

    /// Decrypts a token of the record's id as this caller.
    pub(crate) async fn decrypt_as(
        &self,
        caller: &Caller,
        token: &str,
        record: &str,
    ) -> Result<(), ErrorCode> {
        let item = DecryptItem { ciphertext: token.to_owned(), context: context(record) };
        let answered = self.app.decrypt(caller, Operation::Decrypt, vec![Ok(item)]).await;
        let mut answered = answered.map_err(|refusal| refusal.code)?;
        answered.committed.into_iter().for_each(Committed::given);
        let opened = answered.answers.remove(0).map_err(|refusal| refusal.code)?;
        assert_eq!(opened.plaintext.expose(), record.as_bytes());
        Ok(())
    }

    pub(crate) async fn encrypt(&self, tenant: &str, record: &str) -> Result<String, ErrorCode> {
        self.encrypt_as(&self.caller(tenant).await?, record).await
    }

    pub(crate) async fn decrypt(&self, tenant: &str, token: &str, record: &str) -> Result<(), ErrorCode> {
        self.decrypt_as(&self.caller(tenant).await?, token, record).await
    }

    /// Runs a statement as the owner of the tables.
    pub(crate) async fn execute(&self, sql: &str) {
        execute(&self.database.url, sql).await;
    }
}

impl Drop for Several {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The headers of an administrator's request, with these further claims in its JWT.
pub(crate) fn headers(claims: &[(&str, &str)]) -> HeaderMap {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let claims = MintClaims {
        role: "admin".to_owned(),
        allowed_roles: vec!["admin".to_owned()],
        user: Some("user-1".to_owned()),
        variables: claims.iter().map(owned).collect(),
        lasts: Duration::from_secs(3_600),
    };
    let setting = Jwt::One(SecretText::new(jwt_secret()));
    let token = mint(&setting, &claims, SystemClock.now()).expect("a token");
    HeaderMap::from_iter([(AUTHORIZATION, format!("Bearer {token}").parse().expect("a header"))])
}

/// A webhook to this URL.
fn webhook(url: &str) -> Webhook {
    let variables = [("BYOK_INCIDENT_WEBHOOK_URL", url), ("BYOK_INCIDENT_WEBHOOK_SECRET", WEBHOOK_SECRET)];
    let settings = config::Webhook::read(&mut Reader::new(&Env::from_pairs(variables)));
    settings.and_then(Webhook::new).expect("a webhook")
}

fn context(record: &str) -> Context {
    Context::from_pairs([("record_id", record)]).expect("a context")
}

fn jwt_secret() -> String {
    format!(r#"{{"type":"HS256","key":"{JWT_KEY}"}}"#)
}
