//! The server under test with its four tenants, and the faults of three of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use byok::config;
use byok::crypto::SecretText;
use byok::model::{ErrorCode, JobState, TenantUid};
use byok::store::{JobReads as _, Postgres};
use http::HeaderMap;
use tokio_util::sync::CancellationToken;

use crate::support::postgres::migrated;
use crate::support::several::{Several, headers};
use crate::support::tenant_kms::Mode;

/// The tenant whose latency is measured.
pub(crate) const MEASURED: &str = "measured";
/// The tenants with faults: a KMS that hangs, a damaged log, and a rotation without end.
pub(crate) const NEIGHBOURS: [&str; 3] = ["hung", "damaged", "rotating"];

/// The numbers of two tenants in the list of all, from which their uids are made.
const DAMAGED: u8 = 3;
const ROTATING: u8 = 4;
const DAMAGE_EVERY: Duration = Duration::from_millis(300);
/// The number of DEKs that the rotation begins with; calls add more.
const DEKS_TO_ROTATE: usize = 200;
/// The default of `byok serve`.
const CONNECTIONS: u32 = 16;
/// The number of concurrent callers that measure the server's capacity.
const CALLERS: usize = 64;
const RECORD: &str = "r-1";

/// One tenant's client.
#[derive(Clone)]
pub(crate) struct Client {
    several: Arc<Several>,
    headers: Arc<HeaderMap>,
    token: Arc<str>,
}

pub(crate) struct Server {
    several: Arc<Several>,
    /// The clients of [`MEASURED`] and then of [`NEIGHBOURS`].
    clients: Vec<Client>,
}

impl Server {
    /// A server on a database of its own, with one DEK of each tenant in memory.
    pub(crate) async fn start() -> Self {
        let (database, _) = migrated().await;
        let settings = config::Postgres {
            url: SecretText::new(database.url.clone()),
            migration_url: None,
            max_connections: CONNECTIONS,
            pgbouncer: false,
        };
        let store = Arc::new(Postgres::connect_lazy(&settings).expect("the URL is sound"));
        let names: Vec<_> = std::iter::once(MEASURED).chain(NEIGHBOURS).collect();
        let several = Arc::new(Several::on(database, store, &names).await);
        let mut clients = Vec::new();
        for name in names {
            let token = several.encrypt(name, RECORD).await.expect("no fault has begun");
            let headers = Arc::new(headers(&[("x-hasura-tenant-id", name)]));
            let client = Client { several: several.clone(), headers, token: token.into() };
            client.decrypt().await.expect("no fault has begun");
            clients.push(client);
        }
        Self { several, clients }
    }

    pub(crate) fn measured(&self) -> Client {
        self.clients[0].clone()
    }

    pub(crate) fn neighbours(&self) -> impl Iterator<Item = (&'static str, Client)> {
        NEIGHBOURS.into_iter().zip(self.clients[1..].iter().cloned())
    }

    /// The number of hot decrypts that the server answers in a second.
    pub(crate) async fn capacity(&self, window: Duration) -> Result<f64, String> {
        eprintln!("capacity");
        // The first, shorter run opens connections and prepares statements.
        let mut calls = 0;
        for window in [window / 4, window] {
            let until = Instant::now() + window;
            let callers: Vec<_> =
                (0..CALLERS).map(|_| tokio::spawn(decrypt_until(self.measured(), until))).collect();
            calls = 0;
            for caller in callers {
                calls += caller.await.map_err(|error| error.to_string())??;
            }
        }
        Ok(f64::from(calls) / window.as_secs_f64())
    }

    /// Begins the fault of this neighbour. A log is damaged again and again until `stop`.
    pub(crate) async fn begin_fault(&self, neighbour: &str, stop: &CancellationToken) -> Result<(), String> {
        match neighbour {
            "hung" => self.several.set("hung", Mode::Hangs),
            "damaged" => drop(tokio::spawn(damage_log(self.several.clone(), stop.clone()))),
            _ => self.begin_rotation().await.map_err(|code| code.as_str().to_owned())?,
        }
        Ok(())
    }

    /// Begins a rotation without end.
    async fn begin_rotation(&self) -> Result<(), ErrorCode> {
        for record in 0..DEKS_TO_ROTATE {
            self.several.encrypt("rotating", &format!("old-{record}")).await?;
        }
        self.several.kmses["rotating"].rotate_for_ever();
        let operator = self.several.caller("rotating").await?;
        self.several.app.rotate(&operator, false).await.map(drop).map_err(|refusal| refusal.code)
    }

    /// Whether the rotation is still in progress.
    pub(crate) async fn is_rotating(&self) -> bool {
        let job = self.several.store.latest_job(TenantUid([ROTATING; 16])).await;
        job.is_ok_and(|job| job.is_some_and(|job| job.state == JobState::Running))
    }
}

impl Client {
    /// Authenticates and decrypts, as a front does, with a DEK that is in memory.
    pub(crate) async fn decrypt(&self) -> Result<(), ErrorCode> {
        let caller = self.several.admit(&self.headers).await?;
        self.several.decrypt_as(&caller, &self.token, RECORD).await
    }

    /// Decrypts in every other call, and otherwise encrypts for a new record, whose DEK the KMS has
    /// to wrap.
    pub(crate) async fn decrypt_or_encrypt(&self, number: u64) -> Result<(), ErrorCode> {
        if number.is_multiple_of(2) {
            return self.decrypt().await;
        }
        let caller = self.several.admit(&self.headers).await?;
        self.several.encrypt_as(&caller, &format!("new-{number}")).await.map(drop)
    }
}

/// Takes the last entry from the log's head, then replaces the head's frontier, and so on.
async fn damage_log(several: Arc<Several>, stop: CancellationToken) {
    let damages = ["size = size - 1", "frontier = decode(repeat('5a', octet_length(frontier)), 'hex')"];
    for damage in damages.into_iter().cycle() {
        let of = format!("tenant = decode(repeat('{DAMAGED:02x}', 16), 'hex') AND size > 0");
        several.execute(&format!("UPDATE np_byok_heads SET {damage} WHERE {of}")).await;
        if tokio::time::timeout(DAMAGE_EVERY, stop.cancelled()).await.is_ok() {
            return;
        }
    }
}

async fn decrypt_until(client: Client, until: Instant) -> Result<u32, String> {
    let mut calls = 0;
    while Instant::now() < until {
        client.decrypt().await.map_err(|code| code.as_str().to_owned())?;
        calls += 1;
    }
    Ok(calls)
}
