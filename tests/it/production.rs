//! `docs/production.md`, followed as an operator would: every block of the page, in order, with an
//! empty PostgreSQL and an empty Vault; and `docs/dev.md`.

use std::path::Path;

use crate::support::needed;
use crate::support::page::Page;
use crate::support::postgres::Server;
use crate::support::server::JWT_SECRET;
use crate::support::vault::OwnServer;

#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_production_is_gone_as_the_page_says_it() {
    let (postgres, vault) = (Server::start(), OwnServer::start().await);
    let folder = tempfile::tempdir().unwrap();
    let below = |name: &str| folder.path().join(name).display().to_string();
    let host = postgres.url.split(['@', '/']).nth(3).expect("a host in the URL");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let own = [
        ("ADMIN_DATABASE_URL", &*postgres.url),
        ("DATABASE_HOST", host),
        ("VAULT_ADDR", &vault.vault.address),
        ("VAULT_TOKEN", &vault.vault.root),
        ("CONFIG", &below("config")),
        ("CHECKPOINTS", &below("checkpoints")),
        ("BACKUPS", &below("backups")),
        ("BYOK_LISTEN", &format!("127.0.0.1:{port}")),
        ("JWT_SECRET", &format!(r#"{{"type":"HS256","key":"{JWT_SECRET}"}}"#)),
    ];
    let (postgres_tools, vault_tool) = (needed("BYOK_TEST_POSTGRES_BIN"), needed("BYOK_TEST_VAULT"));
    let tools = [Path::new(&postgres_tools), Path::new(&vault_tool).parent().unwrap()];
    Page::open("production.md", &own, &tools).run();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_byok_dev_says_what_works_in_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let own = [("PROJECT", &*folder.path().display().to_string()), ("LISTEN", &format!("127.0.0.1:{port}"))];
    Page::open("dev.md", &own, &[]).run();
}
