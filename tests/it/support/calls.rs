//! Single calls to a provider, for tests of their outcome.

use std::time::Duration;

use byok::crypto::Dek;
use byok::kms::{DekBinding, Kms, KmsErrorClass, Purpose};
use byok::model::{DekId, TenantUid, Wrapped};

/// The binding of a new DEK of the tests' tenant.
pub(crate) fn binding() -> DekBinding {
    DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record }
}

/// A new DEK, wrapped.
pub(crate) async fn made(kms: &dyn Kms) -> (DekBinding, Wrapped) {
    let binding = binding();
    (binding, kms.generate(&[binding]).await.remove(0).expect("a DEK").value.wrapped)
}

/// The class of the error that a wrap ends with, if it fails.
pub(crate) async fn wraps(kms: &dyn Kms) -> Option<KmsErrorClass> {
    kms.wrap(&[(binding(), &Dek::generate())]).await.remove(0).err().map(|error| error.class)
}

/// The class of the error that an unwrap ends with, if it fails.
pub(crate) async fn unwraps(kms: &dyn Kms, wrapped: &(DekBinding, Wrapped)) -> Option<KmsErrorClass> {
    kms.unwrap(std::slice::from_ref(wrapped)).await.remove(0).err().map(|error| error.class)
}

/// The longest that a revoked credential may be used, as the documentation states it.
const BOUND: Duration = Duration::from_secs(15 * 60);

/// Waits until calls are refused because the credential alone was just revoked, and returns the
/// class of the refusal. Between requests the clock of the provider's timers runs ahead; the
/// requests go to the server in real time.
pub(crate) async fn refused_within_the_bound(kms: &dyn Kms) -> KmsErrorClass {
    let revoked = tokio::time::Instant::now();
    assert_eq!(wraps(kms).await, None, "what the credential obtained is still accepted");
    while revoked.elapsed() <= BOUND {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(20)).await;
        tokio::time::resume();
        tokio::time::sleep(Duration::from_millis(300)).await;
        if let Some(class) = wraps(kms).await {
            assert!(revoked.elapsed() <= BOUND, "{:?}", revoked.elapsed());
            return class;
        }
    }
    panic!("the credential is not refused within the bound");
}
