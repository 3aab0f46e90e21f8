//! `byok rotate` without a terminal: its output and exit codes.

use reqwest::Method;
use serde_json::json;
use tokio::process::Command;

use crate::rotation::{done, encrypt_records, versions};
use crate::support::aws::{Cloud, permissions};
use crate::support::server::TestServer;

/// The exit code, standard output and standard error of `byok rotate`.
async fn rotate(server: &TestServer, arguments: &[&str]) -> (i32, String, String) {
    rotate_with(server, arguments, &[]).await
}

/// The same, with other variables.
async fn rotate_with(
    server: &TestServer,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_byok"))
        .arg("rotate")
        .args(arguments)
        .env_clear()
        .envs(server.environment.iter().map(|(name, value)| (name, value)))
        .env("BYOK_LOG", "error")
        .envs(variables.iter().copied())
        .output()
        .await
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn each_change_of_state_is_a_line() {
    let server = TestServer::start().await;
    encrypt_records(&server, 20).await;
    server.key.rotate().await;
    let (code, report, _) = rotate(&server, &[]).await;
    let lines: Vec<_> = report.lines().collect();
    assert_eq!(code, 0, "{report}");
    assert!(lines[0].ends_with(": RUNNING, 0 of 20 DEKs"), "{report}");
    assert!(report.contains(": DONE, 20 of 20 DEKs"), "{report}");
    assert!(lines.last().unwrap().contains(": 20 re-wrapped, 0 already there, 0 failed"), "{report}");
    assert_eq!(versions(&server).await, [("2".to_owned(), 20)]);
}

#[tokio::test]
async fn it_pauses_resumes_and_cancels_by_id() {
    let mut server = TestServer::start().await;
    encrypt_records(&server, 20).await;
    server.key.rotate().await;
    // No server works on the job.
    server.stop().await;
    let (code, report, _) = rotate(&server, &["--detach"]).await;
    assert_eq!(code, 0, "{report}");
    let id = report.split(' ').nth(1).unwrap().to_owned();
    let (code, report, _) = rotate(&server, &["--pause", &id]).await;
    assert_eq!(code, 0, "{report}");
    assert!(
        report.contains(&format!("rotation {id} to ")) && report.contains(": PAUSED, 0 of 20 DEKs"),
        "{report}"
    );
    let (code, _, why) = rotate(&server, &[]).await;
    assert_eq!(code, 1, "{why}");
    assert!(why.contains("ROTATION_STATE_CONFLICT") && why.contains(&id), "{why}");
    let (code, report, _) = rotate(&server, &["--resume", &id]).await;
    assert_eq!(code, 0, "{report}");
    assert!(report.contains("20 re-wrapped"), "{report}");
    let (code, _, why) = rotate(&server, &["--cancel", &id]).await;
    assert_eq!(code, 1, "{why}");
    assert!(why.contains("ROTATION_STATE_CONFLICT: The rotation is DONE"), "{why}");
    let (code, _, why) = rotate(&server, &["--pause", "00000000-0000-7000-8000-000000000000"]).await;
    assert_eq!((code, why.contains("ROTATION_NOT_FOUND")), (1, true), "{why}");
    for usage in [&["--pause", "x"][..], &["--pause", &id, "--cancel", &id], &["--dry-run", "--detach"]] {
        assert_eq!(rotate(&server, usage).await.0, 2, "{usage:?}");
    }
}

#[tokio::test]
async fn one_that_is_paused_or_cancelled_meanwhile_ends_the_command() {
    let server = TestServer::start().await;
    encrypt_records(&server, 5).await;
    server.key.rotate().await;
    let started = server.post("/byok/rotate", json!({})).await;
    let id = started.body["id"].as_str().unwrap().to_owned();
    done(&server, &id).await;
    // The job is held by a replica that does not work on it.
    let database = server.database().await;
    for (word, reason) in [("pause", "was paused; `byok rotate --resume"), ("cancel", "was cancelled")] {
        let hold = "UPDATE np_byok_jobs SET state = 'RUNNING', holder = gen_random_uuid(), \
            lease_until = now() + interval '1 hour', finished_at = NULL WHERE id = $1::uuid";
        sqlx::query(hold).bind(&id).execute(&database).await.unwrap();
        let joined = "SELECT count(*) FROM np_byok_audit WHERE operation = 'rotate' AND means = 'operator' AND item_count = 0";
        let before: i64 = sqlx::query_scalar(joined).fetch_one(&database).await.unwrap();
        let commanded = async {
            // Waits until the command has rejoined the job.
            while sqlx::query_scalar::<_, i64>(joined).fetch_one(&database).await.unwrap() == before {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            server.post(&format!("/byok/rotate/{id}/{word}"), json!({})).await
        };
        let ((code, _, why), commanded) = tokio::join!(rotate(&server, &[]), commanded);
        assert_eq!(commanded.status, 200, "{}", commanded.body);
        assert_eq!(code, 1, "{why}");
        assert!(why.contains(reason), "{why}");
    }
}

#[tokio::test]
async fn a_kms_that_refuses_gives_5_and_the_job_stays() {
    let mut server = TestServer::start().await;
    encrypt_records(&server, 5).await;
    server.key.rotate().await;
    server.stop().await;
    let key = server.key.clone();
    let policy = |operations: &[&str]| {
        let rule = |operation: &&str| {
            format!("path \"transit/{operation}/{}\" {{ capabilities = [\"update\"] }}\n", key.name)
        };
        json!({ "policy": operations.iter().map(rule).collect::<String>() })
    };
    let path = format!("sys/policies/acl/{}", key.name);
    key.admin(Method::PUT, &path, policy(&["encrypt", "decrypt"])).await;
    let (code, report, why) = rotate(&server, &[]).await;
    assert_eq!(code, 5, "{report}{why}");
    assert!(report.contains(": waiting: KMS_ACCESS_DENIED"), "{report}");
    assert!(
        why.contains("is kept, 0 of 5 DEKs are re-wrapped") && why.contains("when the key is back"),
        "{why}"
    );
    // The key refuses every operation.
    key.admin(Method::PUT, &path, policy(&["nothing"])).await;
    let (code, _, why) = rotate(&server, &[]).await;
    assert_eq!(code, 5, "{why}");
    assert!(why.contains("KMS_ACCESS_DENIED") && why.contains("No rotation was started"), "{why}");
    // The key works again, and the job continues.
    key.admin(Method::PUT, &path, policy(&["encrypt", "decrypt", "rewrap"])).await;
    let (code, report, why) = rotate(&server, &[]).await;
    assert_eq!(code, 0, "{report}{why}");
    assert_eq!(versions(&server).await, [("2".to_owned(), 5)]);
}

#[tokio::test]
async fn a_kms_without_versions_is_named_and_the_exit_code_fails() {
    // fakecloud gives no key material ids.
    let cloud = Cloud::shared();
    let key = cloud.key().await;
    key.user.permit(&permissions(&key.arn, &[])).await;
    let server = TestServer::with(&[
        ("BYOK_PROVIDER", "aws-kms"),
        ("BYOK_AWS_KEY_ARN", &key.arn),
        ("BYOK_AWS_ENDPOINT", &cloud.address),
        ("AWS_ACCESS_KEY_ID", &key.user.id),
        ("AWS_SECRET_ACCESS_KEY", &key.user.secret),
    ])
    .await;
    server.encrypt("plaintext", "r").await;
    for arguments in [&[][..], &["--dry-run"]] {
        let (code, _, why) = rotate(&server, arguments).await;
        assert_eq!(code, 1, "{why}");
        assert!(why.contains("KEY_VERSION_UNKNOWN") && why.contains("nothing was re-wrapped"), "{why}");
    }
    let refused = server.post("/byok/rotate", json!({})).await;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (503, &json!("KEY_VERSION_UNKNOWN")));
}

#[tokio::test]
async fn an_unreachable_database_at_the_start_gives_exit_code_1() {
    let server = TestServer::start().await;
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://byok@{}/byok", nobody.local_addr().unwrap());
    drop(nobody);
    let (code, report, why) = rotate_with(&server, &[], &[("DATABASE_URL", &url)]).await;
    assert_eq!((code, report.as_str()), (1, ""), "{why}");
    assert!(why.contains("the database is out of reach; nothing was changed"), "{why}");
}
