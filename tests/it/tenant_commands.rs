//! `--tenant` of the commands that work as a server does: they are for that tenant alone.

use std::process::Output;

use tokio::process::Command;

use crate::rotation::encrypt_records;
use crate::support::postgres::{execute, number};
use crate::support::server::TestServer;

async fn byok(server: &TestServer, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byok"));
    command.args(arguments).env_clear().env("BYOK_LOG", "error");
    command.envs(server.environment.iter().map(|(name, value)| (name, value)));
    command.output().await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A database on which another tenant than the primary has three DEKs under the same key, and the
/// primary two. No server runs.
async fn two_tenants() -> TestServer {
    let mut server = TestServer::start().await;
    encrypt_records(&server, 3).await;
    server.stop().await;
    execute(&server.database_url, "UPDATE np_byok_tenants SET name = 'acme' WHERE name = 'primary'").await;
    server.start_again().await;
    encrypt_records(&server, 2).await;
    server.stop().await;
    server
}

/// The number of rows of this table and tenant.
async fn rows(server: &TestServer, table: &str, tenant: &str) -> i64 {
    let of = format!("SELECT uid FROM np_byok_tenants WHERE name = '{tenant}'");
    number(&server.database_url, &format!("SELECT count(*) FROM {table} WHERE tenant = ({of})")).await
}

#[tokio::test]
async fn a_rotation_is_of_the_named_tenant_alone() {
    let server = two_tenants().await;
    server.key.rotate().await;
    let entries = rows(&server, "np_byok_audit", "primary").await;
    let rotated = byok(&server, &["rotate", "--tenant", "acme"]).await;
    assert_eq!(rotated.status.code(), Some(0), "{}", text(&rotated.stderr));
    assert!(text(&rotated.stdout).contains("3 re-wrapped"), "{}", text(&rotated.stdout));
    let left = "SELECT count(*) FROM np_byok_wrapped_deks WHERE key_version = '1'";
    assert_eq!(number(&server.database_url, left).await, 2, "those of the primary");
    assert_eq!(rows(&server, "np_byok_audit", "primary").await, entries, "its log is untouched");
    assert_eq!(rows(&server, "np_byok_jobs", "primary").await, 0);
}

#[tokio::test]
async fn the_doctor_tries_and_records_for_the_named_tenant_alone() {
    let server = two_tenants().await;
    let before =
        (rows(&server, "np_byok_audit", "primary").await, rows(&server, "np_byok_audit", "acme").await);
    let said = byok(&server, &["doctor", "--tenant", "acme"]).await;
    assert!(text(&said.stdout).contains("ok    stored DEKs: 3 were tried"), "{}", text(&said.stdout));
    let after =
        (rows(&server, "np_byok_audit", "primary").await, rows(&server, "np_byok_audit", "acme").await);
    assert_eq!(after, (before.0, before.1 + 1));
}

#[tokio::test]
async fn a_tenant_that_cannot_be_served_is_refused_with_the_reason() {
    let server = two_tenants().await;
    for command in ["rotate", "doctor"] {
        let refused = byok(&server, &[command, "--tenant", "nobody"]).await;
        assert_eq!(refused.status.code(), Some(1), "{command}");
        let said = text(&refused.stderr);
        assert!(said.ends_with("byok: there is no tenant \"nobody\"\n"), "{command}: {said}");
    }
    for (change, reason) in [
        ("UPDATE np_byok_tenants SET locked = true WHERE name = 'acme'", "is locked"),
        (
            "UPDATE np_byok_tenants SET locked = false; UPDATE np_byok_keys SET provider = 'aws', identifier = 'k'
             WHERE tenant = (SELECT uid FROM np_byok_tenants WHERE name = 'acme')",
            "has a key of its own",
        ),
    ] {
        for sql in change.split(';') {
            execute(&server.database_url, sql).await;
        }
        let refused = byok(&server, &["rotate", "--tenant", "acme"]).await;
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused.stderr).contains(reason), "{}", text(&refused.stderr));
    }
}
