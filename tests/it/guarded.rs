//! Replicas in this process, with a KMS whose behaviour a test sets, a clock that a test advances,
//! and a database connection with a shifted clock and counted calls.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use byok::app::{App, Committed as Unreleased, DecryptItem, EncryptItem};
use byok::audit::Committer;
use byok::auth::Authenticator;
use byok::config::{self, Auth, DekCache, Env, KeyGuard, Limits, Reader};
use byok::crypto::{Context, Dek, Plaintext};
use byok::jobs::{CheckpointParts, Checkpoints};
use byok::keyring::Keyring;
use byok::kms::{
    DekBinding, Generated, ItemResult, Kms, KmsError, KmsErrorClass, KmsProfile, LocalKey, RequestCounts,
};
use byok::model::{
    BootTime, Clock, DekId, ErrorCode, Identity, Job, JobId, KeyVersion, Means, Operation, Posture, Proof,
    RequestId, Session, SystemClock, Tenant, TenantUid, Timestamp, Wrapped,
};
use byok::rest::DatabaseState;
use byok::store::{
    Batch, Change, CommitError, Commits, Committed, Database as _, DekReads, DekRow, EntryFilter,
    EntrySearch, Fence, FenceReading, JobReads, KeyringStore, Page, ReadError, RequestReads, Requirement,
    Snapshot, Sqlite, TenantRow, Watched,
};
use byok::tenancy::Caller;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::support::rows::changes;
use crate::support::tenancy::{ample_settings, one_tenant};

/// The value of `X-Byok-Secret` in Hasura's requests.
pub(crate) const SECRET: &str = "a-secret-of-some-length";

/// The machine's clock, plus the time for which the machine was suspended.
#[derive(Default)]
pub(crate) struct SuspendedClock(AtomicU64);

impl SuspendedClock {
    /// Suspends the machine for this long.
    pub(crate) fn sleep(&self, milliseconds: u64) {
        self.0.fetch_add(milliseconds, Ordering::SeqCst);
    }
}

impl Clock for SuspendedClock {
    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    fn boot(&self) -> BootTime {
        SystemClock.boot().plus(Duration::from_millis(self.0.load(Ordering::SeqCst)))
    }
}

/// The behaviour of a KMS.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Work,
    Refuse,
    Fail,
    Hang,
    /// The KMS answers after this many milliseconds.
    Dawdle(u64),
}

/// The local key, with the behaviour that a test sets.
pub(crate) struct Scripted {
    pub(crate) key: Arc<LocalKey>,
    pub(crate) on_unwrap: Mutex<Behaviour>,
    pub(crate) on_generate: Mutex<Behaviour>,
    /// Versions that it no longer unwraps.
    pub(crate) destroyed: Mutex<HashSet<String>>,
    pub(crate) unwraps: AtomicUsize,
    pub(crate) generated: AtomicUsize,
    /// The suspension of the machine during an unwrap, in milliseconds.
    pub(crate) asleep: Mutex<Option<(Arc<SuspendedClock>, u64)>>,
}

impl Scripted {
    pub(crate) fn set_behaviour(&self, behaviour: Behaviour) {
        (*self.on_unwrap.lock().unwrap(), *self.on_generate.lock().unwrap()) = (behaviour, behaviour);
    }

    pub(crate) fn calls(&self) -> usize {
        self.unwraps.load(Ordering::SeqCst) + self.generated.load(Ordering::SeqCst)
    }

    async fn behave(&self, behaviour: &Mutex<Behaviour>) -> Result<(), KmsError> {
        let behaviour = *behaviour.lock().unwrap();
        match behaviour {
            Behaviour::Work => Ok(()),
            Behaviour::Refuse => Err(KmsError::local(KmsErrorClass::KeyDisabled)),
            Behaviour::Fail => Err(KmsError::local(KmsErrorClass::Unreachable)),
            Behaviour::Hang => {
                tokio::time::sleep(Duration::from_secs(20)).await;
                Err(KmsError::local(KmsErrorClass::Timeout))
            }
            Behaviour::Dawdle(milliseconds) => {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Kms for Scripted {
    async fn generate(&self, bindings: &[DekBinding]) -> Vec<ItemResult<Generated>> {
        self.generated.fetch_add(1, Ordering::SeqCst);
        match self.behave(&self.on_generate).await {
            Ok(()) => self.key.generate(bindings).await,
            Err(error) => bindings.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn wrap(&self, deks: &[(DekBinding, &Dek)]) -> Vec<ItemResult<Wrapped>> {
        self.key.wrap(deks).await
    }

    async fn unwrap(&self, wrapped: &[(DekBinding, Wrapped)]) -> Vec<ItemResult<Dek>> {
        self.unwraps.fetch_add(1, Ordering::SeqCst);
        if let Some((clock, milliseconds)) = &*self.asleep.lock().unwrap() {
            clock.sleep(*milliseconds);
        }
        if let Err(error) = self.behave(&self.on_unwrap).await {
            return wrapped.iter().map(|_| Err(error.clone())).collect();
        }
        let answers = self.key.unwrap(wrapped).await;
        let destroyed = self.destroyed.lock().unwrap();
        let answer = |((_, wrapped), answer): (&(DekBinding, Wrapped), ItemResult<Dek>)| {
            if destroyed.contains(&*wrapped.key_version.version) {
                Err(KmsError::local(KmsErrorClass::KeyVersionUnavailable))
            } else {
                answer
            }
        };
        wrapped.iter().zip(answers).map(answer).collect()
    }

    async fn rewrap(&self, wrapped: &[(DekBinding, Wrapped)], to: &KeyVersion) -> Vec<ItemResult<Wrapped>> {
        self.key.rewrap(wrapped, to).await
    }

    async fn current_version(&self) -> Result<KeyVersion, KmsError> {
        self.key.current_version().await
    }

    fn profile(&self) -> KmsProfile {
        self.key.profile()
    }
}

/// A replica's connection to the database.
pub(crate) struct DatabaseLink {
    pub(crate) database: Arc<Mutex<Arc<Sqlite>>>,
    /// The milliseconds by which the database's clock is ahead.
    pub(crate) ahead: Arc<AtomicI64>,
    pub(crate) commits: AtomicUsize,
    pub(crate) reads: AtomicUsize,
    /// Whether every call fails.
    pub(crate) cut: AtomicBool,
    /// Whether calls hang for a long time.
    pub(crate) hangs: AtomicBool,
    /// An action for the time when the next commit with entries is durable and its answer has not
    /// arrived.
    pub(crate) then: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl DatabaseLink {
    fn database(&self) -> Arc<Sqlite> {
        self.database.lock().unwrap().clone()
    }

    fn time(&self, at: Timestamp) -> Timestamp {
        Timestamp(at.0 + self.ahead.load(Ordering::SeqCst) * 1_000)
    }

    async fn read(&self) -> Result<Arc<Sqlite>, ReadError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.hangs.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        if self.cut.load(Ordering::SeqCst) { Err(ReadError::Unavailable) } else { Ok(self.database()) }
    }
}

#[async_trait]
impl Commits for DatabaseLink {
    async fn commit(&self, batch: &Batch) -> Result<Committed, CommitError> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        if self.hangs.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        if self.cut.load(Ordering::SeqCst) {
            return Err(CommitError::Unavailable);
        }
        let database = self.database();
        let mut batch = batch.clone();
        if !batch.entries.is_empty() && !batch.fence.is_empty() {
            // The database's own clock cannot be set, so conditions that depend on it are checked
            // here.
            let seen = database.proofs(batch.tenant).await.map_err(|_| CommitError::Unavailable)?;
            let seen = Snapshot { now: self.time(seen.now), rows: seen.rows };
            FenceReading::of(&batch.fence, &seen).ok_or(CommitError::Fenced)?;
            for asked in &mut batch.fence {
                if let Requirement::Proven { epoch, .. } = asked.requirement {
                    *asked = Fence { requirement: Requirement::Active { epoch }, ..asked.clone() };
                }
            }
        }
        let committed = database.commit(&batch).await.map(|committed| {
            let reading = committed
                .reading
                .map(|reading| FenceReading { now: self.time(reading.now), proven_at: reading.proven_at });
            Committed { applied: committed.applied, reading }
        });
        if !batch.entries.is_empty()
            && let Some(then) = self.then.lock().unwrap().take()
        {
            then();
        }
        committed
    }

    async fn log_size(&self, tenant: TenantUid) -> Result<u64, ReadError> {
        self.read().await?.log_size(tenant).await
    }

    async fn proofs(&self, tenant: TenantUid) -> Result<Snapshot<Proof>, ReadError> {
        let seen = self.read().await?.proofs(tenant).await?;
        Ok(Snapshot { now: self.time(seen.now), rows: seen.rows })
    }

    async fn gate_row(&self, tenant: TenantUid) -> Result<Option<TenantRow>, ReadError> {
        self.read().await?.gate_row(tenant).await
    }
}

#[async_trait]
impl DekReads for DatabaseLink {
    async fn deks(&self, tenant: TenantUid, ids: &[DekId]) -> Result<Vec<DekRow>, ReadError> {
        self.read().await?.deks(tenant, ids).await
    }

    async fn deks_of_records(
        &self,
        tenant: TenantUid,
        records: &[Arc<str>],
    ) -> Result<Vec<DekRow>, ReadError> {
        self.read().await?.deks_of_records(tenant, records).await
    }

    async fn deks_after(
        &self,
        tenant: TenantUid,
        after: Option<DekId>,
        limit: u32,
    ) -> Result<Vec<DekRow>, ReadError> {
        self.read().await?.deks_after(tenant, after, limit).await
    }

    async fn unsealed_deks(
        &self,
        tenant: TenantUid,
        after: Option<DekId>,
        limit: u32,
    ) -> Result<Vec<DekRow>, ReadError> {
        self.read().await?.unsealed_deks(tenant, after, limit).await
    }
}

#[async_trait]
impl JobReads for DatabaseLink {
    async fn job(&self, tenant: TenantUid, id: JobId) -> Result<Option<(Job, Option<DekId>)>, ReadError> {
        self.read().await?.job(tenant, id).await
    }

    async fn latest_job(&self, tenant: TenantUid) -> Result<Option<Job>, ReadError> {
        self.read().await?.latest_job(tenant).await
    }

    async fn running_jobs(&self) -> Result<Vec<(Tenant, JobId)>, ReadError> {
        self.read().await?.running_jobs().await
    }

    async fn deks_not_under(&self, tenant: TenantUid, version: &KeyVersion) -> Result<u64, ReadError> {
        self.read().await?.deks_not_under(tenant, version).await
    }
}

#[async_trait]
impl KeyringStore for DatabaseLink {
    async fn watched(&self) -> Result<Snapshot<Watched>, ReadError> {
        let seen = self.read().await?.watched().await?;
        Ok(Snapshot { now: self.time(seen.now), rows: seen.rows })
    }
}

#[async_trait]
impl EntrySearch for DatabaseLink {
    async fn entries(
        &self,
        tenant: TenantUid,
        filter: &EntryFilter,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Page, ReadError> {
        self.read().await?.entries(tenant, filter, before, limit).await
    }
}

#[async_trait]
impl RequestReads for DatabaseLink {
    async fn ping(&self) -> Result<(), ReadError> {
        self.read().await?.ping().await
    }
}

/// One replica, with its own connections to the database and the KMS, and its own clock.
pub(crate) struct Replica {
    pub(crate) app: Arc<App>,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) store: Arc<DatabaseLink>,
    pub(crate) kms: Arc<Scripted>,
    pub(crate) clock: Arc<SuspendedClock>,
    pub(crate) tenant: Tenant,
    prober: CancellationToken,
    _folder: Arc<tempfile::TempDir>,
}

impl Replica {
    pub(crate) fn caller(&self) -> Caller {
        let (role, session, means) = (Arc::from("admin"), Session::default(), Means::Jwt);
        self.app.caller(Identity { role, user: None, session, means }, RequestId::fresh()).unwrap()
    }

    pub(crate) async fn encrypt(&self, record: &str) -> Result<String, ErrorCode> {
        let item = EncryptItem {
            plaintext: Ok(Plaintext::new(b"secret".to_vec())),
            context: Context::from_pairs([("record_id", record)]).unwrap(),
        };
        let answered = self.app.encrypt(&self.caller(), vec![Ok(item)]).await;
        let mut answered = answered.map_err(|refusal| refusal.code)?;
        answered.committed.into_iter().for_each(Unreleased::given);
        let answer = answered.answers.remove(0);
        answer.map(|encrypted| encrypted.ciphertext).map_err(|refusal| refusal.code)
    }

    pub(crate) async fn decrypt(&self, ciphertext: &str, record: &str) -> Result<(), ErrorCode> {
        self.decrypt_for(&self.caller(), ciphertext, record).await.map(Unreleased::given)
    }

    /// Decrypts, and returns the unreleased answer.
    pub(crate) async fn decrypt_for(
        &self,
        caller: &Caller,
        ciphertext: &str,
        record: &str,
    ) -> Result<Unreleased, ErrorCode> {
        let context = Context::from_pairs([("record_id", record)]).unwrap();
        let item = DecryptItem { ciphertext: ciphertext.to_owned(), context };
        let answered = self.app.decrypt(caller, Operation::Decrypt, vec![Ok(item)]).await;
        let mut answered = answered.map_err(|refusal| refusal.code)?;
        let opened = answered.answers.remove(0).map_err(|refusal| refusal.code)?;
        assert_eq!(opened.plaintext.expose(), b"secret");
        Ok(answered.committed.expect("a plaintext depends on a key"))
    }

    /// Serves the replica on loopback, over TLS if there is an acceptor. Callers send [`SECRET`].
    pub(crate) async fn serve(&self, tls: Option<TlsAcceptor>) -> SocketAddr {
        self.serve_with(tls, &[("BYOK_REQUEST_TIMEOUT_SECONDS", "120")]).await
    }

    /// Serves the replica with these settings.
    pub(crate) async fn serve_with(&self, tls: Option<TlsAcceptor>, settings: &[(&str, &str)]) -> SocketAddr {
        let env = Env::from_pairs(settings.iter().copied());
        let settings = config::Server::read(&mut Reader::new(&env), false, self.app.limits().body_bytes);
        let database = DatabaseState::unknown(0);
        let (served, _) = byok::server::routers(self.app.clone(), database, &settings, self.prober.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = tls.map(|tls| tokio::sync::watch::channel(tls).1);
        tokio::spawn(byok::server::serve(listener, tls, served, settings, self.prober.clone()));
        address
    }

    /// Starts the prober.
    pub(crate) fn watch(&self) {
        tokio::spawn(self.keyring.clone().run_prober(self.prober.clone()));
    }

    /// Stops the prober, as if it had crashed.
    pub(crate) fn stop_watching(&self) {
        self.prober.cancel();
    }

    pub(crate) async fn proof(&self, version: &str) -> Proof {
        let rows = self.store.database().proofs(self.tenant.uid).await.unwrap().rows;
        rows.into_iter().find(|row| &*row.key_version.version == version).unwrap()
    }

    pub(crate) async fn posture(&self) -> Posture {
        self.proof("1").await.posture
    }

    /// The outcomes of the last entries, newest first.
    pub(crate) async fn outcomes(&self, count: u32) -> Vec<String> {
        let filter = EntryFilter::default();
        let entries =
            self.store.database().entries(self.tenant.uid, &filter, None, count).await.unwrap().entries;
        entries.iter().map(|entry| format!("{:?} {:?}", entry.row.operation, entry.row.outcome)).collect()
    }

    /// Makes the proof of a version older than any bound, as if the version had not been used for a
    /// while.
    pub(crate) async fn make_idle(&self, version: &str) {
        let proof = self.proof(version).await;
        let long_ago = proof.proven_at.minus(Duration::from_secs(3_600));
        let to = Proof {
            revision: proof.revision + 1,
            proven_at: long_ago,
            next_probe_at: long_ago,
            ..proof.clone()
        };
        let prove = Change::UpdateProof { from: proof.revision, to, incident: None };
        self.store.database().commit(&changes(self.tenant.uid, vec![prove])).await.unwrap();
        self.clock.sleep(3_600_000);
    }
}

/// A database and a key that replicas share.
pub(crate) struct Deployment {
    pub(crate) database: Arc<Mutex<Arc<Sqlite>>>,
    pub(crate) ahead: Arc<AtomicI64>,
    pub(crate) key: Arc<LocalKey>,
    pub(crate) folder: Arc<tempfile::TempDir>,
    tenant: Tenant,
}

impl Deployment {
    pub(crate) async fn new() -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let database = Sqlite::open(&folder.path().join("byok.db")).await.unwrap();
        database.migrate().await.unwrap();
        let tenant = Tenant { uid: TenantUid([7; 16]), name: "primary".to_owned() };
        database.commit(&changes(tenant.uid, vec![Change::CreateTenant(tenant.clone())])).await.unwrap();
        let key = LocalKey::create(folder.path().join("key.json")).map_err(|error| error.to_string());
        let (database, key) = (Arc::new(Mutex::new(Arc::new(database))), Arc::new(key.unwrap()));
        Self { database, ahead: Arc::default(), key, folder, tenant }
    }

    /// A replica that probes every second, with a timeout of two: A is three seconds.
    pub(crate) async fn replica(&self) -> Replica {
        self.replica_with(300).await
    }

    pub(crate) async fn replica_with(&self, cache_seconds: u64) -> Replica {
        self.replica_with_probe_timeout(cache_seconds, 2).await
    }

    /// A replica with this probe timeout.
    pub(crate) async fn replica_with_probe_timeout(&self, cache_seconds: u64, probe_seconds: u64) -> Replica {
        let seconds = Duration::from_secs;
        let guard = KeyGuard {
            probe_every: seconds(1),
            probe_timeout: seconds(probe_seconds),
            resume_after: seconds(0),
        };
        let clock = Arc::new(SuspendedClock::default());
        let store = Arc::new(DatabaseLink {
            database: self.database.clone(),
            ahead: self.ahead.clone(),
            commits: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
            cut: AtomicBool::new(false),
            hangs: AtomicBool::new(false),
            then: Mutex::default(),
        });
        let kms = Arc::new(Scripted {
            key: self.key.clone(),
            on_unwrap: Mutex::new(Behaviour::Work),
            on_generate: Mutex::new(Behaviour::Work),
            destroyed: Mutex::default(),
            unwraps: AtomicUsize::new(0),
            generated: AtomicUsize::new(0),
            asleep: Mutex::default(),
        });
        let committer = Arc::new(Committer::start(store.clone(), clock.clone()));
        let tenants = one_tenant(&self.tenant, kms.clone());
        let keyring = Keyring::new(byok::keyring::Parts {
            pool: byok::config::DekPool { size: 0 },
            store: store.clone(),
            log: store.database(),
            tenants: tenants.clone(),
            committer: committer.clone(),
            clock: clock.clone(),
            cache: DekCache { time_to_live: seconds(cache_seconds), entries: 1_000 },
            guard,
            row_mac: byok::config::RowMac::default(),
        });
        let env = Env::from_pairs([("BYOK_HASURA_SECRET", SECRET)]);
        let auth = Auth::read(&mut Reader::new(&env));
        let authenticator = Authenticator::new(&auth, crate::support::http(), clock.clone());
        let checkpoints = Checkpoints::new(CheckpointParts {
            store: store.database(),
            deployment: "byok".to_owned(),
            keys: None,
            destinations: Vec::new(),
            publish_every: Duration::from_secs(60),
            clock: clock.clone(),
        });
        let app = App::new(byok::app::Parts {
            tenants,
            store: store.clone(),
            kms_requests: Arc::new(RequestCounts::new("local")),
            keyring: keyring.clone(),
            committer,
            authenticator: Arc::new(authenticator.map_err(drop).unwrap()),
            limits: Limits::read(&mut Reader::new(&env), &ample_settings().rates),
            in_flight: 2_048,
            clock: clock.clone(),
            checkpoints: Arc::new(checkpoints),
            streams: Arc::new([]),
        });
        let prober = CancellationToken::new();
        let (tenant, _folder) = (self.tenant.clone(), self.folder.clone());
        Replica { app: Arc::new(app), keyring, store, kms, clock, tenant, prober, _folder }
    }
}

/// Waits until a condition holds, for at most fifteen seconds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not within fifteen seconds: {what}");
}
