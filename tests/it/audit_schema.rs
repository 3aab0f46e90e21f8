//! An unreadable database is told from a damaged log: the schema of another release or a missing
//! right is an error, and never a finding.

use std::process::{Output, Stdio};

use byok::model::{Tenant, TenantUid};
use byok::store::{Commits as _, Database, ReadError, Store, TenantReads};
use byok::verify::{Trust, verify_log};
use tokio::process::Command;

use crate::store_postgres::with_two_roles;
use crate::store_sqlite;
use crate::support::older_schema;
use crate::support::postgres::{LEVEL, connect, empty, execute, migrated};
use crate::support::rows::{entries, entry, tenant};

/// A tenant and an empty log, as every release has written them.
const PRIMARY: TenantUid = TenantUid([7; 16]);
const POSTGRES_PRIMARY: &str = "INSERT INTO np_byok_tenants (uid, name)
    VALUES ('\\x07070707070707070707070707070707', 'primary');
    INSERT INTO np_byok_heads (tenant) VALUES ('\\x07070707070707070707070707070707');";
const SQLITE_PRIMARY: &str = "INSERT INTO np_byok_tenants (uid, name, created_at)
    VALUES (x'07070707070707070707070707070707', 'primary', 0);
    INSERT INTO np_byok_heads (tenant) VALUES (x'07070707070707070707070707070707');";

async fn audit(arguments: &[&str], url: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byok"));
    command.arg("audit").args(arguments).env_clear().env("DATABASE_URL", url).stdin(Stdio::null());
    command.output().await.expect("byok runs")
}

/// Asserts that every command that reads a log ends with its own exit code, without a verdict about
/// the log.
async fn is_not_looked_at(url: &str, why: &str) {
    for arguments in [
        &["verify"][..],
        &["verify", "--json"],
        &["verify", "--log", "1"],
        &["export"],
        &["reconcile", "-"],
        &["erase", "--record", "r"],
        &["prune", "--dry-run"],
    ] {
        let output = audit(arguments, url).await;
        let printed = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(6), "{arguments:?}: {printed}");
        assert!(output.stdout.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        assert!(
            printed.contains("the database was not read") && printed.contains(why),
            "{arguments:?}: {printed}"
        );
    }
}

/// Asserts the same below the commands: a refusal of the database is not a finding.
async fn is_no_finding(store: &dyn Store) {
    let primary = Tenant { uid: PRIMARY, name: "primary".to_owned() };
    let report = verify_log(store, &primary, None, Trust::default(), &mut |_, _| {}).await;
    assert_eq!(report.err(), Some(ReadError::Rejected));
}

#[tokio::test]
async fn an_older_schema_in_postgres_is_no_finding() {
    // The last levels before the log became a tree, and before ended logs were kept.
    for level in [3, 7] {
        let database = empty().await;
        older_schema::postgres(&database.url, level).await;
        execute(&database.url, POSTGRES_PRIMARY).await;
        // One of this release's migrations waits for the end of the rollout.
        let expected = LEVEL - 1;
        is_not_looked_at(&database.url, &format!("the schema has {level} of {expected} migrations")).await;
        if level == 3 {
            is_no_finding(&connect(&database.url)).await;
        }
        // After the migration to this release's schema there is a verdict.
        connect(&database.url).migrate().await.unwrap();
        let output = audit(&["verify"], &database.url).await;
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[tokio::test]
async fn an_older_schema_in_sqlite_is_no_finding() {
    for level in [3, 7] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("byok.db");
        older_schema::sqlite(&path, level).await;
        store_sqlite::try_execute(&folder, SQLITE_PRIMARY).await.unwrap();
        let url = format!("sqlite://{}", path.display());
        is_not_looked_at(&url, &format!("the schema has {level} of {LEVEL} migrations")).await;
        let store = byok::store::Sqlite::open(&path).await.unwrap();
        if level == 3 {
            is_no_finding(&store).await;
        }
        store.migrate().await.unwrap();
        let output = audit(&["verify"], &url).await;
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[tokio::test]
async fn a_schema_that_has_left_this_binary_behind_is_no_finding() {
    let next = format!("({}, 'next', '', {}", LEVEL + 1, LEVEL + 1);
    let (database, _store) = migrated().await;
    execute(&database.url, POSTGRES_PRIMARY).await;
    execute(&database.url, &format!("INSERT INTO np_byok_migrations VALUES {next})")).await;
    is_not_looked_at(&database.url, "the schema is too new for this binary").await;

    let (folder, _store) = store_sqlite::migrated().await;
    store_sqlite::try_execute(&folder, SQLITE_PRIMARY).await.unwrap();
    let next = next.replace("''", "x''");
    let insert = format!("INSERT INTO np_byok_migrations VALUES {next}, 0)");
    store_sqlite::try_execute(&folder, &insert).await.unwrap();
    let url = format!("sqlite://{}", folder.path().join("byok.db").display());
    is_not_looked_at(&url, "the schema is too new for this binary").await;
}

#[tokio::test]
async fn a_log_that_may_not_be_read_is_no_finding() {
    let (_database, store, owner, serving) = with_two_roles().await;
    let uid = tenant(&store).await;
    store.commit(&entries(uid, 0, vec![entry(), entry()])).await.unwrap();
    let role = serving.split_once("://").and_then(|(_, rest)| rest.split_once('@')).unwrap().0;
    let tenant = store.tenants().await.unwrap().remove(0);
    for table in ["np_byok_audit", "np_byok_heads", "np_byok_checkpoints", "np_byok_wrapped_deks"] {
        execute(&owner, &format!("REVOKE SELECT ON {table} FROM {role}")).await;
        let report = verify_log(&store, &tenant, None, Trust::default(), &mut |_, _| {}).await;
        assert_eq!(report.err(), Some(ReadError::Rejected), "{table}");
        execute(&owner, &format!("GRANT SELECT ON {table} TO {role}")).await;
    }
}
