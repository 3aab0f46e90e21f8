//! One server with its four tenants, all of them well at first; and what makes three of them ill.

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

/// The one that is measured.
pub(crate) const MEASURED: &str = "measured";
/// Its KMS hangs; its log is damaged; its rotation has no end.
pub(crate) const NEIGHBOURS: [&str; 3] = ["hung", "damaged", "rotating"];

/// By their places in the list of tenants.
const DAMAGED: u8 = 3;
const ROTATING: TenantUid = TenantUid([4; 16]);
/// How often the damaged log is damaged again.
const DAMAGED_EVERY: Duration = Duration::from_millis(300);
/// DEKs that the rotation goes over again and again, beside those that come.
const TO_ROTATE: usize = 200;
/// As `serve` has them.
const CONNECTIONS: u32 = 16;
/// How many call at once when as much is asked for as the server can do.
const CALLERS: usize = 64;
const RECORD: &str = "r-1";

/// A tenant's call of the kind that is offered.
#[derive(Clone)]
pub(crate) struct Caller {
    several: Arc<Several>,
    headers: Arc<HeaderMap>,
    token: Arc<str>,
}

pub(crate) struct House {
    several: Arc<Several>,
    /// Of [`MEASURED`], then of [`NEIGHBOURS`].
    callers: Vec<Caller>,
}

impl House {
    /// On a database of its own, with a DEK of each tenant in memory.
    pub(crate) async fn new() -> Self {
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
        let mut callers = Vec::new();
        for name in names {
            let token = several.encrypt(name, RECORD).await.expect("everybody is well");
            let headers = Arc::new(headers(&[("x-hasura-tenant-id", name)]));
            let caller = Caller { several: several.clone(), headers, token: token.into() };
            caller.decrypt().await.expect("everybody is well");
            callers.push(caller);
        }
        Self { several, callers }
    }

    pub(crate) fn measured(&self) -> Caller {
        self.callers[0].clone()
    }

    pub(crate) fn neighbours(&self) -> impl Iterator<Item = (&'static str, Caller)> {
        NEIGHBOURS.into_iter().zip(self.callers[1..].iter().cloned())
    }

    /// How many of its calls the server answers in a second, as many at once as come.
    pub(crate) async fn most_per_second(&self, window: Duration) -> Result<f64, String> {
        eprintln!("how much the server can do");
        let mut calls = 0;
        for window in [window / 4, window] {
            let until = Instant::now() + window;
            let callers: Vec<_> =
                (0..CALLERS).map(|_| tokio::spawn(call_until(self.measured(), until))).collect();
            calls = 0;
            for caller in callers {
                calls += caller.await.map_err(|error| error.to_string())??;
            }
        }
        Ok(f64::from(calls) / window.as_secs_f64())
    }

    /// From now on the three others are in trouble, until it is stopped.
    pub(crate) async fn trouble(&self, stop: CancellationToken) -> Result<(), String> {
        let refused = |code: ErrorCode| code.as_str().to_owned();
        for record in 0..TO_ROTATE {
            self.several.encrypt("rotating", &format!("old-{record}")).await.map_err(refused)?;
        }
        self.several.set("hung", Mode::Hangs);
        self.several.kmses["rotating"].rotate_for_ever();
        let operator = self.several.caller("rotating").await.map_err(refused)?;
        self.several.app.rotate(&operator, false).await.map_err(|refusal| refused(refusal.code))?;
        let several = self.several.clone();
        tokio::spawn(async move {
            // Its last entries are gone; then its tree is another one.
            let damages =
                ["size = size - 1", "frontier = decode(repeat('5a', octet_length(frontier)), 'hex')"];
            for damage in damages.into_iter().cycle() {
                let of = format!("tenant = decode(repeat('{DAMAGED:02x}', 16), 'hex') AND size > 0");
                several.execute(&format!("UPDATE np_byok_heads SET {damage} WHERE {of}")).await;
                if tokio::time::timeout(DAMAGED_EVERY, stop.cancelled()).await.is_ok() {
                    return;
                }
            }
        });
        Ok(())
    }

    pub(crate) async fn rotates_still(&self) -> bool {
        let job = self.several.store.latest_job(ROTATING).await;
        job.is_ok_and(|job| job.is_some_and(|job| job.state == JobState::Running))
    }
}

impl Caller {
    /// As a front does it: who calls, and for which tenant; then a decrypt of the record whose DEK is in memory.
    pub(crate) async fn decrypt(&self) -> Result<(), ErrorCode> {
        let caller = self.several.admit(&self.headers).await?;
        self.several.decrypt_as(&caller, &self.token, RECORD).await
    }

    /// The same, or in every second call an encrypt of a new record, whose DEK the KMS wraps.
    pub(crate) async fn call(&self, number: u64) -> Result<(), ErrorCode> {
        if number.is_multiple_of(2) {
            return self.decrypt().await;
        }
        let caller = self.several.admit(&self.headers).await?;
        self.several.encrypt_as(&caller, &format!("new-{number}")).await.map(drop)
    }
}

async fn call_until(caller: Caller, until: Instant) -> Result<u32, String> {
    let mut calls = 0;
    while Instant::now() < until {
        caller.decrypt().await.map_err(|code| code.as_str().to_owned())?;
        calls += 1;
    }
    Ok(calls)
}
