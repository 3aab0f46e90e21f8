//! The gate of commits in a server for several tenants: calls whose tenant was changed while they
//! ran, or since this server read the tenant's rows.

use std::sync::Arc;
use std::time::Duration;

use byok::app::AuditQuery;
use byok::model::{ErrorCode, TenantUid};
use byok::store::{DekReads as _, EntryFilter, EntrySearch as _};

use crate::support::several::Several;

const ACME: TenantUid = TenantUid([1; 16]);

/// The outcomes in the tenant's log, latest first.
async fn outcomes(several: &Several, latest: u32) -> Vec<String> {
    let found = several.store.latest_entries(ACME, &EntryFilter::default(), latest).await.unwrap();
    found.into_iter().map(|placed| placed.row.outcome.as_str().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_holds_for_calls_that_were_admitted_before() {
    let several = Several::of(&["acme", "globex"]).await;
    let token = several.encrypt("acme", "r-1").await.unwrap();
    let admitted = several.caller("acme").await.unwrap();
    assert_eq!(several.decrypt_as(&admitted, &token, "r-1").await, Ok(()));
    several.execute("UPDATE np_byok_tenants SET locked = true, revision = 1 WHERE name = 'acme'").await;
    let denied = Err(ErrorCode::PermissionDenied);
    assert_eq!(several.decrypt_as(&admitted, &token, "r-1").await, denied);
    assert_eq!(outcomes(&several, 2).await, ["PERMISSION_DENIED", "OK"], "the refusal is in the log");
    // From then on this server knows that the tenant is locked.
    assert_eq!(several.decrypt("acme", &token, "r-1").await, denied);
    assert_eq!(several.encrypt("acme", "r-2").await.err(), denied.err());
    assert!(several.encrypt("globex", "r-1").await.is_ok());
    assert_eq!(several.store.deks_after(ACME, None, 10).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_rotations_of_a_locked_tenant_are_refused_as_well() {
    let several = Several::of(&["acme"]).await;
    several.encrypt("acme", "r-1").await.unwrap();
    let admitted = several.caller("acme").await.unwrap();
    several.execute("UPDATE np_byok_tenants SET locked = true, revision = 1").await;
    let refused = several.app.rotate(&admitted, false).await.map(drop).map_err(|refusal| refusal.code);
    assert_eq!(refused, Err(ErrorCode::PermissionDenied));
    let query = AuditQuery { filter: EntryFilter::default(), first: None, after: None, newer: false };
    let refused =
        several.app.audit(&admitted, &query, 1 << 20).await.map(drop).map_err(|refusal| refusal.code);
    assert_eq!(refused, Err(ErrorCode::PermissionDenied));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_starts_over_after_a_change_of_its_tenant() {
    let several = Several::of(&["acme"]).await;
    let token = several.encrypt("acme", "r-1").await.unwrap();
    let admitted = several.caller("acme").await.unwrap();
    for revision in 1..=3 {
        several.execute(&format!("UPDATE np_byok_tenants SET revision = {revision}")).await;
        assert_eq!(several.decrypt_as(&admitted, &token, "r-1").await, Ok(()));
        assert_eq!(several.caller("acme").await.unwrap().runtime.revision, Some(revision));
    }
    assert_eq!(outcomes(&several, 4).await, ["OK"; 4], "no attempt that failed is in the log");
}

/// A name that a call has claimed may have become another tenant's.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_admitted_under_a_name_that_has_changed_is_refused() {
    let several = Several::of(&["acme", "globex"]).await;
    let token = several.encrypt("acme", "r-1").await.unwrap();
    let admitted = several.caller("acme").await.unwrap();
    for (old, new) in [("acme", "acme-2"), ("globex", "acme")] {
        let rename = format!(
            "UPDATE np_byok_tenants SET name = '{new}', revision = revision + 1 WHERE name = '{old}'"
        );
        several.execute(&rename).await;
    }
    let refused = several.decrypt_as(&admitted, &token, "r-1").await;
    assert_eq!(refused, Err(ErrorCode::PermissionDenied));
    // Callers that claim the name from now on are the other tenant's, to which this token does not
    // belong.
    assert_eq!(several.caller("acme").await.unwrap().tenant().uid, TenantUid([2; 16]));
    assert_eq!(several.decrypt("acme", &token, "r-1").await, Err(ErrorCode::DecryptFailed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_under_way_when_a_tenant_changes_are_all_answered() {
    let several = Arc::new(Several::of(&["acme"]).await);
    let token = several.encrypt("acme", "r-1").await.unwrap();
    let callers: Vec<_> = (0..16)
        .map(|caller| {
            let (several, token) = (several.clone(), token.clone());
            tokio::spawn(async move {
                for call in 0..40 {
                    assert_eq!(several.decrypt("acme", &token, "r-1").await, Ok(()), "{caller} {call}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
        })
        .collect();
    for revision in 1..=5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        several.execute(&format!("UPDATE np_byok_tenants SET revision = {revision}")).await;
    }
    for caller in callers {
        caller.await.unwrap();
    }
}
