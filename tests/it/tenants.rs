//! One server for several tenants: each call is for the tenant that a verified JWT names, under that tenant's keys, and
//! what befalls one tenant is no other's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use byok::app::{App, Committed, Context, DecryptItem, EncryptItem, Plaintext};
use byok::audit::Committer;
use byok::auth::{Authenticator, MintClaims, mint};
use byok::config::{Auth, DekCache, DekPool, Env, Jwt, KeyGuard, Limits, Reader, RowMac};
use byok::crypto::{Dek, SecretText};
use byok::jobs::{CheckpointParts, Checkpoints, Jobs};
use byok::keyring::Keyring;
use byok::kms::{
    DekBinding, Generated, ItemResult, Kms, KmsError, KmsErrorClass, KmsProfile, LocalKey, RequestCounts,
};
use byok::model::{
    Clock, ErrorCode, JobState, KeyVersion, Operation, RequestId, SystemClock, Tenant, TenantUid, Wrapped,
};
use byok::store::{Change, Commits as _, JobReads as _, Postgres};
use byok::tenancy::{Caller, NotServed, Tenants};
use http::{Extensions, HeaderMap};
use tokio_util::sync::CancellationToken;

use crate::support::postgres::{TestDatabase, execute, migrated};
use crate::support::rows::changes;
use crate::support::tenancy::{ample_settings, first_key};

/// How long it is remembered that a tenant is locked, or that a name is nobody's, and a little more.
const REMEMBERED: Duration = Duration::from_millis(1_200);
const SHARED_SECRET: &str = "a-secret-of-some-length";
const JWT_KEY: &str = "a-key-of-at-least-thirty-two-bytes-for-hs256";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Works,
    Hangs,
    Refuses,
}

/// A KMS that a test may have hang or refuse, or that never wraps under the version that it names as the current one.
struct TenantKms {
    key: LocalKey,
    mode: Mutex<Mode>,
    /// Counts the versions that it has named; 0 where it names the one that it has.
    versions: AtomicU64,
}

impl TenantKms {
    async fn answer<T>(
        &self,
        items: usize,
        work: impl Future<Output = Vec<ItemResult<T>>>,
    ) -> Vec<ItemResult<T>> {
        let mode = *self.mode.lock().unwrap();
        let refused = |class| (0..items).map(|_| Err(KmsError::local(class))).collect();
        match mode {
            Mode::Works => work.await,
            Mode::Hangs => {
                tokio::time::sleep(Duration::from_secs(5)).await;
                refused(KmsErrorClass::Timeout)
            }
            Mode::Refuses => refused(KmsErrorClass::AccessDenied),
        }
    }
}

#[async_trait]
impl Kms for TenantKms {
    async fn generate(&self, bindings: &[DekBinding]) -> Vec<ItemResult<Generated>> {
        self.answer(bindings.len(), self.key.generate(bindings)).await
    }

    async fn wrap(&self, deks: &[(DekBinding, &Dek)]) -> Vec<ItemResult<Wrapped>> {
        self.answer(deks.len(), self.key.wrap(deks)).await
    }

    async fn unwrap(&self, wrapped: &[(DekBinding, Wrapped)]) -> Vec<ItemResult<Dek>> {
        self.answer(wrapped.len(), self.key.unwrap(wrapped)).await
    }

    async fn rewrap(&self, wrapped: &[(DekBinding, Wrapped)], to: &KeyVersion) -> Vec<ItemResult<Wrapped>> {
        self.answer(wrapped.len(), self.key.rewrap(wrapped, to)).await
    }

    async fn current_version(&self) -> Result<KeyVersion, KmsError> {
        let current = self.key.current_version().await?;
        Ok(match self.versions.load(Ordering::Relaxed) {
            0 => current,
            _ => KeyVersion::new(
                current.key,
                format!("next-{}", self.versions.fetch_add(1, Ordering::Relaxed)),
            ),
        })
    }

    fn profile(&self) -> KmsProfile {
        self.key.profile()
    }
}

/// One server's use cases and jobs, for tenants of one database.
struct Several {
    app: Arc<App>,
    tenants: Tenants,
    store: Arc<Postgres>,
    kmses: HashMap<String, Arc<TenantKms>>,
    stop: CancellationToken,
    database: TestDatabase,
    _folder: tempfile::TempDir,
}

impl Several {
    async fn of(names: &[&str]) -> Self {
        let (database, store) = migrated().await;
        let folder = tempfile::tempdir().unwrap();
        let mut kmses = HashMap::new();
        for (n, name) in (1_u8..).zip(names) {
            let tenant = Tenant { uid: TenantUid([n; 16]), name: (*name).to_owned() };
            store.commit(&changes(tenant.uid, vec![Change::CreateTenant(tenant)])).await.unwrap();
            let key = LocalKey::create(folder.path().join(format!("{name}.json")));
            let key = key.map_err(|error| error.to_string()).unwrap();
            let kms = TenantKms { key, mode: Mutex::new(Mode::Works), versions: AtomicU64::new(0) };
            kmses.insert((*name).to_owned(), Arc::new(kms));
        }
        let of_tenant = kmses.clone();
        let tenants = Tenants::claimed(
            store.clone(),
            Box::new(move |tenant, _| Some(first_key(of_tenant.get(&tenant.name)?.clone()))),
            ample_settings(),
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
            // A busy machine must not look like an outage.
            guard: KeyGuard { probe_every: seconds(1), probe_timeout: seconds(9), resume_after: seconds(0) },
            row_mac: RowMac::default(),
        });
        let checkpoints = Arc::new(Checkpoints::new(CheckpointParts {
            store: store.clone(),
            deployment: "byok".to_owned(),
            keys: None,
            destinations: Vec::new(),
            publish_every: seconds(60),
            clock: clock.clone(),
        }));
        let env = Env::from_pairs([
            ("HASURA_GRAPHQL_JWT_SECRET", jwt_secret()),
            ("BYOK_HASURA_SECRET", SHARED_SECRET.to_owned()),
        ]);
        let auth = Auth::read(&mut Reader::new(&env));
        let authenticator = Authenticator::new(&auth, crate::support::http(), clock.clone());
        let app = Arc::new(App::new(byok::app::Parts {
            tenants: tenants.clone(),
            store: store.clone(),
            kms_requests: Arc::new(RequestCounts::new("local")),
            keyring: keyring.clone(),
            committer: committer.clone(),
            authenticator: Arc::new(authenticator.map_err(drop).unwrap()),
            limits: Limits::read(&mut Reader::new(&env), &ample_settings().rates),
            in_flight: 2_048,
            clock: clock.clone(),
            checkpoints: checkpoints.clone(),
            streams: Arc::new([]),
        }));
        let streams = Arc::new([]);
        let jobs = Jobs {
            tenants: tenants.clone(),
            store: store.clone(),
            keyring: keyring.clone(),
            committer,
            clock,
            checkpoints,
            streams,
        };
        let stop = CancellationToken::new();
        drop(Arc::new(jobs).start(stop.clone()));
        Self { app, tenants, store, kmses, stop, database, _folder: folder }
    }

    fn set(&self, tenant: &str, mode: Mode) {
        *self.kmses[tenant].mode.lock().unwrap() = mode;
    }

    /// The caller whose JWT names this tenant.
    async fn caller(&self, tenant: &str) -> Result<Caller, ErrorCode> {
        self.admitted(Some(&[("x-hasura-tenant-id", tenant)]), &[]).await
    }

    /// The caller of these claims, if it has a JWT, and these headers.
    async fn admitted(
        &self,
        claims: Option<&[(&str, &str)]>,
        more: &[(&'static str, &str)],
    ) -> Result<Caller, ErrorCode> {
        let mut headers = HeaderMap::new();
        if let Some(claims) = claims {
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            let claims = MintClaims {
                role: "admin".to_owned(),
                allowed_roles: vec!["admin".to_owned()],
                user: Some("user-1".to_owned()),
                variables: claims.iter().map(owned).collect(),
                lasts: Duration::from_secs(3_600),
            };
            let setting = Jwt::One(SecretText::new(jwt_secret()));
            let token = mint(&setting, &claims, SystemClock.now()).unwrap();
            headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        for (name, value) in more {
            headers.insert(*name, value.parse().unwrap());
        }
        let admitted = self.app.admit(&headers, &Extensions::new(), RequestId::fresh()).await;
        admitted.map_err(|refusal| refusal.code)
    }

    async fn encrypt(&self, tenant: &str, record: &str) -> Result<String, ErrorCode> {
        let item = EncryptItem {
            plaintext: Ok(Plaintext::new(record.as_bytes().to_vec())),
            context: Context::from_pairs([("record_id", record)]).unwrap(),
        };
        let answered = self.app.encrypt(&self.caller(tenant).await?, vec![Ok(item)]).await;
        let mut answered = answered.map_err(|refusal| refusal.code)?;
        answered.committed.into_iter().for_each(Committed::given);
        answered.answers.remove(0).map(|one| one.ciphertext).map_err(|refusal| refusal.code)
    }

    async fn decrypt(&self, tenant: &str, token: &str, record: &str) -> Result<(), ErrorCode> {
        let context = Context::from_pairs([("record_id", record)]).unwrap();
        let item = DecryptItem { ciphertext: token.to_owned(), context };
        let answered =
            self.app.decrypt(&self.caller(tenant).await?, Operation::Decrypt, vec![Ok(item)]).await;
        let mut answered = answered.map_err(|refusal| refusal.code)?;
        answered.committed.into_iter().for_each(Committed::given);
        let opened = answered.answers.remove(0).map_err(|refusal| refusal.code)?;
        assert_eq!(opened.plaintext.expose(), record.as_bytes());
        Ok(())
    }

    async fn execute(&self, sql: &str) {
        execute(&self.database.url, sql).await;
    }
}

impl Drop for Several {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn jwt_secret() -> String {
    format!(r#"{{"type":"HS256","key":"{JWT_KEY}"}}"#)
}

fn uid(n: u8) -> String {
    format!("decode(repeat('{n:02x}', 16), 'hex')")
}

#[tokio::test]
async fn a_call_is_for_the_tenant_that_a_verified_jwt_names() {
    let several = Several::of(&["acme", "globex"]).await;
    for name in ["acme", "globex"] {
        assert_eq!(several.caller(name).await.unwrap().tenant().name, name);
    }
    let denied = Some(ErrorCode::PermissionDenied);
    for name in ["initech", "ACME", " acme", "acme\u{430}", "../acme"] {
        assert_eq!(several.caller(name).await.err(), denied, "{name:?}");
    }
    assert_eq!(several.admitted(Some(&[]), &[]).await.err(), denied, "no claim");
    // Headers name no tenant, not even beside the secret that is shared with Hasura.
    let named = [("x-hasura-tenant-id", "acme"), ("x-hasura-role", "admin")];
    assert_eq!(several.admitted(Some(&[]), &named).await.err(), denied);
    let with_secret = [named[0], named[1], ("x-byok-secret", SHARED_SECRET)];
    assert_eq!(several.admitted(None, &with_secret).await.err(), denied);
    let other = several.admitted(Some(&[("x-hasura-tenant-id", "globex")]), &with_secret).await;
    assert_eq!(other.err(), Some(ErrorCode::AccessDenied), "the header contradicts the JWT");
}

#[tokio::test]
async fn a_token_opens_for_its_own_tenant_alone() {
    let several = Several::of(&["acme", "globex"]).await;
    let token = several.encrypt("acme", "r-1").await.unwrap();
    assert_eq!(several.decrypt("acme", &token, "r-1").await, Ok(()));
    assert_eq!(several.decrypt("globex", &token, "r-1").await, Err(ErrorCode::DecryptFailed));
    // Nor does it where the other tenant's row of the DEK is a copy.
    let columns = "id, record_id, wrapped, key_name, key_version, wrap_scheme, created_at, mac, record_mac";
    several
        .execute(&format!(
            "INSERT INTO np_byok_wrapped_deks (tenant, {columns}) SELECT {}, {columns} FROM np_byok_wrapped_deks",
            uid(2)
        ))
        .await;
    assert!(several.decrypt("globex", &token, "r-1").await.is_err());
    assert_eq!(several.decrypt("acme", &token, "r-1").await, Ok(()));
}

#[tokio::test]
async fn a_tenant_that_is_renamed_is_served_under_its_new_name() {
    let several = Several::of(&["acme"]).await;
    let token = several.encrypt("acme", "r-1").await.unwrap();
    several.execute("UPDATE np_byok_tenants SET name = 'acme-2'").await;
    assert_eq!(several.decrypt("acme-2", &token, "r-1").await, Ok(()));
    assert_eq!(
        several.caller("acme").await.err(),
        Some(ErrorCode::PermissionDenied),
        "it is nobody's name now"
    );
}

#[tokio::test]
async fn a_tenant_that_is_locked_is_served_no_more() {
    let several = Several::of(&["acme", "globex"]).await;
    let token = several.encrypt("acme", "r-1").await.unwrap();
    several.execute("UPDATE np_byok_tenants SET locked = true WHERE name = 'acme'").await;
    assert_eq!(several.tenants.refreshed(TenantUid([1; 16])).await.err(), Some(NotServed::Locked));
    assert_eq!(several.decrypt("acme", &token, "r-1").await, Err(ErrorCode::PermissionDenied));
    assert!(several.caller("globex").await.is_ok());
    several.execute("UPDATE np_byok_tenants SET locked = false").await;
    tokio::time::sleep(REMEMBERED).await;
    assert_eq!(several.decrypt("acme", &token, "r-1").await, Ok(()));
}

#[tokio::test]
async fn two_keys_that_would_both_wrap_are_none() {
    let several = Several::of(&["acme"]).await;
    several
        .execute(
            "INSERT INTO np_byok_keys (tenant, id, label, owner, state, revision)
             SELECT tenant, decode(repeat('09', 16), 'hex'), 'another', owner, state, 0 FROM np_byok_keys",
        )
        .await;
    assert_eq!(several.caller("acme").await.err(), Some(ErrorCode::KmsMisconfigured));
}

/// Calls as this tenant until it is stopped; each refusal, and how many calls there were.
async fn call_on(
    several: Arc<Several>,
    tenant: &'static str,
    token: String,
    stop: CancellationToken,
) -> (Vec<ErrorCode>, usize) {
    let (mut refused, mut calls) = (Vec::new(), 0);
    while !stop.is_cancelled() {
        let record = format!("new-{calls}");
        refused.extend(several.decrypt(tenant, &token, "r-1").await.err());
        refused.extend(several.encrypt(tenant, &record).await.err());
        calls += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (refused, calls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_befalls_other_tenants_is_never_seen_by_one() {
    let names = ["well", "hung", "damaged", "rotating", "revoked"];
    let several = Arc::new(Several::of(&names).await);
    let mut tokens = HashMap::new();
    for name in names {
        tokens.insert(name, several.encrypt(name, "r-1").await.unwrap());
        assert_eq!(several.decrypt(name, &tokens[name], "r-1").await, Ok(()));
    }
    // One rotates for ever, since nothing is ever wrapped under the version that its KMS names.
    several.kmses["rotating"].versions.store(1, Ordering::Relaxed);
    several.app.rotate(&several.caller("rotating").await.unwrap(), false).await.unwrap();
    let stop = CancellationToken::new();
    let callers: Vec<_> = names
        .into_iter()
        .map(|name| tokio::spawn(call_on(several.clone(), name, tokens[name].clone(), stop.clone())))
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    several.set("hung", Mode::Hangs);
    several.set("revoked", Mode::Refuses);
    // The damaged one's log is set back again and again.
    let damaged = uid(3);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(12) {
        several
            .execute(&format!(
                "UPDATE np_byok_heads SET size = size - 1 WHERE tenant = {damaged} AND size > 0"
            ))
            .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let job = several.store.latest_job(TenantUid([4; 16])).await.unwrap().unwrap();
    assert_eq!(job.state, JobState::Running, "it rotates still");
    stop.cancel();
    let mut ended = HashMap::new();
    for (name, caller) in names.into_iter().zip(callers) {
        ended.insert(name, caller.await.unwrap());
    }
    let (refused, calls) = &ended["well"];
    assert!(refused.is_empty(), "{refused:?} of {calls}");
    assert!(*calls > 50, "{calls}");
    assert!(ended["rotating"].0.is_empty(), "{:?}", ended["rotating"].0);
    assert!(ended["hung"].0.contains(&ErrorCode::KmsUnavailable), "{:?}", ended["hung"].0);
    assert!(ended["revoked"].0.contains(&ErrorCode::KmsAccessDenied), "{:?}", ended["revoked"].0);
    assert!(!ended["damaged"].0.is_empty());
    // And it stays so: what is in memory of the well one was not dropped with the others'.
    assert_eq!(several.decrypt("well", &tokens["well"], "r-1").await, Ok(()));
    assert!(several.decrypt("revoked", &tokens["revoked"], "r-1").await.is_err());
}
