//! The customer's switches at every provider: a key that was turned off no longer unwraps, with an
//! error that says so, and a key that was turned on again does.

use std::time::Duration;

use byok::kms::{KmsErrorClass, Verdict};
use tokio::time::Instant;

use crate::support::calls::{made, unwraps};
use crate::support::provider::{Provided, Switch};

/// Our clients pause before they present a refused credential again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Turns every switch of the provider off and on, twice, on one key: the undo must leave nothing
/// behind.
async fn every_switch_turns_off_and_on(provided: Provided, missing: &[Switch]) {
    let kms = provided.kms();
    let wrapped = made(&*kms).await;
    let unwraps = async || unwraps(&*kms, &wrapped).await;
    for switch in Switch::ALL.into_iter().chain(Switch::ALL) {
        let Some(turns) = provided.switch(switch) else {
            assert!(missing.contains(&switch), "{switch:?} is not there");
            continue;
        };
        assert_eq!(unwraps().await, None, "before {switch:?}");
        (turns.off)().await;
        let class = until(true, &unwraps).await;
        let class = class.unwrap_or_else(|| panic!("{switch:?} was turned off, and it unwraps"));
        assert_eq!(class.verdict(), Verdict::Revoked, "{switch:?}: {class:?}");
        (turns.on)().await;
        let class = until(false, &unwraps).await;
        assert_eq!(class, None, "{switch:?} was turned on again");
    }
}

/// The last result of an unwrap, once it fails or succeeds as expected, or when the time is over.
async fn until(fails: bool, unwraps: impl AsyncFn() -> Option<KmsErrorClass>) -> Option<KmsErrorClass> {
    let began = Instant::now();
    loop {
        let class = unwraps().await;
        if class.is_some() == fails || began.elapsed() > PATIENCE {
            return class;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn aws() {
    every_switch_turns_off_and_on(Provided::aws().await, &[Switch::Version]).await;
}

#[tokio::test]
async fn google() {
    every_switch_turns_off_and_on(Provided::gcp().await, &[]).await;
}

#[tokio::test]
async fn vault() {
    every_switch_turns_off_and_on(Provided::vault().await, &[]).await;
}

#[tokio::test]
async fn azure() {
    every_switch_turns_off_and_on(Provided::azure().await, &[]).await;
}
