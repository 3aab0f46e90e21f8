//! The real clouds, if there are credentials for them: each provider whose key is named in the
//! environment, with the variables of `byok serve`. The ordinary run ignores these tests;
//! `scripts/test real` runs them and reports which did not run. They make a few dozen calls with
//! the key, and change nothing.

use byok::config::Env;
use byok::crypto::Dek;
use byok::kms::{DekBinding, KmsErrorClass, Purpose};
use byok::model::{DekId, TenantUid};

use crate::support::provider::kms_and_diagnosis_of;

async fn wraps_unwraps_and_refuses(name: &str, binds: bool) {
    let (kms, diagnosis) = kms_and_diagnosis_of(&Env::of_process().with("BYOK_PROVIDER", name));
    let bindings: Vec<_> = (0..20)
        .map(|_| DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record })
        .collect();
    let made = kms.generate(&bindings).await;
    let made: Vec<_> = made.into_iter().map(|made| made.expect("a DEK").value).collect();
    let wrapped: Vec<_> =
        bindings.iter().copied().zip(made.iter().map(|made| made.wrapped.clone())).collect();
    let current = kms.current_version().await.expect("a version");
    assert!(wrapped.iter().all(|(_, wrapped)| wrapped.key_version == current));
    for (made, answer) in made.iter().zip(kms.unwrap(&wrapped).await) {
        assert!(made.dek.expose() == answer.expect("it unwraps").value.expose());
    }
    let answers = kms.rewrap(&wrapped, &current).await;
    let rewrapped: Vec<_> = bindings
        .iter()
        .copied()
        .zip(answers.into_iter().map(|answer| answer.expect("it rewraps").value))
        .collect();
    for (made, answer) in made.iter().zip(kms.unwrap(&rewrapped).await) {
        assert!(made.dek.expose() == answer.expect("it unwraps").value.expose());
    }
    let dek = Dek::generate();
    let one = kms.wrap(&[(bindings[0], &dek)]).await.remove(0).expect("it wraps").value;
    let class = |item: (DekBinding, byok::model::Wrapped)| {
        let kms = kms.clone();
        async move { kms.unwrap(&[item]).await.remove(0).err().map(|error| error.class) }
    };
    let mut altered = one.clone();
    let middle = altered.bytes.len() / 2;
    altered.bytes[middle] = if altered.bytes[middle] == b'A' { b'B' } else { b'A' };
    assert_eq!(class((bindings[0], altered)).await, Some(KmsErrorClass::InvalidWrappedDek));
    let elsewhere = class((bindings[1], one)).await;
    assert_eq!(elsewhere, binds.then_some(KmsErrorClass::InvalidWrappedDek));
    for exposure in diagnosis.exposure().await {
        println!("{name}: {} → {}", exposure.what, exposure.remedy);
    }
}

#[tokio::test]
#[ignore = "needs a real key: `scripts/test real`"]
async fn aws_kms() {
    wraps_unwraps_and_refuses("aws-kms", true).await;
}

#[tokio::test]
#[ignore = "needs a real key: `scripts/test real`"]
async fn gcp_kms() {
    wraps_unwraps_and_refuses("gcp-kms", true).await;
}

#[tokio::test]
#[ignore = "needs a real key: `scripts/test real`"]
async fn vault_transit() {
    wraps_unwraps_and_refuses("vault-transit", false).await;
}

#[tokio::test]
#[ignore = "needs a real key: `scripts/test real`"]
async fn azure_key_vault() {
    wraps_unwraps_and_refuses("azure-key-vault", false).await;
}
