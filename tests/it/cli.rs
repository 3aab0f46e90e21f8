//! The command line, as an operator uses it.

use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::support::pki::{Authority, Files, client};
use crate::support::server::{TestServer, create_database};
use crate::support::shared_vault::VaultKey;
use crate::support::vault::OwnServer;

fn byok(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byok"));
    command
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .env("PATH", "/usr/bin:/bin")
        .kill_on_drop(true);
    command
}

/// Runs `byok dev` in this folder, and returns the process with its output until it was ready.
pub(crate) async fn dev(folder: &std::path::Path) -> (tokio::process::Child, Vec<String>) {
    let mut child = byok(&["dev", "--listen", "127.0.0.1:0"], &[])
        .current_dir(folder)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut printed = Vec::new();
    while printed.iter().filter(|line: &&String| line.starts_with("curl ")).count() < 2 {
        let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await;
        let line = line.expect("it gets ready").unwrap();
        printed.push(line.unwrap_or_else(|| panic!("it ended: {printed:?}")));
    }
    (child, printed)
}

pub(crate) async fn pasted(line: &str) -> Value {
    let line = line.replacen("curl ", "curl -s ", 1);
    let output = Command::new("sh").args(["-c", &line]).output().await.unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    byok(arguments, environment).output().await.expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn all_errors_of_the_configuration_come_at_once() {
    let environment = [
        ("BYOK_PROVIDER", "vault-transit"),
        ("BYOK_VAULT_ADDR", "not a url"),
        ("BYOK_LISTEN", "nowhere"),
        ("BYOK_ENCRYPT_RATE_RPM", "many"),
        ("DATABASE_URL", "mysql://u:s3cret@h/d"),
    ];
    let output = run(&["serve"], &environment).await;
    assert_eq!(output.status.code(), Some(3));
    let printed = text(&output.stderr);
    for variable in
        ["BYOK_VAULT_ADDR", "BYOK_VAULT_TRANSIT_KEY", "BYOK_LISTEN", "BYOK_ENCRYPT_RATE_RPM", "DATABASE_URL"]
    {
        assert!(printed.contains(variable), "{variable} is not named in: {printed}");
    }
    assert!(!printed.contains("s3cret"));
}

#[tokio::test]
async fn serve_refuses_the_local_key() {
    let output = run(&["serve"], &[("BYOK_PROVIDER", "local"), ("DATABASE_URL", "postgres://h/d")]).await;
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("byok dev"));
}

#[tokio::test]
async fn dev_prints_lines_that_work_when_they_are_pasted() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..2 {
        let (mut child, printed) = dev(folder.path()).await;
        let listen = printed[0].split("http://").nth(1).unwrap().split('/').next().unwrap();
        assert!(printed[0].contains(&format!("http://{listen}/graphiql")), "{printed:?}");
        let curls: Vec<&String> = printed.iter().filter(|line| line.starts_with("curl ")).collect();
        assert!(
            pasted(curls[0]).await["ciphertext"].as_str().unwrap().starts_with("byok:v1:"),
            "round {round}"
        );
        assert_eq!(pasted(curls[1]).await["plaintext"], "sensitive-data", "round {round}");
        for name in ["ADMIN_TOKEN: ", "USER_TOKEN: "] {
            let token = printed.iter().find_map(|line| line.strip_prefix(name)).unwrap();
            let line = format!(
                "curl -X POST http://{listen}/graphql -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' \
                 -d '{{\"query\": \"mutation {{ byokEncrypt(plaintext: \\\"p\\\", recordId: \\\"user-123\\\") {{ ciphertext }} }}\"}}'"
            );
            let answered = pasted(&line).await;
            assert!(answered["data"]["byokEncrypt"]["ciphertext"].is_string(), "{name}{answered}");
        }
        child.kill().await.unwrap();
    }
    use std::os::unix::fs::PermissionsExt as _;
    for secret in ["local-key.json", "jwt-secret.json", "audit-signing-key.pem", "byok.db"] {
        let mode = std::fs::metadata(folder.path().join(".byok").join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "others can read {secret}");
    }
}

#[tokio::test]
async fn dev_prints_no_token_in_the_environment_of_a_server() {
    let secret = r#"{"type":"HS256","key":"0123456789abcdef0123456789abcdef-production"}"#;
    for (name, value) in [
        ("DATABASE_URL", "postgres://u:s3cret@127.0.0.1:1/d"),
        ("BYOK_MIGRATION_DATABASE_URL", "postgres://u:s3cret@127.0.0.1:1/d"),
        ("BYOK_PROVIDER", "vault-transit"),
        ("HASURA_GRAPHQL_JWT_SECRET", secret),
        ("HASURA_GRAPHQL_JWT_SECRETS", secret),
        ("HASURA_GRAPHQL_JWT_SECRET_FILE", "/nowhere"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = byok(&["dev", "--listen", "127.0.0.1:0"], &[(name, value)]);
        let ended = command.current_dir(folder.path()).output();
        let output = tokio::time::timeout(Duration::from_secs(30), ended).await.expect("it ends").unwrap();
        assert_eq!(output.status.code(), Some(3), "{name}");
        assert!(text(&output.stderr).contains(name.trim_end_matches("_FILE")), "{}", text(&output.stderr));
        assert!(!text(&output.stderr).contains("s3cret") && output.stdout.is_empty(), "{name}");
        assert!(!folder.path().join(".byok").exists(), "{name}");
    }
}

#[tokio::test]
async fn a_newcomer_watches_the_kill_switch_with_the_readmes_lines() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, printed) = dev(folder.path()).await;
    let decrypt = printed.iter().rfind(|line| line.contains("/byok/decrypt")).unwrap();
    let dev_key = async |which: &str| {
        let output = byok(&["dev-key", which], &[]).current_dir(folder.path()).output().await.unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    assert_eq!(pasted(decrypt).await["plaintext"], "sensitive-data");
    assert!(dev_key("disable").await.contains("Within 3 s"));
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert_eq!(pasted(decrypt).await["code"], "KMS_ACCESS_DENIED");
    assert!(dev_key("enable").await.contains("for 3 s"));
    let mut waited = Duration::ZERO;
    while pasted(decrypt).await["plaintext"] != "sensitive-data" {
        assert!(waited < Duration::from_secs(30), "the key does not work again");
        tokio::time::sleep(Duration::from_millis(200)).await;
        waited += Duration::from_millis(200);
    }
    assert!(dev_key("rotate").await.contains("local/2"));
    assert_eq!(pasted(decrypt).await["plaintext"], "sensitive-data", "older versions still decrypt");
    child.kill().await.unwrap();
}

#[tokio::test]
async fn dev_key_says_where_it_looked_when_there_is_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let output = byok(&["dev-key", "disable"], &[]).current_dir(folder.path()).output().await.unwrap();
    assert_eq!(output.status.code(), Some(3));
    let printed = text(&output.stderr);
    assert!(printed.contains("BYOK_LOCAL_KEY_FILE: there is no key at .byok/local-key.json"), "{printed}");
    assert_eq!(run(&["dev-key"], &[]).await.status.code(), Some(2));
}

#[tokio::test]
async fn a_minted_token_is_taken_by_the_server() {
    let server = TestServer::start().await;
    let environment: Vec<(&str, &str)> =
        server.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let output = run(&["token", "--role", "service", "--user", "u-9", "--ttl", "60"], &environment).await;
    let token = text(&output.stdout);
    let body = serde_json::json!({ "plaintext": "p", "record_id": "r" });
    assert_eq!(
        server.call(reqwest::Method::POST, "/byok/encrypt", token.trim(), Some(body)).await.status,
        200
    );
    assert_eq!(run(&["token"], &[]).await.status.code(), Some(3));
}

#[tokio::test]
async fn doctor_reports_what_works_what_is_open_and_what_fails() {
    let server = TestServer::start().await;
    let mut environment: Vec<(&str, &str)> =
        server.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let output = run(&["doctor"], &environment).await;
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert!(printed.contains("ok    key: a DEK was wrapped and unwrapped"), "{printed}");
    assert!(printed.contains("warn  database: one URL serves and migrates"), "{printed}");
    assert!(printed.contains("superuser"), "{printed}");
    assert!(
        printed.contains("ok    key: probed every 1 s while it is in use: 2592000 requests"),
        "{printed}"
    );
    environment.retain(|(name, _)| *name != "BYOK_VAULT_TRANSIT_KEY");
    environment.push(("BYOK_VAULT_TRANSIT_KEY", "another"));
    let output = run(&["doctor"], &environment).await;
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stdout).contains("FAIL  key: making a DEK: "), "{}", text(&output.stdout));
}

/// The output of `byok doctor` with a token whose policy grants only these operations of the test's
/// key.
async fn doctor_with(server: &TestServer, operations: &[&str]) -> String {
    let key = &server.key;
    let rule = |operation: &&str| {
        format!("path \"transit/{operation}/{}\" {{ capabilities = [\"update\"] }}\n", key.name)
    };
    let policy: String = operations.iter().map(rule).collect();
    let name = format!("{}-some", key.name);
    key.admin(
        reqwest::Method::PUT,
        &format!("sys/policies/acl/{name}"),
        serde_json::json!({ "policy": policy }),
    )
    .await;
    let body = serde_json::json!({ "policies": [name] });
    let token = key.admin(reqwest::Method::POST, "auth/token/create", body).await;
    let token = token["auth"]["client_token"].as_str().expect("a token").to_owned();
    let mut environment: Vec<(&str, &str)> =
        server.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    environment.retain(|(name, _)| *name != "BYOK_VAULT_TOKEN");
    environment.push(("BYOK_VAULT_TOKEN", &token));
    text(&run(&["doctor"], &environment).await.stdout)
}

#[tokio::test]
async fn doctor_names_the_right_that_is_missing() {
    let server = TestServer::start().await;
    let printed = doctor_with(&server, &["encrypt", "rewrap"]).await;
    assert!(printed.contains("FAIL  key: unwrapping a DEK: AccessDenied, HTTP 403"), "{printed}");
    let right = format!("grant `update` on transit/decrypt/{}", server.key.name);
    assert!(printed.contains(&right), "{printed}");
    let printed = doctor_with(&server, &["encrypt", "decrypt"]).await;
    assert!(
        printed.contains(
            "warn  key: re-wrapping a DEK: AccessDenied, HTTP 403; everything except rotation works"
        ),
        "{printed}"
    );
    let printed = doctor_with(&server, &["decrypt", "rewrap"]).await;
    assert!(printed.contains("FAIL  key: wrapping a DEK: AccessDenied"), "{printed}");
}

#[tokio::test]
async fn migrating_twice_applies_nothing_the_second_time() {
    let server = TestServer::start().await;
    let environment: Vec<(&str, &str)> =
        server.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let output = run(&["migrate"], &environment).await;
    assert!(text(&output.stdout).contains("0 of them now"), "{}", text(&output.stdout));
}

#[tokio::test]
async fn help_names_every_command() {
    let printed = text(&run(&["--help"], &[]).await.stdout);
    for command in
        ["serve", "dev", "dev-key", "migrate", "rotate", "schema", "token", "policy", "doctor", "drill"]
    {
        assert!(printed.contains(command), "{printed}");
    }
    assert_eq!(run(&["nonsense"], &[]).await.status.code(), Some(2));
}

/// The result of a command whose reader stops after the first line.
async fn to_head(arguments: &str, environment: &[(&str, &str)]) -> String {
    let byok = env!("CARGO_BIN_EXE_byok");
    let line = format!("'{byok}' {arguments} 2>&1 | head -1");
    let output = Command::new("sh")
        .args(["-c", &line])
        .env_clear()
        .envs(environment.iter().copied())
        .env("PATH", "/usr/bin:/bin")
        .output()
        .await
        .unwrap();
    text(&output.stdout) + &text(&output.stderr)
}

#[tokio::test]
async fn a_reader_that_leaves_early_is_no_panic() {
    let server = TestServer::start().await;
    let environment: Vec<(&str, &str)> =
        server.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    for arguments in ["doctor", "schema", "schema --errors", "policy", "migrate"] {
        let printed = to_head(arguments, &environment).await;
        assert!(!printed.contains("panicked") && !printed.is_empty(), "{arguments}: {printed}");
    }
    for arguments in ["doctor", "serve", "migrate", "rotate"] {
        let printed = to_head(arguments, &[("BYOK_NO_SUCH", "1"), ("BYOK_NOR_THIS", "1")]).await;
        assert!(!printed.contains("panicked"), "{arguments}: {printed}");
    }
    // Output to a full disk, and to a closed descriptor.
    for (arguments, to) in [("schema", ">/dev/full"), ("schema", ">&-"), ("doctor", ">/dev/full 2>/dev/full")]
    {
        let byok = env!("CARGO_BIN_EXE_byok");
        let line = format!("'{byok}' {arguments} {to}; echo $? >&3");
        let output =
            Command::new("sh").args(["-c", &format!("{{ {line}; }} 3>&1 | cat")]).output().await.unwrap();
        let printed = text(&output.stdout) + &text(&output.stderr);
        assert!(!printed.contains("101") && !printed.contains("panicked"), "{arguments} {to}: {printed}");
    }
}

#[tokio::test]
async fn doctor_refuses_an_unknown_variable_in_the_words_of_serve() {
    let server = TestServer::with(&[]).await;
    let mut environment: Vec<(&str, &str)> =
        server.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    environment.push(("BYOK_DATABSE_URL", "s3cret"));
    let words = "BYOK_DATABSE_URL: does not exist; the most similar variable is BYOK_DATABASE_URL";
    let (doctor, serve) = (run(&["doctor"], &environment).await, run(&["serve"], &environment).await);
    assert!(text(&doctor.stdout).contains(words) && text(&serve.stderr).contains(words));
    assert_eq!((doctor.status.code(), serve.status.code()), (Some(4), Some(3)));
}

#[tokio::test]
async fn doctor_tries_the_streams_folder_and_connects_to_webhooks_without_posting() {
    use crate::support::stub::{Stub, answer};
    let receiver = Stub::start(|_, _| answer(200, "{}")).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let secret = "whsec_Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5";
    let mut server = TestServer::with(&[
        ("BYOK_INCIDENT_WEBHOOK_URL", &receiver.address),
        ("BYOK_INCIDENT_WEBHOOK_SECRET", secret),
    ])
    .await;
    server.stop().await;
    server.environment.push(("BYOK_AUDIT_STREAM_FILE".to_owned(), file.display().to_string()));
    let printed = server.doctor().await;
    assert!(printed.contains("ok    audit stream file: it can be written"), "{printed}");
    assert!(printed.contains("ok    webhook of incidents: its host can be reached"), "{printed}");
    assert!(receiver.seen().is_empty() && !file.exists());

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let plain = receiver.address.replace("http://", "https://");
    for (url, problem) in [
        (format!("http://{closed}/s3cret"), "its host accepts no connection"),
        (format!("{plain}/s3cret"), "no TLS connection with its host"),
    ] {
        server
            .environment
            .retain(|(name, _)| name != "BYOK_INCIDENT_WEBHOOK_URL" && name != "BYOK_AUDIT_STREAM_FILE");
        server.environment.push(("BYOK_INCIDENT_WEBHOOK_URL".to_owned(), url));
        let missing = folder.path().join("none/audit.jsonl").display().to_string();
        server.environment.push(("BYOK_AUDIT_STREAM_FILE".to_owned(), missing));
        let printed = server.doctor().await;
        assert!(printed.contains(&format!("FAIL  webhook of incidents: {problem}")), "{printed}");
        assert!(printed.contains("FAIL  audit stream file: it cannot be written"), "{printed}");
        assert!(!printed.contains("s3cret"), "{printed}");
    }
}
#[tokio::test]
async fn doctor_before_the_first_start_says_what_will_be_made() {
    let (key, database_url) =
        (VaultKey::create().await, create_database(&crate::support::needed("DATABASE_URL")).await);
    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite://{}", folder.path().join("byok.db").display());
    let secret = json!({ "type": "HS256", "key": "k".repeat(64) }).to_string();
    for url in [&database_url, &sqlite] {
        let environment = [
            ("DATABASE_URL", url.as_str()),
            ("BYOK_PROVIDER", "vault-transit"),
            ("BYOK_VAULT_ADDR", &key.address),
            ("BYOK_VAULT_TOKEN", &key.token),
            ("BYOK_VAULT_TRANSIT_KEY", &key.name),
            ("BYOK_AUDIT_STREAM_FILE", "/tmp/byok-stream-of-a-test"),
            ("HASURA_GRAPHQL_JWT_SECRET", &secret),
        ];
        let output = run(&["doctor"], &environment).await;
        let printed = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{printed}");
        assert!(
            printed.contains("ok    database: it is empty; tables and log will be made at start"),
            "{printed}"
        );
        assert!(!printed.contains("FAIL"), "{printed}");
    }
}

#[tokio::test]
async fn doctor_says_why_a_vault_or_a_ca_file_is_refused() {
    let (ours, other) = (Authority::new(), Authority::new());
    let lines = |files: &Files| {
        format!(
            "tls_cert_file = \"{}\"\n tls_key_file = \"{}\"",
            files.certificate.display(),
            files.key.display()
        )
    };
    let server = OwnServer::with_listener("https", &lines(&ours.server()), client(&ours.file(), None)).await;
    let transit = server.vault.transit().await;
    let token = transit.token().await;
    let printed = async |ca_file: &std::path::Path| {
        crate::support::doctor(&[
            ("BYOK_PROVIDER", "vault-transit"),
            ("BYOK_VAULT_ADDR", &server.vault.address),
            ("BYOK_VAULT_TOKEN", &token),
            ("BYOK_VAULT_MOUNT", &transit.mount),
            ("BYOK_VAULT_TRANSIT_KEY", "byok"),
            ("BYOK_VAULT_CACERT", ca_file.to_str().unwrap()),
        ])
        .await
    };
    let good = printed(&ours.file()).await;
    assert!(good.contains("ok    key: a DEK was wrapped and unwrapped"), "{good}");
    let strange = printed(&other.file()).await;
    assert!(strange.contains("FAIL  key: making a DEK: Unreachable: its certificate is "), "{strange}");
    let der = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(der.path(), [0x30, 0x82, 0x01, 0x00]).unwrap();
    let der = printed(der.path()).await;
    assert!(der.contains("FAIL  BYOK_VAULT_CACERT") && der.contains("it is in DER; `openssl x509"), "{der}");
}
