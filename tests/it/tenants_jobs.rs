//! What runs beside requests for several tenants: no tenant's work waits for another tenant's
//! receiver or KMS, and the health of a tenant is told to its own callers alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::{StatusCode, Uri};
use byok::app::{Health, HealthStatus};
use byok::model::{ErrorCode, JobState, Posture, TenantUid};
use byok::store::JobReads as _;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::support::several::Several;
use crate::support::tenant_kms::Mode;

/// The tenant whose requests the receiver never answers.
const HUNG: &str = "hung";

/// What came at one path.
#[derive(Default)]
struct Came {
    /// Whether a request of the hung tenant waits for its answer now.
    is_open: bool,
    /// The number of requests of others during the current request of the hung one, and the most so
    /// far.
    meanwhile: usize,
    most_meanwhile: usize,
}

#[derive(Default)]
struct Inbox(Mutex<HashMap<String, Came>>);

impl Inbox {
    fn at<T>(&self, path: &str, look: impl FnOnce(&mut Came) -> T) -> T {
        look(self.0.lock().unwrap().entry(path.to_owned()).or_default())
    }
}

/// Notes that a request that is not answered was given up.
struct Unanswered(Arc<Inbox>, String);

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.at(&self.1, |came| came.is_open = false);
    }
}

/// A receiver that answers every tenant but one, and its URL.
async fn receiver() -> (Arc<Inbox>, String) {
    let inbox = Arc::new(Inbox::default());
    let kept = inbox.clone();
    let router = Router::new().fallback(move |uri: Uri, body: Bytes| {
        let inbox = kept.clone();
        async move {
            let path = uri.path().to_owned();
            let body: Value = serde_json::from_slice(&body).unwrap();
            if body["data"]["tenant"] == HUNG {
                inbox.at(&path, |came| (came.is_open, came.meanwhile) = (true, 0));
                let _unanswered = Unanswered(inbox, path);
                std::future::pending::<()>().await;
            } else {
                inbox.at(&path, |came| {
                    came.meanwhile += usize::from(came.is_open);
                    came.most_meanwhile = came.most_meanwhile.max(came.meanwhile);
                });
            }
            StatusCode::NO_CONTENT
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (inbox, url)
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_hangs_for_one_tenant_delays_no_other() {
    let (inbox, url) = receiver().await;
    let wells = ["well-1", "well-2", "well-3", "well-4"];
    let several = Several::posting_to(&url, &[&[HUNG], &wells[..]].concat()).await;
    several.encrypt(HUNG, "r-1").await.unwrap();
    // At each path, more than what was due in the same round as the request that hangs.
    for path in ["/entries", "/checkpoints"] {
        let mut record = 0;
        eventually(path, async || {
            record += 1;
            several.encrypt(wells[0], &format!("{path}-{record}")).await.unwrap();
            // Longer than a round, so that each one has something to send.
            tokio::time::sleep(Duration::from_millis(1_200)).await;
            inbox.at(path, |came| came.most_meanwhile) >= 3
        })
        .await;
    }
    let mut token = HashMap::new();
    for well in wells {
        token.insert(well, several.encrypt(well, "r-1").await.unwrap());
    }
    several.set(HUNG, Mode::Refuses);
    for well in wells {
        eventually("an incident of the hung one waits", async || inbox.at("/incidents", |came| came.is_open))
            .await;
        several.set(well, Mode::Refuses);
        eventually("an incident of another", async || {
            let _ = several.decrypt(well, &token[well], "r-1").await;
            inbox.at("/incidents", |came| came.most_meanwhile > 0 || !came.is_open)
        })
        .await;
    }
    assert!(inbox.at("/incidents", |came| came.most_meanwhile) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_whose_kmses_hang_keep_no_other_out() {
    let names: Vec<String> = (0..33).map(|n| format!("tenant-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let several = Several::of(&names).await;
    let (last, hung) = names.split_last().unwrap();
    for name in &names {
        several.encrypt(name, "r-1").await.unwrap();
    }
    for name in hung {
        several.kmses[*name].rotate_for_ever();
        let caller = several.caller(name).await.unwrap();
        several.set(name, Mode::Hangs);
        several.app.rotate(&caller, false).await.unwrap();
    }
    several.app.rotate(&several.caller(last).await.unwrap(), false).await.unwrap();
    let uid = TenantUid([33; 16]);
    eventually("the last rotation is done", async || {
        several.store.latest_job(uid).await.unwrap().unwrap().state == JobState::Done
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_health_is_told_to_its_own_callers_alone() {
    let several = Several::of(&["well", "revoked", "behind"]).await;
    several
        .execute(
            "INSERT INTO np_byok_checkpoints (tenant, log, size, note)
             SELECT uid, 1, 999, 'of what was lost' FROM np_byok_tenants WHERE name = 'behind'",
        )
        .await;
    let token = several.encrypt("revoked", "r-1").await.unwrap();
    several.set("revoked", Mode::Refuses);
    eventually("it is revoked", async || {
        several.decrypt("revoked", &token, "r-1").await == Err(ErrorCode::KmsAccessDenied)
    })
    .await;
    let health_of = async |name: &str| {
        let identity = several.caller(name).await.unwrap().identity;
        several.app.health_for(Some(identity)).await
    };
    let well = health_of("well").await;
    assert_eq!((well.status, well.audit_log, well.error), (HealthStatus::Ok, true, None));
    assert!(well.key_version.is_some());
    let revoked = health_of("revoked").await;
    assert_eq!((revoked.status, revoked.worst_posture), (HealthStatus::Revoked, Some(Posture::Revoked)));
    let behind = health_of("behind").await;
    assert_eq!((behind.status, behind.audit_log), (HealthStatus::Degraded, false));
    assert_eq!(behind.error, Some(ErrorCode::AuditLogBehind));
    // Nobody else hears of a tenant: not even that it has a key.
    let of_process = |health: Health| {
        assert_eq!((health.status, health.database, health.audit_log), (HealthStatus::Ok, true, true));
        assert_eq!((health.error, health.key_version, health.posture), (None, None, None));
        assert_eq!((health.worst_posture, health.last_success, health.kms_latency), (None, None, None));
    };
    of_process(several.app.known_health().await);
    of_process(several.app.watched_health().await);
    let mut stranger = several.caller("revoked").await.unwrap().identity;
    stranger.session = Default::default();
    of_process(several.app.health_for(Some(stranger)).await);
    assert_eq!(several.app.ready().await, Ok(()));
}
