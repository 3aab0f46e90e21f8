//! One call to a provider, for tests of what it comes to.

use byok::crypto::Dek;
use byok::kms::{DekBinding, Kms, KmsErrorClass, Purpose};
use byok::model::{DekId, TenantUid, Wrapped};

/// What a new DEK of the tests' tenant is bound to.
pub(crate) fn binding() -> DekBinding {
    DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record }
}

/// A DEK that was made, wrapped.
pub(crate) async fn made(kms: &dyn Kms) -> (DekBinding, Wrapped) {
    let binding = binding();
    (binding, kms.generate(&[binding]).await.remove(0).expect("a DEK").value.wrapped)
}

/// The class of the error that a wrap ends with.
pub(crate) async fn wraps(kms: &dyn Kms) -> Option<KmsErrorClass> {
    kms.wrap(&[(binding(), &Dek::generate())]).await.remove(0).err().map(|error| error.class)
}

/// The class of the error that an unwrap ends with.
pub(crate) async fn unwraps(kms: &dyn Kms, wrapped: &(DekBinding, Wrapped)) -> Option<KmsErrorClass> {
    kms.unwrap(std::slice::from_ref(wrapped)).await.remove(0).err().map(|error| error.class)
}
