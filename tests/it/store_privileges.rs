//! Attempts by PostgreSQL roles that may create objects beside our tables: none of our statements
//! runs what they create.

use byok::store::{Database, Exposure, Postgres};

use crate::store_postgres::{DENIED, with_two_roles};
use crate::support::older_schema;
use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::{TestDatabase, connect, empty, execute, number, settings, try_execute};

/// Functions that match our calls better than PostgreSQL's own, since no argument needs a
/// conversion. One that runs with the rights of the tables' owner gives the log to the connected
/// role.
const PLANTED: &str = "
    CREATE FUNCTION public.gives_the_log_away() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        IF current_user <> session_user THEN
            EXECUTE pg_catalog.format('GRANT ALL ON public.np_byok_audit TO %I', session_user);
            ALTER TABLE public.np_byok_audit DISABLE TRIGGER ALL;
        END IF;
    END $$;
    CREATE FUNCTION public.hashtextextended(text, integer) RETURNS bigint LANGUAGE plpgsql AS
        $$ BEGIN PERFORM public.gives_the_log_away(); RETURN 1; END $$;
    CREATE FUNCTION public.format(text, text, text) RETURNS text LANGUAGE plpgsql AS
        $$ BEGIN PERFORM public.gives_the_log_away(); RETURN pg_catalog.format($1, $2, $3); END $$;
    CREATE FUNCTION public.format(text, name, text) RETURNS text LANGUAGE plpgsql AS
        $$ BEGIN PERFORM public.gives_the_log_away(); RETURN pg_catalog.format($1, $2, $3); END $$;";

const MAKE_PARTITIONS: &str = "SELECT np_byok_make_partitions()";
const DELETE: &str = "DELETE FROM np_byok_audit";
const MONTHS: &str = "SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relname ~ '^np_byok_audit_[0-9]{6}$'";

fn user(url: &str) -> &str {
    url.split_once("://").and_then(|(_, rest)| rest.split_once('@')).expect("a URL with a user").0
}

/// Opens the schema, which was the default up to PostgreSQL 14.
async fn open_schema(database: &TestDatabase) {
    execute(&database.url, "GRANT CREATE ON SCHEMA public TO PUBLIC").await;
}

#[tokio::test]
async fn a_planted_function_runs_as_the_owner_only_before_the_migration() {
    let mut database = empty().await;
    let (owner, serving) = (database.role().await, database.role().await);
    database.give_to(&owner).await;
    older_schema::postgres(&owner, 8).await;
    open_schema(&database).await;
    let grant = format!("GRANT EXECUTE ON FUNCTION np_byok_make_partitions() TO {}", user(&serving));
    execute(&owner, &grant).await;
    execute(&serving, PLANTED).await;
    assert_eq!(try_execute(&serving, DELETE).await, Err(DENIED.to_owned()));
    execute(&serving, MAKE_PARTITIONS).await;
    assert_eq!(try_execute(&serving, DELETE).await, Ok(0), "the migration ends this");

    // The planted functions exist while the owner migrates, and afterwards; the grants revoke
    // whatever they granted.
    let store = Postgres::connect_lazy(&settings(&serving, Some(&owner), false)).unwrap();
    store.migrate().await.unwrap();
    assert_eq!(try_execute(&serving, DELETE).await, Err(DENIED.to_owned()));
    open_schema(&database).await;
    execute(&owner, "ALTER TABLE np_byok_audit ENABLE TRIGGER ALL").await;
    execute(&serving, MAKE_PARTITIONS).await;
    assert_eq!(try_execute(&serving, DELETE).await, Err(DENIED.to_owned()));
    assert_eq!(number(&owner, MONTHS).await, 4);
}

#[tokio::test]
async fn the_serving_roles_objects_do_not_run_as_the_tables_owner() {
    let (database, store, owner, serving) = with_two_roles().await;
    open_schema(&database).await;
    execute(&serving, PLANTED).await;
    let last = "SELECT to_char(date_trunc('month', now()) + interval '3 months', 'YYYYMM')::bigint";
    let last = number(&owner, last).await;
    execute(&owner, &format!("DROP TABLE np_byok_audit_{last}")).await;
    store.upkeep().await.unwrap();
    assert_eq!(number(&owner, MONTHS).await, 4, "it still makes partitions");
    assert_eq!(try_execute(&serving, DELETE).await, Err(DENIED.to_owned()));
    // Nor when the owner migrates again, which renews the grants.
    store.migrate().await.unwrap();
    assert_eq!(try_execute(&serving, DELETE).await, Err(DENIED.to_owned()));
}

#[tokio::test]
async fn migrating_closes_the_schema_to_all_but_owners() {
    let (database, store, _owner, serving) = with_two_roles().await;
    open_schema(&database).await;
    execute(&database.url, &format!("GRANT CREATE ON SCHEMA public TO {}", user(&serving))).await;
    assert!(store.exposure().await.unwrap().schema_is_open);
    store.migrate().await.unwrap();
    assert_eq!(store.exposure().await, Ok(Exposure::default()));
    let table = "CREATE TABLE public.mine ()";
    assert_eq!(try_execute(&serving, table).await, Err(DENIED.to_owned()));
}

#[tokio::test]
async fn a_function_whose_search_path_was_opened_is_found() {
    let (_database, store, owner, _serving) = with_two_roles().await;
    execute(&owner, "ALTER FUNCTION np_byok_make_partitions() SET search_path = public").await;
    let expected = Exposure { open_search_path: true, ..Exposure::default() };
    assert_eq!(store.exposure().await, Ok(expected));
    execute(&owner, "ALTER FUNCTION np_byok_make_partitions() RESET search_path").await;
    assert_eq!(store.exposure().await, Ok(expected));
}

#[tokio::test]
async fn the_tables_may_stand_in_any_schema() {
    let mut database = empty().await;
    let (owner, serving) = (database.role().await, database.role().await);
    database.give_to(&owner).await;
    execute(&owner, r#"CREATE SCHEMA "Byok's ""own""""#).await;
    for role in [user(&owner), user(&serving)] {
        execute(&database.url, &format!(r#"ALTER ROLE {role} SET search_path = "Byok's ""own""""#)).await;
    }
    let store = Postgres::connect_lazy(&settings(&serving, Some(&owner), false)).unwrap();
    store.migrate().await.unwrap();
    assert_eq!(store.exposure().await, Ok(Exposure::default()));
    execute(&owner, "DO $$ BEGIN EXECUTE 'DROP TABLE np_byok_audit_' || to_char(now(), 'YYYYMM'); END $$")
        .await;
    store.upkeep().await.unwrap();
    assert_eq!(number(&owner, MONTHS).await, 4);
    // A schema that is put before it in the search path later is not taken for that of the tables.
    execute(&owner, "CREATE SCHEMA earlier").await;
    let path = r#"SET search_path = earlier, "Byok's ""own""""#;
    execute(&database.url, &format!("ALTER ROLE {} {path}", user(&owner))).await;
    assert_eq!(store.migrate().await.unwrap().ran, 0);
    assert_eq!(number(&owner, "SELECT count(*) FROM pg_tables WHERE schemaname = 'earlier'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_made_by_way_of_pgbouncer() {
    let database = empty().await;
    connect(&database.url).migrate().await.unwrap();
    let pgbouncer = PgBouncer::before(&database.url).await;
    let store = Postgres::connect_lazy(&settings(&pgbouncer.url, None, true)).unwrap();
    execute(
        &database.url,
        "DO $$ BEGIN EXECUTE 'DROP TABLE np_byok_audit_' || to_char(now(), 'YYYYMM'); END $$",
    )
    .await;
    store.upkeep().await.unwrap();
    assert_eq!(number(&database.url, MONTHS).await, 4);
}
