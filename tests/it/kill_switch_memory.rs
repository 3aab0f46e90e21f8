//! After a revocation the process has no plain DEK in memory: not in the cache, not in a buffer,
//! and not in freed memory.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::support::memory::{Occurrence, search};
use crate::support::needed;
use crate::support::pki::Authority;
use crate::support::relay::Relay;
use crate::support::server::{TestServer, create_database};
use crate::support::shared_vault::VaultKey;
use crate::support::switch::{Caller, Switch, encrypt_all, eventually, incidents};

/// The DEKs that were sent over the network so far, as bytes and in their encoded form.
fn deks(relay: &Relay) -> Vec<Vec<u8>> {
    let mut texts = relay.strings_under(&["plaintext"]);
    texts.sort_unstable();
    texts.dedup();
    let bytes: Vec<Vec<u8>> = texts.iter().filter_map(|text| STANDARD.decode(text).ok()).collect();
    assert!(bytes.iter().all(|dek| dek.len() == 32));
    bytes.into_iter().chain(texts.into_iter().map(String::into_bytes)).collect()
}

fn summary(occurrences: &[Occurrence], of: usize) -> String {
    let bytes = occurrences.iter().filter(|found| found.which < of / 2).count();
    let mut which: Vec<usize> = occurrences.iter().map(|found| found.which).collect();
    which.sort_unstable();
    which.dedup();
    let some: Vec<String> =
        occurrences.iter().take(3).map(|found| format!("{} {}", found.mapping, found.around)).collect();
    format!(
        "{} occurrences of {} DEKs, {bytes} of them as bytes:\n{}",
        occurrences.len(),
        which.len(),
        some.join("\n")
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_revocation_no_plain_dek_lies_in_the_servers_memory() {
    let key = VaultKey::create().await;
    let relay = Relay::before(&key.address, |request| request.uri().path().to_owned()).await;
    none_is_left(key, relay, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_one_where_the_kms_is_reached_over_tls() {
    let (key, authority) = (VaultKey::create().await, Authority::new());
    let name = |request: &axum::extract::Request| request.uri().path().to_owned();
    let relay = Relay::ending_tls(&key.address, &authority.server(), name).await;
    none_is_left(key, relay, Some(&authority)).await;
}

async fn none_is_left(key: VaultKey, relay: Relay, authority: Option<&Authority>) {
    let database_url = create_database(&needed("DATABASE_URL")).await;
    let trusted = authority.map(|authority| authority.file().display().to_string()).unwrap_or_default();
    let mut variables = vec![("BYOK_VAULT_ADDR", relay.url.as_str())];
    variables.extend(authority.map(|_| ("BYOK_VAULT_CACERT", trusted.as_str())));
    let server = TestServer::on(key, database_url, &variables).await;
    let (switch, database) = (Switch::of(&server.key).await, server.database().await);
    let search_for = async |wanted: Vec<Vec<u8>>| {
        let pid = server.pid();
        tokio::task::spawn_blocking(move || search(pid, &wanted)).await.unwrap()
    };
    // DEKs made here, and DEKs made elsewhere and unwrapped here: one by one, in batches, and by
    // concurrent callers.
    let records: Vec<String> = (0..200).map(|n| format!("record-{n}")).collect();
    let tokens = encrypt_all(&server, &records).await;
    let elsewhere: Vec<String> = (0..200).map(|n| format!("elsewhere-{n}")).collect();
    let read = encrypt_all(&server.replica().await, &elsewhere).await;
    let items: Vec<_> = elsewhere
        .iter()
        .zip(&read)
        .map(|(record, token)| json!({ "ciphertext": token, "record_id": record }))
        .collect();
    for item in &items[..40] {
        assert_eq!(server.post("/byok/decrypt", item.clone()).await.status, 200);
    }
    let many = server.post("/byok/decrypt/many", json!({ "items": items })).await;
    assert_eq!(many.status, 200);
    let callers: Vec<Caller> =
        (0..4).map(|n| Caller::decrypting(&server, "caller", &records[n], &tokens[n])).collect();
    for caller in &callers {
        caller.is_served(50).await;
    }
    for caller in callers {
        caller.end().await;
    }
    let wanted = deks(&relay);
    assert!(wanted.len() >= 800, "{}", wanted.len());
    // The search finds what must be in memory, so it would find a DEK.
    let must: Vec<Vec<u8>> = vec![b"BYOK_VAULT_TRANSIT_KEY".to_vec(), server.key.name.clone().into_bytes()];
    let seen = search_for(must).await;
    assert!(seen.iter().any(|found| found.which == 0) && seen.iter().any(|found| found.which == 1));
    // In a full cache every DEK is sealed. The encoded forms of the most recent ones, including the
    // canary's, are in the buffers of open connections.
    let hot = search_for(wanted.clone()).await;
    println!("hot and idle: {}", summary(&hot, wanted.len()));
    assert!(hot.iter().all(|found| found.which >= wanted.len() / 2), "{}", summary(&hot, wanted.len()));

    switch.off().await;
    eventually("it is revoked", async || !incidents(&database).await.is_empty()).await;
    assert_eq!(server.decrypt(&tokens[0], &records[0]).await.status, 403);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let wanted = deks(&relay);
    let left = search_for(wanted.clone()).await;
    assert!(left.is_empty(), "after the revocation: {}", summary(&left, wanted.len()));
}
