//! Network faults between us and each provider, during each operation and while a credential is
//! fetched. The call ends within its deadline, with a class that means an outage and never that the
//! key was turned off, and its error contains nothing else. When the fault is over, the next call
//! succeeds.

use std::sync::Arc;
use std::time::Duration;

use byok::crypto::Dek;
use byok::kms::{DekBinding, Kms, KmsErrorClass, Verdict};
use byok::model::Wrapped;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::support::calls::binding;
use crate::support::gcp::Google;
use crate::support::log::Log;
use crate::support::pki::Authority;
use crate::support::provider::Provided;
use crate::support::relay::Relay;
use crate::support::toxics::{Fault, Way};

/// The timeout of every call here.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How late a busy machine may notice that the deadline has passed.
const LATE: Duration = Duration::from_secs(20);

/// A provider, reached through routes with faults.
struct Reached {
    provider: Provided,
    /// The route to the KMS, and the one to the source of the credential if that is another host.
    ways: Vec<Way>,
}

impl Reached {
    async fn new(mut provider: Provided) -> Self {
        let ways = provider.by_ways().await;
        provider.variables.push(("BYOK_KMS_TIMEOUT_MS".to_owned(), TIMEOUT.as_millis().to_string()));
        Self { provider, ways }
    }

    /// A client that holds no credential yet.
    fn fresh(&self) -> Arc<dyn Kms> {
        self.provider.kms()
    }
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Generate,
    Wrap,
    Unwrap,
    Rewrap,
}

/// Runs an operation, and returns the class of its error and the error as a log would show it.
async fn attempt(
    kms: &dyn Kms,
    operation: Operation,
    wrapped: &(DekBinding, Wrapped),
) -> Result<(), (KmsErrorClass, String)> {
    let one = std::slice::from_ref(wrapped);
    let outcome = match operation {
        Operation::Generate => kms.generate(&[binding()]).await.remove(0).map(drop),
        Operation::Wrap => kms.wrap(&[(binding(), &Dek::generate())]).await.remove(0).map(drop),
        Operation::Unwrap => kms.unwrap(one).await.remove(0).map(drop),
        Operation::Rewrap => kms.rewrap(one, &wrapped.1.key_version).await.remove(0).map(drop),
    };
    outcome.map_err(|error| (error.class, format!("{error:?}")))
}

fn expected(fault: Fault, class: KmsErrorClass) -> bool {
    match fault {
        Fault::Cut | Fault::Reset => class == KmsErrorClass::Unreachable,
        // During the TLS handshake this fault is a connection that fails.
        Fault::Delayed | Fault::Hung => {
            matches!(class, KmsErrorClass::Timeout | KmsErrorClass::Unreachable)
        }
        // The answer is missing or incomplete.
        Fault::TruncatedHead | Fault::TruncatedBody | Fault::Corrupted => {
            matches!(class, KmsErrorClass::Unreachable | KmsErrorClass::Internal)
        }
    }
}

/// Asserts that a call under the fault fails in time and with the right class, and that the same
/// client works afterwards.
async fn survives(
    reached: &Reached,
    kms: &dyn Kms,
    way: &Way,
    operation: Operation,
    fault: Fault,
    wrapped: &(DekBinding, Wrapped),
) {
    way.spoil(fault).await;
    let began = Instant::now();
    let outcome = attempt(kms, operation, wrapped).await;
    let took = began.elapsed();
    way.mend(fault).await;
    let (class, shown) = outcome.expect_err(&format!("{operation:?} through {fault:?}"));
    assert!(expected(fault, class), "{operation:?} through {fault:?}: {shown}");
    assert_eq!(class.verdict(), Verdict::Outage);
    assert!(took < TIMEOUT + LATE, "{operation:?} through {fault:?}: {took:?}");
    for secret in &reached.provider.secrets {
        assert!(!shown.contains(secret.as_str()), "{operation:?} through {fault:?}: {shown}");
    }
    // After a failed login there may be a short pause before the next.
    for _ in 0..100 {
        if attempt(kms, operation, wrapped).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("{operation:?} after {fault:?}: it does not come back");
}

async fn every_operation_survives_every_fault(provider: Provided) {
    let reached = Reached::new(provider).await;
    let log = Log::capture();
    let kms = reached.fresh();
    let bound = binding();
    let made = kms.generate(&[bound]).await.remove(0).expect("a DEK").value;
    let wrapped = (bound, made.wrapped);
    for fault in Fault::ALL {
        for operation in [Operation::Generate, Operation::Wrap, Operation::Unwrap, Operation::Rewrap] {
            survives(&reached, &*kms, &reached.ways[0], operation, fault, &wrapped).await;
        }
    }
    let ours = log.ours();
    assert!(ours.contains("a request to the KMS failed"), "the log was captured");
    for secret in &reached.provider.secrets {
        assert!(!ours.contains(secret.as_str()), "{secret} was logged");
    }
}

async fn a_credential_that_cannot_be_fetched_is_an_outage(provider: Provided) {
    let reached = Reached::new(provider).await;
    let bound = binding();
    let made = reached.fresh().generate(&[bound]).await.remove(0).expect("a DEK").value;
    let wrapped = (bound, made.wrapped);
    for fault in Fault::ALL {
        let kms = reached.fresh();
        let way = reached.ways.last().expect("a way");
        survives(&reached, &*kms, way, Operation::Unwrap, fault, &wrapped).await;
    }
}

/// Asserts that a valid credential remains in use while no new one can be fetched.
async fn a_live_credential_outlasts_its_source(provider: Provided) {
    let reached = Reached::new(provider).await;
    let [_, way] = &reached.ways[..] else { panic!("its credential comes from another host") };
    let kms = reached.fresh();
    let bound = binding();
    let made = kms.generate(&[bound]).await.remove(0).expect("a DEK").value;
    way.spoil(Fault::Cut).await;
    for _ in 0..5 {
        let outcome = attempt(&*kms, Operation::Unwrap, &(bound, made.wrapped.clone())).await;
        assert_eq!(outcome, Ok(()));
    }
}

macro_rules! on_every_provider {
    ($($provider:ident: $($behaviour:ident)+;)+) => {
        $(mod $provider {
            $(#[tokio::test]
            async fn $behaviour() {
                super::$behaviour(super::Provided::$provider().await).await;
            })+
        })+
    };
}

/// Like the real Google, which answers over HTTP/2, on one connection that all calls share.
#[tokio::test]
async fn every_operation_survives_every_fault_by_http2() {
    let authority = Authority::new();
    let mut google = Provided::gcp().await;
    let relay = Relay::ending_tls(&google.kms, &authority.server(), google.called).await;
    google.reroute(&google.kms.clone(), &relay.url);
    google.kms.clone_from(&relay.url);
    google.variables.push(("BYOK_GCP_CA_FILE".to_owned(), authority.file().display().to_string()));
    every_operation_survives_every_fault(google).await;
}

on_every_provider! {
    aws: every_operation_survives_every_fault a_credential_that_cannot_be_fetched_is_an_outage
        a_live_credential_outlasts_its_source;
    azure: every_operation_survives_every_fault a_credential_that_cannot_be_fetched_is_an_outage
        a_live_credential_outlasts_its_source;
    gcp: every_operation_survives_every_fault a_credential_that_cannot_be_fetched_is_an_outage
        a_live_credential_outlasts_its_source;
    // Vault's token is given here. The login by AppRole goes to the same host, and is tested in
    // `kms_vault_login`.
    vault: every_operation_survives_every_fault;
}

/// With HTTP/2 all calls share a connection. One that went silent (because a firewall dropped its
/// state) is used until the system gives it up.
#[tokio::test]
async fn a_connection_that_went_silent_is_left_for_another() {
    let google = Google::start().await;
    let authority = Authority::new();
    let relay =
        Relay::ending_tls(&google.address, &authority.server(), |request| format!("{:?}", request.version()))
            .await;
    let way = Forgetful::to(relay.url.trim_start_matches("https://")).await;
    let variables = [
        ("BYOK_GCP_ENDPOINT", format!("https://localhost:{}", way.port)),
        ("BYOK_GCP_CA_FILE", authority.file().display().to_string()),
        ("BYOK_KMS_TIMEOUT_MS", TIMEOUT.as_millis().to_string()),
    ];
    let kms = google.kms(&variables.each_ref().map(|(name, value)| (*name, value.as_str()))).await;
    let bound = binding();
    let made = kms.generate(&[bound]).await.remove(0).expect("a DEK").value;
    assert!(relay.state.counts.lock().expect("a lock").contains_key("HTTP/2.0"));
    way.forget();
    let outcome = attempt(&kms, Operation::Unwrap, &(bound, made.wrapped)).await;
    assert_eq!(outcome, Ok(()));
}

/// A route that forwards nothing more on its existing connections, while new ones work.
struct Forgetful {
    port: u16,
    forgotten: tokio::sync::watch::Sender<()>,
    server: tokio::task::JoinHandle<()>,
}

impl Forgetful {
    async fn to(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (forgotten, watched) = tokio::sync::watch::channel(());
        let upstream = upstream.to_owned();
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let mut far = TcpStream::connect(&upstream).await.expect("the server listens");
                let mut watched = watched.clone();
                watched.mark_unchanged();
                connections.spawn(async move {
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = watched.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self { port, forgotten, server }
    }

    fn forget(&self) {
        self.forgotten.send(()).expect("it serves");
    }
}

impl Drop for Forgetful {
    fn drop(&mut self) {
        self.server.abort();
    }
}
