//! One server for several tenants: each call is for the tenant that a verified JWT names, under
//! that tenant's keys, and one tenant's problems do not affect another.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use byok::model::{ErrorCode, JobState, TenantUid};
use byok::store::JobReads as _;
use byok::tenancy::Caller;
use tokio_util::sync::CancellationToken;

use crate::support::several::{SHARED_SECRET, Several, headers};
use crate::support::tenant_kms::Mode;

/// A little longer than a server remembers that a tenant is locked, or that a name is unknown.
const REMEMBERED: Duration = Duration::from_millis(1_200);

/// The caller of a request with these claims, if it has a JWT, and these headers.
async fn admitted(
    several: &Several,
    claims: Option<&[(&str, &str)]>,
    more: &[(&'static str, &str)],
) -> Result<Caller, ErrorCode> {
    let mut headers = claims.map(headers).unwrap_or_default();
    for (name, value) in more {
        headers.insert(*name, value.parse().unwrap());
    }
    several.admit(&headers).await
}

fn uid(n: u8) -> String {
    format!("decode(repeat('{n:02x}', 16), 'hex')")
}

#[tokio::test]
async fn a_call_is_for_the_tenant_that_a_verified_jwt_names() {
    let several = Several::of(&["acme", "globex"]).await;
    for name in ["acme", "globex"] {
        assert_eq!(several.caller(name).await.unwrap().tenant().name, name);
    }
    let denied = Some(ErrorCode::PermissionDenied);
    for name in ["initech", "ACME", " acme", "acme\u{430}", "../acme"] {
        assert_eq!(several.caller(name).await.err(), denied, "{name:?}");
    }
    assert_eq!(admitted(&several, Some(&[]), &[]).await.err(), denied, "no claim");
    // Headers name no tenant, not even with the secret that is shared with Hasura.
    let named = [("x-hasura-tenant-id", "acme"), ("x-hasura-role", "admin")];
    assert_eq!(admitted(&several, Some(&[]), &named).await.err(), denied);
    let with_secret = [named[0], named[1], ("x-byok-secret", SHARED_SECRET)];
    assert_eq!(admitted(&several, None, &with_secret).await.err(), denied);
    let other = admitted(&several, Some(&[("x-hasura-tenant-id", "globex")]), &with_secret).await;
    assert_eq!(other.err(), Some(ErrorCode::AccessDenied), "the header contradicts the JWT");
}

#[tokio::test]
async fn a_token_opens_for_its_own_tenant_alone() {
    let several = Several::of(&["acme", "globex"]).await;
    let token = several.encrypt("acme", "r-1").await.unwrap();
    assert_eq!(several.decrypt("acme", &token, "r-1").await, Ok(()));
    assert_eq!(several.decrypt("globex", &token, "r-1").await, Err(ErrorCode::DecryptFailed));
    // Nor does it if the other tenant has a copy of the DEK's row.
    let columns = "id, record_id, wrapped, key_name, key_version, wrap_scheme, created_at, mac, record_mac";
    several
        .execute(&format!(
            "INSERT INTO np_byok_wrapped_deks (tenant, {columns}) SELECT {}, {columns} FROM np_byok_wrapped_deks",
            uid(2)
        ))
        .await;
    assert!(several.decrypt("globex", &token, "r-1").await.is_err());
    assert_eq!(several.decrypt("acme", &token, "r-1").await, Ok(()));
}

#[tokio::test]
async fn a_tenant_that_is_renamed_is_served_under_its_new_name() {
    let several = Several::of(&["acme"]).await;
    let token = several.encrypt("acme", "r-1").await.unwrap();
    several.execute("UPDATE np_byok_tenants SET name = 'acme-2'").await;
    assert_eq!(several.decrypt("acme-2", &token, "r-1").await, Ok(()));
    assert_eq!(
        several.caller("acme").await.err(),
        Some(ErrorCode::PermissionDenied),
        "no tenant has that name now"
    );
}

#[tokio::test]
async fn a_tenant_that_is_locked_is_served_no_more() {
    let several = Several::of(&["acme", "globex"]).await;
    let token = several.encrypt("acme", "r-1").await.unwrap();
    several.execute("UPDATE np_byok_tenants SET locked = true WHERE name = 'acme'").await;
    assert_eq!(several.decrypt("acme", &token, "r-1").await, Err(ErrorCode::PermissionDenied));
    assert!(several.caller("globex").await.is_ok());
    several.execute("UPDATE np_byok_tenants SET locked = false").await;
    tokio::time::sleep(REMEMBERED).await;
    assert_eq!(several.decrypt("acme", &token, "r-1").await, Ok(()));
}

#[tokio::test]
async fn two_keys_that_would_both_wrap_are_none() {
    let several = Several::of(&["acme"]).await;
    several
        .execute(
            "INSERT INTO np_byok_keys (tenant, id, label, owner, state, revision)
             SELECT tenant, decode(repeat('09', 16), 'hex'), 'another', owner, state, 0 FROM np_byok_keys",
        )
        .await;
    assert_eq!(several.caller("acme").await.err(), Some(ErrorCode::KmsMisconfigured));
}

/// Calls as this tenant until it is stopped, and returns the refusals and the number of calls.
async fn call_on(
    several: Arc<Several>,
    tenant: &'static str,
    token: String,
    stop: CancellationToken,
) -> (Vec<ErrorCode>, usize) {
    let (mut refused, mut calls) = (Vec::new(), 0);
    while !stop.is_cancelled() {
        let record = format!("new-{calls}");
        refused.extend(several.decrypt(tenant, &token, "r-1").await.err());
        refused.extend(several.encrypt(tenant, &record).await.err());
        calls += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (refused, calls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_befalls_other_tenants_is_never_seen_by_one() {
    let names = ["well", "hung", "damaged", "rotating", "revoked"];
    let several = Arc::new(Several::of(&names).await);
    let mut tokens = HashMap::new();
    for name in names {
        tokens.insert(name, several.encrypt(name, "r-1").await.unwrap());
        assert_eq!(several.decrypt(name, &tokens[name], "r-1").await, Ok(()));
    }
    // One rotates for ever, since nothing is ever wrapped under the version that its KMS names.
    several.kmses["rotating"].rotate_for_ever();
    several.app.rotate(&several.caller("rotating").await.unwrap(), false).await.unwrap();
    let stop = CancellationToken::new();
    let callers: Vec<_> = names
        .into_iter()
        .map(|name| tokio::spawn(call_on(several.clone(), name, tokens[name].clone(), stop.clone())))
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    several.set("hung", Mode::Hangs);
    several.set("revoked", Mode::Refuses);
    // The damaged tenant's log is set back again and again.
    let damaged = uid(3);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(12) {
        several
            .execute(&format!(
                "UPDATE np_byok_heads SET size = size - 1 WHERE tenant = {damaged} AND size > 0"
            ))
            .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let job = several.store.latest_job(TenantUid([4; 16])).await.unwrap().unwrap();
    assert_eq!(job.state, JobState::Running, "it rotates still");
    stop.cancel();
    let mut ended = HashMap::new();
    for (name, caller) in names.into_iter().zip(callers) {
        ended.insert(name, caller.await.unwrap());
    }
    let (refused, calls) = &ended["well"];
    assert!(refused.is_empty(), "{refused:?} of {calls}");
    assert!(*calls > 50, "{calls}");
    assert!(ended["rotating"].0.is_empty(), "{:?}", ended["rotating"].0);
    assert!(ended["hung"].0.contains(&ErrorCode::KmsUnavailable), "{:?}", ended["hung"].0);
    assert!(ended["revoked"].0.contains(&ErrorCode::KmsAccessDenied), "{:?}", ended["revoked"].0);
    assert!(!ended["damaged"].0.is_empty());
    // And it stays so: the unaffected tenant's DEKs in memory were not dropped with the others'.
    assert_eq!(several.decrypt("well", &tokens["well"], "r-1").await, Ok(()));
    assert!(several.decrypt("revoked", &tokens["revoked"], "r-1").await.is_err());
}
