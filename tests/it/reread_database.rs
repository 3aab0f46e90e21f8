//! A database password that changes while the server runs: the file with the URL is rewritten, and
//! connections made with the old password are retired.

use std::fs;

use crate::guarded::until;
use crate::support::needed;
use crate::support::postgres::{Server, execute, number};
use crate::support::server::{TestServer, create_database};
use crate::support::shared_vault::VaultKey;

/// A PostgreSQL server that requires a password of the role `byok_rotated`, and a function from a
/// password to the URL.
async fn with_passwords() -> (Server, impl Fn(&str) -> String) {
    let postgres = Server::start();
    execute(&postgres.url, "CREATE ROLE byok_rotated LOGIN PASSWORD 'first-s3cret'").await;
    execute(&postgres.url, "CREATE DATABASE byok_rotated OWNER byok_rotated").await;
    let rules = "host all byok_rotated 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";
    fs::write(postgres.data().join("pg_hba.conf"), rules).unwrap();
    execute(&postgres.url, "SELECT pg_reload_conf()").await;
    let host = postgres.url.rsplit_once('@').unwrap().1.rsplit_once('/').unwrap().0.to_owned();
    (postgres, move |password: &str| format!("postgres://byok_rotated:{password}@{host}/byok_rotated"))
}

/// The number of log lines about a new URL that cannot be used yet.
fn refusals(server: &TestServer) -> usize {
    server.logged().matches("at its new URL the database").count()
}

#[tokio::test]
async fn a_changed_password_is_reread_and_old_connections_are_retired() {
    let (postgres, url) = with_passwords().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("url");
    fs::write(&path, url("first-s3cret")).unwrap();
    let more = [("DATABASE_URL", ""), ("DATABASE_URL_FILE", path.to_str().unwrap())];
    let server = TestServer::on(VaultKey::create().await, url("first-s3cret"), &more).await;
    let token = server.encrypt("plain", "r").await;

    // The file is written before the password is changed, so the new URL does not work yet.
    fs::write(&path, url("second-s3cret")).unwrap();
    until("it is reported", async || refusals(&server) == 1).await;
    assert_eq!(server.decrypt(&token, "r").await.status, 200, "the previous URL stays in use");

    let moment = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8";
    let before = number(&postgres.url, moment).await;
    execute(&postgres.url, "ALTER ROLE byok_rotated PASSWORD 'second-s3cret'").await;
    let taken = r#""part":"database""#;
    until("it is taken once it works", async || {
        server.logged().lines().any(|line| line.contains(taken) && line.contains("is in use"))
    })
    .await;
    let old = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'byok_rotated' \
         AND extract(epoch FROM backend_start) * 1000000 < {before}"
    );
    until("none is left that was made by the old one", async || number(&postgres.url, &old).await == 0).await;

    let terminate =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'byok_rotated'";
    number(&postgres.url, terminate).await;
    until("it continues with the new one", async || server.decrypt(&token, "r").await.status == 200).await;

    // Not a URL of PostgreSQL, and a URL of another database.
    fs::write(&path, "mysql://byok_rotated:third-s3cret@localhost/byok_rotated").unwrap();
    until("it is reported", async || server.logged().contains("is not valid")).await;
    execute(&postgres.url, "CREATE DATABASE byok_other OWNER byok_rotated").await;
    let good = url("second-s3cret");
    fs::write(&path, format!("{}/byok_other", good.strip_suffix("/byok_rotated").unwrap())).unwrap();
    until("it is reported", async || {
        refusals(&server) == 2 || server.logged().contains("names another database")
    })
    .await;
    assert_eq!(server.decrypt(&token, "r").await.status, 200);
    assert!(!server.logged().contains("s3cret"), "no message contains part of a value");
}

#[tokio::test]
async fn a_url_corrected_before_any_database_was_reached_is_taken_untried() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let wrong = format!("postgres://byok@{}/byok", nobody.local_addr().unwrap());
    drop(nobody);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("url");
    fs::write(&path, &wrong).unwrap();
    let more = [("DATABASE_URL", ""), ("DATABASE_URL_FILE", path.to_str().unwrap())];
    let server = TestServer::starting(VaultKey::create().await, wrong, &more).await;
    assert_eq!(server.get("/ready").await.body["reason"], "STARTING");

    fs::write(&path, create_database(&needed("DATABASE_URL")).await).unwrap();
    until("it serves by the new URL", async || server.get("/ready").await.status == 200).await;
    let token = server.encrypt("plain", "r").await;
    assert_eq!(server.decrypt(&token, "r").await.body["plaintext"], "plain");
    assert_eq!(refusals(&server), 0, "there was no database to try it with");
}
