//! What a network can do between us and each provider, during each operation and during the fetch of a credential: the
//! call ends within its deadline, with a class that says outage and never that the key was turned off, and says nothing
//! else; and when the fault is over the next call succeeds.

use std::sync::Arc;
use std::time::Duration;

use byok::config::VaultLogin;
use byok::crypto::{Dek, SecretText};
use byok::kms::{DekBinding, Kms, KmsErrorClass, VaultTransit, Verdict};
use byok::model::{DekId, TenantUid, Wrapped};
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::time::Instant;

use crate::support::log::Log;
use crate::support::toxics::{Fault, Way};
use crate::support::vault::Vault;

/// Of every call here.
const TIMEOUT: Duration = Duration::from_millis(1_200);
/// How late a busy machine may see that the deadline is over.
const LATE: Duration = Duration::from_millis(1_500);

/// A provider, reached by ways that can be spoiled.
struct Reached {
    /// To the KMS.
    kms: Way,
    /// To where the credential comes from; the same host for Vault.
    credential: Option<Way>,
    /// One that holds no credential yet.
    fresh: Box<dyn Fn() -> BoxFuture<'static, Arc<dyn Kms>> + Sync + Send>,
    /// What stands in no error and no log line.
    secrets: Vec<String>,
}

async fn vault() -> Reached {
    let transit = Vault::shared().transit().await;
    let (way, address) = Way::to_url(&transit.vault.address).await;
    let mount = format!("approle-{}", transit.policy);
    transit.vault.write(&format!("sys/auth/{mount}"), json!({ "type": "approle" })).await;
    let role = format!("auth/{mount}/role/byok");
    transit.vault.write(&role, json!({ "token_policies": [transit.policy], "token_ttl": "1h" })).await;
    let role_id = transit.vault.read(&format!("{role}/role-id")).await["data"]["role_id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let secret_id = transit.vault.write(&format!("{role}/secret-id"), json!({})).await["data"]["secret_id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let secrets = vec![role_id.clone(), secret_id.clone()];
    let fresh = move || {
        let login = VaultLogin::AppRole {
            mount: mount.clone(),
            role_id: SecretText::new(role_id.clone()),
            secret_id: Some(byok::config::SecretSource::Text(SecretText::new(secret_id.clone()))),
        };
        let mut settings = transit.settings(login);
        settings.address = address.parse().expect("an address");
        settings.timeout = TIMEOUT;
        let kms: Arc<dyn Kms> = Arc::new(VaultTransit::new(settings).expect("the settings are good"));
        Box::pin(async move { kms }) as BoxFuture<'static, _>
    };
    Reached { kms: way, credential: None, fresh: Box::new(fresh), secrets }
}

fn binding() -> DekBinding {
    DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new() }
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Generate,
    Wrap,
    Unwrap,
    Rewrap,
}

/// Does it, and gives the class and the error as a log would show it.
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
        Fault::Delayed | Fault::Hung => class == KmsErrorClass::Timeout,
        // An answer that is none, or half of one.
        Fault::TruncatedHead | Fault::TruncatedBody | Fault::Corrupted => {
            matches!(class, KmsErrorClass::Unreachable | KmsErrorClass::Internal)
        }
    }
}

/// Under the fault the call fails in time and with the right class; after it the same client works.
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
    for secret in &reached.secrets {
        assert!(!shown.contains(secret.as_str()), "{operation:?} through {fault:?}: {shown}");
    }
    // A login that failed may pause for a moment before the next.
    for _ in 0..20 {
        if attempt(kms, operation, wrapped).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("{operation:?} after {fault:?}: it does not come back");
}

async fn every_operation_survives_every_fault(reached: Reached) {
    let log = Log::capture();
    let kms = (reached.fresh)().await;
    let bound = binding();
    let made = kms.generate(&[bound]).await.remove(0).expect("a DEK").value;
    let wrapped = (bound, made.wrapped);
    for fault in Fault::ALL {
        for operation in [Operation::Generate, Operation::Wrap, Operation::Unwrap, Operation::Rewrap] {
            survives(&reached, &*kms, &reached.kms, operation, fault, &wrapped).await;
        }
    }
    let ours = log.ours();
    assert!(ours.contains("the KMS did not do it"), "the log was captured");
    for secret in &reached.secrets {
        assert!(!ours.contains(secret.as_str()), "{secret} was logged");
    }
}

async fn a_credential_that_cannot_be_fetched_is_an_outage(reached: Reached) {
    let bound = binding();
    let made = (reached.fresh)().await.generate(&[bound]).await.remove(0).expect("a DEK").value;
    let wrapped = (bound, made.wrapped);
    for fault in Fault::ALL {
        let kms = (reached.fresh)().await;
        let way = reached.credential.as_ref().unwrap_or(&reached.kms);
        survives(&reached, &*kms, way, Operation::Unwrap, fault, &wrapped).await;
    }
}

/// What is held goes on being good while no new one can be had.
async fn a_live_credential_outlasts_its_source(reached: Reached) {
    let Some(way) = &reached.credential else { return };
    let kms = (reached.fresh)().await;
    let bound = binding();
    let made = kms.generate(&[bound]).await.remove(0).expect("a DEK").value;
    way.spoil(Fault::Cut).await;
    for _ in 0..5 {
        let outcome = attempt(&*kms, Operation::Unwrap, &(bound, made.wrapped.clone())).await;
        assert_eq!(outcome, Ok(()));
    }
}

macro_rules! on_every_provider {
    ($($provider:ident),+) => {
        $(mod $provider {
            #[tokio::test]
            async fn every_operation_survives_every_fault() {
                super::every_operation_survives_every_fault(super::$provider().await).await;
            }

            #[tokio::test]
            async fn a_credential_that_cannot_be_fetched_is_an_outage() {
                super::a_credential_that_cannot_be_fetched_is_an_outage(super::$provider().await).await;
            }

            #[tokio::test]
            async fn a_live_credential_outlasts_its_source() {
                super::a_live_credential_outlasts_its_source(super::$provider().await).await;
            }
        })+
    };
}

on_every_provider!(vault);
