//! Behaviour that every KMS provider shares. Each test runs against each provider; one file for
//! each says how the customer controls its key.

/// Runs every behaviour in a provider's module, on the value that its `customer()` returns.
macro_rules! conformance {
    () => {
        conformance! {
            a_batch_above_the_limit_keeps_its_order
            a_dek_of_another_scheme_is_not_tried
            a_disabled_key_refuses_every_call_until_it_is_enabled
            a_generated_dek_unwraps
            a_key_that_is_gone_is_never_made_again
            a_name_of_another_key_in_the_row_chooses_nothing
            a_new_version_wraps_and_the_old_one_still_unwraps
            a_rewrap_keeps_the_dek_and_the_old_one_still_unwraps
            a_rewrap_says_the_version_that_it_went_to
            a_wrapped_dek_holds_nothing_of_the_dek
            a_wrapped_dek_unwraps
            an_altered_item_fails_alone
            another_binding_is_refused_where_the_provider_binds
            nothing_asked_is_nothing_answered
            the_forecast_counts_the_calls
        }
    };
    ($($behaviour:ident)+) => {
        $(#[tokio::test] async fn $behaviour() { super::$behaviour(customer().await).await; })+
    };
}

mod aws;
mod azure;
mod gcp;
mod local;
mod vault;

use async_trait::async_trait;
use byok::crypto::Dek;
use byok::kms::{DekBinding, Kms, KmsErrorClass, Verdict};
use byok::model::{KeyVersion, Wrapped};

use crate::support::calls::binding;

/// A provider in use, with the customer's control of its key.
#[async_trait]
trait Customer: Sync {
    fn kms(&self) -> &dyn Kms;

    /// Makes a new version of the key.
    async fn rotate(&self);

    /// Turns the key off, and returns the class of the refusal.
    async fn disable(&self) -> KmsErrorClass;

    /// Turns the key on again.
    async fn enable(&self);

    /// Deletes the key for good, and returns the class of the refusal.
    async fn delete(&self) -> KmsErrorClass;

    /// Whether there is a key.
    async fn exists(&self) -> bool;

    /// Whether the provider itself binds a DEK to its tenant and id.
    fn binds(&self) -> bool;

    /// Whether a rewrap can go to another version than the current one.
    fn rewraps_to_older(&self) -> bool {
        true
    }

    /// The number of KMS calls that rewrap this many DEKs.
    fn rewrap_calls(&self, items: u64) -> u64;
}

fn bindings(count: usize) -> Vec<DekBinding> {
    (0..count).map(|_| binding()).collect()
}

/// Fresh DEKs, each with its binding.
async fn generated(kms: &dyn Kms, count: usize) -> (Vec<[u8; 32]>, Vec<(DekBinding, Wrapped)>) {
    let bindings = bindings(count);
    let answers = kms.generate(&bindings).await;
    assert_eq!(answers.len(), count);
    let generated = answers.into_iter().map(|answer| answer.expect("a DEK").value);
    let pairs = bindings.into_iter().zip(generated);
    pairs.map(|(binding, made)| (*made.dek.expose(), (binding, made.wrapped))).unzip()
}

async fn unwrapped(kms: &dyn Kms, wrapped: &[(DekBinding, Wrapped)]) -> Vec<Result<[u8; 32], KmsErrorClass>> {
    let answers = kms.unwrap(wrapped).await;
    answers
        .into_iter()
        .map(|answer| answer.map(|dek| *dek.value.expose()).map_err(|error| error.class))
        .collect()
}

async fn all_unwrap(kms: &dyn Kms, deks: &[[u8; 32]], wrapped: &[(DekBinding, Wrapped)]) {
    let now: Vec<_> = unwrapped(kms, wrapped).await.into_iter().map(|dek| dek.expect("it unwraps")).collect();
    assert!(now == deks, "each DEK comes back in its place");
}

async fn class_of_each_call(
    customer: &dyn Customer,
    wrapped: &[(DekBinding, Wrapped)],
) -> [Option<KmsErrorClass>; 5] {
    let (kms, dek) = (customer.kms(), Dek::generate());
    let to = &wrapped[0].1.key_version;
    [
        kms.generate(&bindings(1)).await.remove(0).err().map(|error| error.class),
        kms.wrap(&[(binding(), &dek)]).await.remove(0).err().map(|error| error.class),
        kms.unwrap(&wrapped[..1]).await.remove(0).err().map(|error| error.class),
        kms.rewrap(&wrapped[..1], to).await.remove(0).err().map(|error| error.class),
        kms.current_version().await.err().map(|error| error.class),
    ]
}

async fn a_generated_dek_unwraps(customer: impl Customer) {
    let (deks, wrapped) = generated(customer.kms(), 3).await;
    all_unwrap(customer.kms(), &deks, &wrapped).await;
    assert!(deks[0] != deks[1] && deks[1] != deks[2]);
}

async fn a_wrapped_dek_unwraps(customer: impl Customer) {
    let (dek, binding) = (Dek::generate(), binding());
    let wrapped = customer.kms().wrap(&[(binding, &dek)]).await.remove(0).expect("it wraps").value;
    all_unwrap(customer.kms(), &[*dek.expose()], &[(binding, wrapped)]).await;
}

async fn a_wrapped_dek_holds_nothing_of_the_dek(customer: impl Customer) {
    let (deks, wrapped) = generated(customer.kms(), 1).await;
    assert!(!wrapped[0].1.bytes.windows(32).any(|bytes| bytes == deks[0]));
}

async fn nothing_asked_is_nothing_answered(customer: impl Customer) {
    let kms = customer.kms();
    let to = kms.current_version().await.expect("a version");
    assert!(kms.generate(&[]).await.is_empty());
    assert!(kms.wrap(&[]).await.is_empty());
    assert!(kms.unwrap(&[]).await.is_empty());
    assert!(kms.rewrap(&[], &to).await.is_empty());
}

async fn a_batch_above_the_limit_keeps_its_order(customer: impl Customer) {
    let kms = customer.kms();
    let (deks, wrapped) = generated(kms, kms.profile().batch_limit * 2 + 1).await;
    all_unwrap(kms, &deks, &wrapped).await;
    let to = kms.current_version().await.expect("a version");
    let again = kms.rewrap(&wrapped, &to).await.into_iter().map(|answer| answer.expect("it rewraps").value);
    let again: Vec<_> = wrapped.iter().map(|(binding, _)| *binding).zip(again).collect();
    all_unwrap(kms, &deks, &again).await;
}

async fn the_forecast_counts_the_calls(customer: impl Customer) {
    let kms = customer.kms();
    let limit = kms.profile().batch_limit as u64;
    for items in [0, 1, limit, limit + 1] {
        assert_eq!(kms.profile().rewrap_cost.calls(items), customer.rewrap_calls(items), "{items} items");
    }
}

async fn an_altered_item_fails_alone(customer: impl Customer) {
    let (_, mut wrapped) = generated(customer.kms(), 5).await;
    let other = wrapped[0].1.bytes.clone();
    let middle = other.len() / 2;
    // Another character of the same alphabet, in the middle.
    wrapped[1].1.bytes[middle] = if wrapped[1].1.bytes[middle] == b'A' { b'B' } else { b'A' };
    wrapped[2].1.bytes.truncate(20);
    wrapped[3].1.bytes = b"not a wrapped DEK".to_vec();
    let expected =
        [None, Some(()), Some(()), Some(()), None].map(|bad| bad.map(|()| KmsErrorClass::InvalidWrappedDek));
    let classes = |answers: Vec<Option<KmsErrorClass>>| assert_eq!(answers, expected);
    classes(unwrapped(customer.kms(), &wrapped).await.into_iter().map(Result::err).collect());
    let to = wrapped[0].1.key_version.clone();
    let answers = customer.kms().rewrap(&wrapped, &to).await;
    classes(answers.into_iter().map(|answer| answer.err().map(|error| error.class)).collect());
}

async fn a_dek_of_another_scheme_is_not_tried(customer: impl Customer) {
    let (_, mut wrapped) = generated(customer.kms(), 1).await;
    wrapped[0].1.scheme += 1;
    assert_eq!(unwrapped(customer.kms(), &wrapped).await, [Err(KmsErrorClass::InvalidWrappedDek)]);
}

async fn another_binding_is_refused_where_the_provider_binds(customer: impl Customer) {
    let (_, mut wrapped) = generated(customer.kms(), 1).await;
    wrapped[0].0 = binding();
    let refused = unwrapped(customer.kms(), &wrapped).await[0] == Err(KmsErrorClass::InvalidWrappedDek);
    assert_eq!(refused, customer.binds());
}

async fn a_new_version_wraps_and_the_old_one_still_unwraps(customer: impl Customer) {
    let kms = customer.kms();
    let (deks, wrapped) = generated(kms, 1).await;
    let before = kms.current_version().await.expect("a version");
    assert_eq!(wrapped[0].1.key_version, before);
    customer.rotate().await;
    let after = kms.current_version().await.expect("a version");
    assert_ne!(before, after);
    assert_eq!(generated(kms, 1).await.1[0].1.key_version, after);
    all_unwrap(kms, &deks, &wrapped).await;
}

async fn a_rewrap_keeps_the_dek_and_the_old_one_still_unwraps(customer: impl Customer) {
    let kms = customer.kms();
    let (deks, wrapped) = generated(kms, 2).await;
    customer.rotate().await;
    let to = kms.current_version().await.expect("a version");
    let rewrapped =
        kms.rewrap(&wrapped, &to).await.into_iter().map(|answer| answer.expect("it rewraps").value);
    let rewrapped: Vec<_> = wrapped.iter().map(|(binding, _)| *binding).zip(rewrapped).collect();
    assert!(rewrapped.iter().all(|(_, wrapped)| wrapped.key_version == to));
    all_unwrap(kms, &deks, &rewrapped).await;
    all_unwrap(kms, &deks, &wrapped).await;
}

async fn a_rewrap_says_the_version_that_it_went_to(customer: impl Customer) {
    let kms = customer.kms();
    let old = kms.current_version().await.expect("a version");
    customer.rotate().await;
    let (_, wrapped) = generated(kms, 1).await;
    let to = if customer.rewraps_to_older() { &old } else { &wrapped[0].1.key_version };
    let rewrapped = kms.rewrap(&wrapped, &old).await.remove(0).expect("it rewraps").value;
    assert_eq!(rewrapped.key_version, *to);
}

async fn a_name_of_another_key_in_the_row_chooses_nothing(customer: impl Customer) {
    let (_, mut wrapped) = generated(customer.kms(), 1).await;
    let version = wrapped[0].1.key_version.version.clone();
    for name in ["other", "../../sys/seal", ""] {
        wrapped[0].1.key_version = KeyVersion::new(name, version.clone());
        assert_eq!(unwrapped(customer.kms(), &wrapped).await, [Err(KmsErrorClass::WrappedByAnotherKey)]);
        let answer = customer.kms().rewrap(&wrapped, &wrapped[0].1.key_version.clone()).await.remove(0);
        // The row and the target name different keys; either error may come first.
        let class = answer.err().map(|error| error.class);
        assert!(
            matches!(class, Some(KmsErrorClass::Misconfigured | KmsErrorClass::WrappedByAnotherKey)),
            "{class:?}"
        );
    }
}

async fn a_disabled_key_refuses_every_call_until_it_is_enabled(customer: impl Customer) {
    let (deks, wrapped) = generated(customer.kms(), 1).await;
    let class = customer.disable().await;
    assert_eq!(class.verdict(), Verdict::Revoked);
    assert_eq!(class_of_each_call(&customer, &wrapped).await, [Some(class); 5]);
    customer.enable().await;
    assert_eq!(class_of_each_call(&customer, &wrapped).await, [None; 5]);
    all_unwrap(customer.kms(), &deks, &wrapped).await;
}

async fn a_key_that_is_gone_is_never_made_again(customer: impl Customer) {
    let (_, wrapped) = generated(customer.kms(), 1).await;
    let class = customer.delete().await;
    assert_eq!(class.verdict(), Verdict::Revoked);
    assert_eq!(class_of_each_call(&customer, &wrapped).await, [Some(class); 5]);
    assert!(!customer.exists().await);
}
