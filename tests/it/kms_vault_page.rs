//! `docs/kms/vault.md`, followed as an operator would: a real Vault, and a server that uses the key
//! that the page creates.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::needed;
use crate::support::page::Page;
use crate::support::server::TestServer;
use crate::support::vault::OwnServer;

/// Decrypts the record until the answer has this status.
async fn until(server: &TestServer, ciphertext: &str, status: u16) {
    let began = Instant::now();
    loop {
        let answer = server.decrypt(ciphertext, "r").await;
        if answer.status == status {
            let code = if status == 200 { json!(null) } else { json!("KMS_ACCESS_DENIED") };
            assert_eq!(answer.body["code"], code);
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{}", answer.body);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_vaults_page_make_and_switch_a_key() {
    let running = OwnServer::start().await;
    let vault = &running.vault;
    let folder = tempfile::tempdir().unwrap();
    let secrets = folder.path().display().to_string();
    let own = [("VAULT_ADDR", &*vault.address), ("VAULT_TOKEN", &*vault.root), ("SECRETS", &*secrets)];
    let binary = needed("BYOK_TEST_VAULT");
    let mut page = Page::open("kms/vault.md", &own, &[Path::new(&binary).parent().unwrap()]);
    page.run_to("$ byok policy vault-transit");

    let file = folder.path().join("vault-token");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let token = std::fs::read_to_string(&file).unwrap();
    let of_it =
        vault.answer_to(token.trim(), reqwest::Method::GET, "auth/token/lookup-self", json!({})).await;
    assert_eq!((&of_it.1["data"]["orphan"], &of_it.1["data"]["period"]), (&json!(true), &json!(72 * 3_600)));

    let server = TestServer::with(&[
        ("BYOK_VAULT_ADDR", &vault.address),
        ("BYOK_VAULT_TOKEN", ""),
        ("BYOK_VAULT_TOKEN_FILE", &file.display().to_string()),
        ("BYOK_VAULT_TRANSIT_KEY", "nself-byok"),
        ("BYOK_KEY_RESUME_SECONDS", "0"),
    ])
    .await;
    let ciphertext = server.encrypt("p", "r").await;
    let switches = [
        ("$ vault policy delete", "$ vault policy write"),
        (
            "$ latest=",
            "$ vault write -field=min_decryption_version transit/keys/nself-byok/config min_decryption_version=1",
        ),
        ("$ vault token revoke", "$ vault token create"),
    ];
    for (off, on) in switches {
        until(&server, &ciphertext, 200).await;
        page.run_to(off);
        until(&server, &ciphertext, 403).await;
        page.run_to(on);
    }
    until(&server, &ciphertext, 200).await;
    page.run();
}
