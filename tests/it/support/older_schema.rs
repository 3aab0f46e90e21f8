//! Databases as an earlier release left them: with its migrations and none of those after.

use std::path::{Path, PathBuf};

use sqlx::migrate::{Migration, MigrationType};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, SqlSafeStr};

/// The migrations of an engine up to this one: number, name and text, in order.
fn migrations(engine: &str, level: u32) -> Vec<(u32, String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(engine);
    let files = std::fs::read_dir(&folder).expect("the folder of migrations");
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    let numbered = |path: PathBuf| {
        let name = path.file_stem()?.to_str()?.to_owned();
        let (number, name) = name.split_once('_')?;
        let text = std::fs::read_to_string(&path).expect("a migration");
        Some((number.parse().ok()?, name.to_owned(), text))
    };
    files.into_iter().filter_map(numbered).filter(|(number, ..)| *number <= level).collect()
}

fn table(engine: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(engine).join("migrations.sql");
    std::fs::read_to_string(path).expect("the table of migrations")
}

/// What the release has recorded of a migration, in hexadecimal.
fn checksum(number: u32, name: &str, text: &str) -> String {
    let text = AssertSqlSafe(text).into_sql_str();
    let migration =
        Migration::new(i64::from(number), name.to_owned().into(), MigrationType::Simple, text, false);
    migration.checksum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes the tables of that level in an empty PostgreSQL database, as the role of this URL.
pub(crate) async fn postgres(url: &str, level: u32) {
    let mut connection = PgConnection::connect(url).await.expect("the server answers");
    let start = "SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', false);
        SELECT set_config('byok.schema', current_schema()::text, false);";
    let mut statements = vec![start.to_owned(), "BEGIN".to_owned(), table("postgres")];
    for (number, name, text) in migrations("postgres", level) {
        let checksum = checksum(number, &name, &text);
        statements.push(text);
        // Later migrations set a path of their own.
        let path = "SELECT pg_catalog.set_config('search_path',
            pg_catalog.quote_ident(pg_catalog.current_setting('byok.schema')) || ', pg_temp', true)";
        statements.push(path.to_owned());
        statements.push(format!(
            "INSERT INTO np_byok_migrations VALUES ({number}, '{name}', decode('{checksum}', 'hex'), {})",
            if number < 4 { 1 } else { 4 }
        ));
    }
    statements.push("COMMIT".to_owned());
    for sql in statements {
        let done = sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(&mut connection).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    connection.close().await.expect("it ends");
}

/// The same in a new SQLite file.
pub(crate) async fn sqlite(path: &Path, level: u32) {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut connection = options.connect().await.expect("the file opens");
    let mut statements = vec![table("sqlite")];
    for (number, name, text) in migrations("sqlite", level) {
        let checksum = checksum(number, &name, &text);
        statements.push(text);
        statements.push(format!(
            "INSERT INTO np_byok_migrations VALUES ({number}, '{name}', x'{checksum}', {}, 0)",
            if number < 4 { 1 } else { 4 }
        ));
    }
    for sql in statements {
        let done = sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(&mut connection).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    connection.close().await.expect("it ends");
}
