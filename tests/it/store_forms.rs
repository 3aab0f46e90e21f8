//! Kinds of databases, and how they are named: libpq's URL forms, a pooler, an encoding, a setting,
//! a folder.

use byok::config::{Engine, Env, Reader, Store as Settings};
use byok::store::{
    Commits as _, Database, EntryFilter, EntrySearch as _, MigrateError, Postgres, RequestReads as _,
};
use tokio::process::Command;

use crate::store_full_disk::unshare;
use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::{LEVEL, Server, connect, empty, execute, settings};
use crate::support::rows::{entries, entry, tenant};

/// A store with the URL as the configuration reads it.
fn configured(url: &str) -> Postgres {
    let env = Env::from_pairs([("DATABASE_URL", url)]);
    let mut reader = Reader::new(&env);
    match Settings::read(&mut reader, None).map(|settings| settings.engine) {
        Some(Engine::Postgres(settings)) => Postgres::connect_lazy(&settings).expect("the URL is sound"),
        _ => panic!("{url}: {:?}", reader.into_errors()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn libpqs_forms_of_a_url_lead_to_the_database() {
    let server = Server::start();
    let (folder, port) = server.socket();
    let folder = folder.display();
    for url in [
        format!("postgresql://postgres@/postgres?host={folder}&port={port}"),
        format!("postgres://postgres@:{port}/postgres?host={folder}"),
        format!("postgres:///postgres?user=postgres&host={folder}&port={port}"),
        format!("postgres:///?user=postgres&dbname=postgres&host=127.0.0.1&port={port}"),
        format!("postgres://127.0.0.1:{port}/postgres?user=postgres"),
        format!("postgres://postgres:a%20b+c@/postgres?hostaddr=127.0.0.1&port={port}"),
    ] {
        assert_eq!(configured(&url).ping().await, Ok(()), "{url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_was_not_named_is_recognised_at_the_start() {
    let database = empty().await;
    for pgbouncer in
        [PgBouncer::before(&database.url).await, PgBouncer::ignoring_settings(&database.url).await]
    {
        let store = Postgres::connect_lazy(&settings(&pgbouncer.url, None, false)).unwrap();
        assert_eq!(store.migrate().await, Err(MigrateError::Pooler));
        let named = Postgres::connect_lazy(&settings(&pgbouncer.url, None, true)).unwrap();
        assert_eq!(named.migrate().await.map(|report| report.applied), Ok(LEVEL));
    }
    let pgbouncer = PgBouncer::before(&database.url).await;
    let migrate = Command::new(env!("CARGO_BIN_EXE_byok"))
        .arg("migrate")
        .env_clear()
        .env("DATABASE_URL", &pgbouncer.url)
        .output();
    let output = migrate.await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("BYOK_DATABASE_PGBOUNCER=true"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_not_in_utf8_is_refused_naming_its_encoding() {
    let server = Server::start();
    let create = "CREATE DATABASE western ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    execute(&server.url, create).await;
    let url = server.url.replace("/postgres", "/western");
    let url = if url.contains("/western@") { url.replacen("/western@", "/postgres@", 1) } else { url };
    let refused = connect(&url).migrate().await;
    assert_eq!(refused, Err(MigrateError::Encoding { found: "LATIN1".to_owned() }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_where_backslashes_escape_is_migrated_and_served() {
    let database = empty().await;
    let name = database.url.rsplit_once('/').unwrap().1;
    execute(&database.url, &format!("ALTER DATABASE {name} SET standard_conforming_strings = off")).await;
    let store = connect(&database.url);
    assert_eq!(store.migrate().await.unwrap().ran, LEVEL);
    let tenant = tenant(&store).await;
    store.commit(&entries(tenant, 0, vec![entry()])).await.unwrap();
    let page = store.entries(tenant, &EntryFilter::default(), None, 9).await.unwrap();
    assert_eq!(page.entries.len(), 1);
    assert_eq!(store.upkeep().await, Ok(()));
}

#[tokio::test]
async fn a_folder_that_sqlite_cannot_write_to_is_called_that() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "exec {} sh -c 'mount -t tmpfs tmpfs \"$1\" && \"$0\" migrate && mount -o remount,ro \"$1\" && \"$0\" migrate' \
         \"$0\" \"$1\"",
        unshare()
    );
    let migrate = Command::new("/bin/sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_byok")])
        .arg(folder.path())
        .env("DATABASE_URL", format!("sqlite://{}", folder.path().join("byok.db").display()))
        .output();
    let output = migrate.await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("its folder is not writable"), "{error}");
}
