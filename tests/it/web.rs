//! What other people's software makes of the server: Hasura's introspection, a stitching gateway, a browser.

use std::path::{Path, PathBuf};

use crate::support::{needed, server::TestServer};

const SECRET: &str = "the-shared-secret-of-the-tests";

async fn node(script: &str, arguments: &[&str], environment: &[(&str, &str)]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = tokio::process::Command::new("node")
        .arg(root.join("tests/web").join(script))
        .args(arguments)
        .envs(environment.iter().copied())
        .env("BYOK_TEST_NODE_MODULES", needed("BYOK_TEST_NODE_MODULES"))
        .output()
        .await
        .expect("node runs");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
}

#[tokio::test]
async fn hasuras_introspection_finds_a_schema_that_it_takes() {
    let server = TestServer::with(&[("BYOK_HASURA_SECRET", SECRET)]).await;
    node("introspection.mjs", &[], &[("BYOK_URL", &server.base), ("BYOK_HASURA_SECRET", SECRET)]).await;
}

#[tokio::test]
async fn a_stitching_gateway_registers_the_server_and_forwards_claims() {
    let server = TestServer::with(&[("BYOK_HASURA_SECRET", SECRET)]).await;
    let jwt = server.jwt("service", "u-1");
    node(
        "gateway.mjs",
        &[],
        &[("BYOK_URL", &server.base), ("BYOK_HASURA_SECRET", SECRET), ("BYOK_JWT", &jwt)],
    )
    .await;
}

#[tokio::test]
async fn the_metadata_is_valid_against_the_schema() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |path: PathBuf| path.display().to_string();
    node(
        "metadata-check.mjs",
        &[&text(root.join("schema.graphql")), &text(root.join("hasura-metadata"))],
        &[],
    )
    .await;
}

#[tokio::test]
async fn a_person_can_log_in_encrypt_and_decrypt_in_a_browser() {
    let server = TestServer::start().await;
    let (jwt, chromium) = (server.jwt("admin", "u-1"), needed("BYOK_TEST_CHROMIUM"));
    let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join("graphiql.png").display().to_string();
    let environment = [
        ("BYOK_URL", server.base.as_str()),
        ("BYOK_JWT", &jwt),
        ("BYOK_TEST_CHROMIUM", &chromium),
        ("SCREENSHOT", &picture),
    ];
    node("browser.mjs", &[], &environment).await;
    assert!(std::fs::metadata(picture).expect("a screenshot").len() > 10_000);
}
