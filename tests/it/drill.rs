//! `byok drill` against a real server and key whose switch is turned off, and against servers that
//! answer too late.

use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use crate::support::server::TestServer;
use crate::support::stub::{self, Stub};

fn byok(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byok"));
    command.args(arguments).current_dir(folder).env_clear().env("PATH", "/usr/bin:/bin").kill_on_drop(true);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn report(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("report.json")).expect("a report")).expect("JSON")
}

/// Whether the report's signature is valid, checked without the crate's own code.
fn is_signed(folder: &Path) -> bool {
    let pem = std::fs::read_to_string(folder.join("drill.pem.pub")).unwrap();
    let der = STANDARD.decode(pem.lines().nth(1).unwrap()).unwrap();
    let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, &der[12..]);
    let (report, signature) = (
        std::fs::read(folder.join("report.json")).unwrap(),
        std::fs::read(folder.join("report.json.sig")).unwrap(),
    );
    key.verify(&report, &signature).is_ok()
}

#[tokio::test]
async fn with_the_customer_at_the_key_it_leaves_a_signed_report() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = server.jwt("admin", "the-auditor");
    std::fs::write(folder.path().join("token"), format!("{token}\n")).unwrap();
    let arguments =
        ["drill", "--url", &server.base, "--token-file", "token", "--new-signing-key", "drill.pem"];
    let mut child = byok(folder.path(), &arguments)
        .args(["--report", "report.json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut enter, mut asked) =
        (child.stdin.take().unwrap(), BufReader::new(child.stderr.take().unwrap()).lines());
    while let Some(line) = asked.next_line().await.unwrap() {
        if line.contains("turn the key off now") {
            server.key.rotate().await;
            server.key.refuse_below(2).await;
            enter.write_all(b"\n").await.unwrap();
        }
        if line.contains("turn the key on now") {
            server.key.refuse_below(1).await;
            enter.write_all(b"\n").await.unwrap();
            break;
        }
    }
    let output = child.wait_with_output().await.unwrap();
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert!(printed.starts_with("passed: first refusal after "), "{printed}");
    let report = report(folder.path());
    assert_eq!((&report["verdict"], &report["plaintexts_after_bound"]), (&json!("passed"), &json!(0)));
    assert_eq!(report["key_version"], format!("{}/1", server.key.name));
    assert_eq!(report["bound"]["server_ms"], 3_000);
    assert_eq!(
        (&report["off"]["told_by"], &report["first_refusal"]["code"]),
        (&json!("enter"), &json!("KMS_ACCESS_DENIED"))
    );
    let last = report["last_plaintext"]["after_done_ms"].as_i64().unwrap();
    assert!(last <= report["bound"]["allowed_ms"].as_i64().unwrap());
    assert!(report["first_success"]["request_id"].as_str().is_some_and(|id| !id.is_empty()));
    assert_eq!(report["incidents"][0]["outcome"], "KMS_ACCESS_DENIED", "{report}");
    assert_eq!(report["incidents"][1]["outcome"], "OK", "{report}");
    assert!(report["incidents"][0]["entry_id"].is_string());
    let written = std::fs::read_to_string(folder.path().join("report.json")).unwrap();
    assert!(!written.contains(&token));
    assert!(is_signed(folder.path()));
    assert!(printed.contains(&std::fs::read_to_string(folder.path().join("drill.pem.pub")).unwrap()));
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(folder.path().join("drill.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let verify = async || {
        let arguments = ["drill", "verify", "report.json", "--key", "drill.pem.pub"];
        byok(folder.path(), &arguments).output().await.unwrap()
    };
    let good = verify().await;
    assert_eq!(good.status.code(), Some(0), "{}", text(&good.stderr));
    assert!(text(&good.stdout).contains("the signature is good") && text(&good.stdout).contains("passed"));
    std::fs::write(folder.path().join("report.json"), written.replace("passed", "Passed")).unwrap();
    assert!(!is_signed(folder.path()));
    let altered = verify().await;
    assert_eq!(altered.status.code(), Some(1));
    assert!(text(&altered.stderr).contains("does not belong"), "{}", text(&altered.stderr));
}

/// A server that answers the n-th decrypt with these statuses; its bound is 200 ms.
async fn staged(decrypt: impl Fn(usize) -> Option<u16> + Send + Sync + 'static) -> Stub {
    let (plaintext, asked) = (Mutex::new(String::new()), Mutex::new(0));
    Stub::start(move |seen, _| match seen.path.as_str() {
        "/byok/health" => stub::answer(200, r#"{"status":"OK","bound_seconds":0.2}"#),
        "/version" => stub::answer(200, r#"{"version":"0.0.0"}"#),
        "/byok/encrypt" => {
            let body: Value = serde_json::from_slice(&seen.body).unwrap();
            *plaintext.lock().unwrap() = body["plaintext"].as_str().unwrap().to_owned();
            stub::answer(200, r#"{"ciphertext":"byok:v1:x","key_version":"k/1"}"#)
        }
        "/byok/decrypt" => {
            let mut asked = asked.lock().unwrap();
            *asked += 1;
            match decrypt(*asked) {
                None => stub::answer(200, json!({ "plaintext": *plaintext.lock().unwrap() }).to_string()),
                Some(429) => stub::answer(429, r#"{"code":"RATE_LIMITED"}"#),
                Some(status) => stub::answer(status, r#"{"code":"KMS_ACCESS_DENIED"}"#),
            }
        }
        _ => stub::answer(403, r#"{"code":"PERMISSION_DENIED"}"#),
    })
    .await
}

async fn drill(folder: &Path, server: &Stub, more: &[&str]) -> Output {
    let arguments = ["drill", "--url", &server.address, "--token", "t", "--report", "report.json"];
    let mut command = byok(folder, &arguments);
    command.args(["--timeout", "4", "--new-signing-key", "drill.pem"]).args(more).stdin(Stdio::null());
    command.output().await.unwrap()
}

#[tokio::test]
async fn a_server_that_still_answers_fails_the_drill_with_signed_report() {
    let server = staged(|_| None).await;
    let folder = tempfile::tempdir().unwrap();
    let output = drill(folder.path(), &server, &["--off-command", "true", "--on-command", "true"]).await;
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
    let report = report(folder.path());
    assert_eq!(report["verdict"], "not_refused");
    assert!(text(&output.stderr).contains("no call was refused"), "{}", text(&output.stderr));
    assert!(report["plaintexts_after_bound"].as_u64().unwrap() > 10);
    assert_eq!(report["first_refusal"], json!(null));
    assert!(is_signed(folder.path()));
    // Existing files are not overwritten.
    let again = drill(folder.path(), &server, &["--off-command", "true", "--on-command", "true"]).await;
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("already exists"));
}

#[tokio::test]
async fn unattended_it_sees_by_itself_when_refusals_begin_and_end() {
    let server = staged(|asked| (41..=110).contains(&asked).then_some(403)).await;
    let folder = tempfile::tempdir().unwrap();
    let output = drill(folder.path(), &server, &["--at-refusal", "--timeout", "30"]).await;
    assert_eq!(output.status.code(), Some(2), "an option that is named twice");
    let output = drill(folder.path(), &server, &["--at-refusal"]).await;
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    let report = report(folder.path());
    assert_eq!((&report["verdict"], &report["off"]["told_by"]), (&json!("passed"), &json!("nobody")));
    assert_eq!((&report["off"]["done_at"], &report["incidents"]), (&json!(null), &json!(null)));
    assert_eq!(report["decrypts"]["refused"], 70);
}

#[tokio::test]
async fn a_limit_is_no_refusal_and_it_asks_less_often_then() {
    let server = staged(|asked| match asked {
        30..=34 => Some(429),
        35..=44 => Some(403),
        _ => None,
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let output = drill(folder.path(), &server, &["--off-command", "true", "--on-command", "true"]).await;
    let report = report(folder.path());
    assert_eq!(report["decrypts"]["rate_limited"], 5, "{}", text(&output.stderr));
    assert_eq!(report["first_refusal"]["code"], "KMS_ACCESS_DENIED");
}

#[tokio::test]
async fn a_failed_command_leaves_no_report_and_turns_the_key_on() {
    let server = staged(|_| None).await;
    let folder = tempfile::tempdir().unwrap();
    let output =
        drill(folder.path(), &server, &["--off-command", "exit 7", "--on-command", "touch on"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("the command ended with exit status: 7"),
        "{}",
        text(&output.stderr)
    );
    assert!(folder.path().join("on").exists() && !folder.path().join("report.json").exists());
    let nobody = tempfile::tempdir().unwrap();
    let output = drill(nobody.path(), &server, &[]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("standard input has ended"), "{}", text(&output.stderr));
    let output = byok(folder.path(), &["drill", "--token", "t"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2), "what it is to sign with is not named");
}

#[tokio::test]
async fn a_key_that_is_off_already_is_not_drilled() {
    let server = Stub::start(|_, _| stub::answer(503, r#"{"status":"REVOKED","bound_seconds":3.0}"#)).await;
    let folder = tempfile::tempdir().unwrap();
    let output = drill(folder.path(), &server, &["--at-refusal"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("health says REVOKED"), "{}", text(&output.stderr));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no key is left behind");
}
