//! Third-party software against the server: Hasura's introspection, a stitching gateway, a browser.

use std::path::{Path, PathBuf};

use crate::support::{needed, server::TestServer};

const SECRET: &str = "the-shared-secret-of-the-tests";

/// Runs a script of `tests/web` and returns its output.
async fn node(script: &str, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = tokio::process::Command::new("node")
        .arg(root.join("tests/web").join(script))
        .args(arguments)
        .envs(environment.iter().copied())
        .env("BYOK_TEST_NODE_MODULES", needed("BYOK_TEST_NODE_MODULES"))
        .output()
        .await
        .expect("node runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}: {printed}{}", String::from_utf8_lossy(&output.stderr));
    printed
}

/// Values of our own scalars are checked only by the script's rules, which the schema language
/// cannot express. Left out are introspection's newest fields and directives that only schemas use,
/// which not every release of either implementation has; subscriptions, which graphql-js accepts
/// without a root type; and documents larger than our limits.
#[tokio::test]
async fn ten_thousand_documents_are_judged_as_by_graphql_js() {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema.graphql").display().to_string();
    let printed = node("validation.mjs", &[&schema, "1", "10000"], &[]).await;
    let judged: Vec<(String, Option<String>)> = serde_json::from_str(&printed).unwrap();
    let ours = byok::graphql::are_valid(judged.iter().map(|(text, _)| text.as_str()), 10_000, 16 << 20);
    assert_eq!(ours.len(), 10_000);
    let mut differing: Vec<_> =
        judged.iter().zip(&ours).filter(|((_, theirs), ours)| theirs.is_none() != **ours).collect();
    differing.sort_by_key(|((text, _), _)| text.len());
    let shown: Vec<_> = differing.iter().take(20).collect();
    assert!(differing.is_empty(), "{} are judged differently, such as {shown:#?}", differing.len());
    let valid = ours.iter().filter(|valid| **valid).count();
    assert!((2_000..5_000).contains(&valid), "too few or too many valid ones: {valid}");
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
