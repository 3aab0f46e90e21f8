//! Rotation: every DEK moves to the current key version, while the service goes on.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::server::TestServer;

pub(crate) async fn encrypt_records(server: &TestServer, count: usize) -> Vec<(String, String)> {
    let records: Vec<String> = (0..count).map(|n| format!("r-{n:05}")).collect();
    let items: Vec<Value> =
        records.iter().map(|record| json!({ "plaintext": record, "record_id": record })).collect();
    let answer = server.post("/byok/encrypt/many", json!({ "items": items })).await;
    let tokens = answer.body["items"].as_array().unwrap_or_else(|| panic!("{}", answer.body)).clone();
    records
        .into_iter()
        .zip(tokens)
        .map(|(record, token)| (record, token["ciphertext"].as_str().unwrap().to_owned()))
        .collect()
}

pub(crate) async fn all_open(server: &TestServer, tokens: &[(String, String)]) {
    let items: Vec<Value> =
        tokens.iter().map(|(record, token)| json!({ "ciphertext": token, "record_id": record })).collect();
    let answer = server.post("/byok/decrypt/many", json!({ "items": items })).await;
    for ((record, _), item) in tokens.iter().zip(answer.body["items"].as_array().unwrap()) {
        assert_eq!(item["plaintext"], *record, "{item}");
    }
}

pub(crate) async fn done(server: &TestServer, id: &str) -> Value {
    let began = Instant::now();
    loop {
        let job = server.get(&format!("/byok/rotate/{id}")).await.body;
        if job["state"] == "DONE" {
            return job;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{job}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn versions(server: &TestServer) -> Vec<(String, i64)> {
    sqlx::query_as("SELECT key_version, count(*) FROM np_byok_wrapped_deks GROUP BY 1 ORDER BY 1")
        .fetch_all(&server.database().await)
        .await
        .unwrap()
}

#[tokio::test]
async fn every_dek_moves_to_the_current_version_and_tokens_still_open() {
    let server = TestServer::start().await;
    let tokens = encrypt_records(&server, 1_200).await;
    server.key.rotate().await;

    let forecast = server.post("/byok/rotate", json!({ "dry_run": true })).await;
    assert_eq!(forecast.status, 200);
    assert_eq!(
        (&forecast.body["deks"], &forecast.body["target"]),
        (&json!(1_200), &json!(format!("{}/2", server.key.name)))
    );
    assert_eq!(versions(&server).await, [("1".to_owned(), 1_200)], "a dry run changes nothing");

    let started = server.post("/byok/rotate", json!({})).await;
    assert_eq!(started.status, 202, "{}", started.body);
    let id = started.body["id"].as_str().unwrap();
    assert_eq!(started.headers["location"], format!("/byok/rotate/{id}"));
    let job = done(&server, id).await;
    assert_eq!((&job["rewrapped"], &job["failed"]), (&json!(1_200), &json!(0)), "{job}");
    assert_eq!(versions(&server).await, [("2".to_owned(), 1_200)]);
    server.key.refuse_below(2).await;
    let cold = server.replica().await;
    all_open(&cold, &tokens).await;

    let again = server.post("/byok/rotate", json!({})).await;
    let again = done(&server, again.body["id"].as_str().unwrap()).await;
    assert_eq!((&again["total"], &again["rewrapped"]), (&json!(0), &json!(0)), "a re-run touches nothing");

    let audit = server.get("/byok/audit?operation=rotate&first=500").await;
    let items: usize = audit.body["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["items"].as_array().unwrap().len())
        .sum();
    assert_eq!(items, 1_200, "each DEK stands in an entry once");
}

#[tokio::test]
async fn encrypt_and_decrypt_go_on_while_a_rotation_is_resumed_elsewhere() {
    let mut server = TestServer::start().await;
    let tokens = encrypt_records(&server, 3_000).await;
    server.key.rotate().await;
    let started = server.post("/byok/rotate", json!({})).await;
    let id = started.body["id"].as_str().unwrap().to_owned();
    let other = server.replica().await;
    // The server is killed as soon as it has begun, while it holds the lease.
    loop {
        let job = other.get(&format!("/byok/rotate/{id}")).await.body;
        if job["rewrapped"] != 0 || job["state"] == "DONE" {
            break;
        }
    }
    server.kill().await;
    let fresh = other.encrypt("meanwhile", "meanwhile").await;
    all_open(&other, &tokens[..100]).await;
    let rejoined = other.post("/byok/rotate", json!({})).await;
    let id = if rejoined.body["state"] == "RUNNING" {
        rejoined.body["id"].as_str().unwrap().to_owned()
    } else {
        id
    };
    done(&other, &id).await;
    assert_eq!(versions(&other).await.iter().map(|(version, _)| version.as_str()).collect::<Vec<_>>(), ["2"]);
    all_open(&other, &tokens).await;
    assert_eq!(other.decrypt(&fresh, "meanwhile").await.body["plaintext"], "meanwhile");
}

#[tokio::test]
async fn a_hand_altered_dek_is_counted_and_does_not_stop_others() {
    let server = TestServer::start().await;
    let tokens = encrypt_records(&server, 10).await;
    let database = server.database().await;
    let damage = "UPDATE np_byok_wrapped_deks SET wrapped = overlay(wrapped placing 'AAAA'::bytea from 20) WHERE record_id = 'r-00003'";
    sqlx::query(damage).execute(&database).await.unwrap();
    server.key.rotate().await;
    let started = server.post("/byok/rotate", json!({})).await;
    let job = done(&server, started.body["id"].as_str().unwrap()).await;
    assert_eq!((&job["rewrapped"], &job["failed"]), (&json!(9), &json!(1)));
    all_open(&server, &tokens[5..]).await;
}

#[tokio::test]
async fn the_command_line_rotates_and_says_how_far_it_is() {
    let server = TestServer::start().await;
    encrypt_records(&server, 20).await;
    server.key.rotate().await;
    let run = async |arguments: &[&str]| {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_byok"))
            .arg("rotate")
            .args(arguments)
            .env_clear()
            .envs(server.environment.iter().map(|(name, value)| (name, value)))
            .output()
            .await
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, report) = run(&["--dry-run"]).await;
    assert_eq!(code, Some(0));
    assert!(report.contains("would re-wrap 20 DEKs"), "{report}");
    let (code, report) = run(&[]).await;
    assert_eq!(code, Some(0));
    assert!(report.contains("0 failed"), "{report}");
    assert_eq!(versions(&server).await, [("2".to_owned(), 20)]);
}

#[tokio::test]
async fn one_row_of_a_missing_version_does_not_delay_the_others() {
    let server = TestServer::start().await;
    encrypt_records(&server, 8).await;
    server.key.rotate().await;
    let moved = server.post("/byok/rotate", json!({})).await;
    done(&server, moved.body["id"].as_str().unwrap()).await;
    // A row names the first version again, which the customer then turns off.
    let strange = "UPDATE np_byok_wrapped_deks SET wrapped = convert_to(replace(convert_from(wrapped, 'UTF8'), 'vault:v2:', 'vault:v1:'), 'UTF8'), key_version = '1' WHERE record_id = 'r-00003'";
    sqlx::query(strange).execute(&server.database().await).await.unwrap();
    server.key.refuse_below(2).await;
    server.key.rotate().await;
    let started = server.post("/byok/rotate", json!({})).await;
    let job = done(&server, started.body["id"].as_str().unwrap()).await;
    assert_eq!((&job["rewrapped"], &job["failed"]), (&json!(7), &json!(1)), "{job}");
}

#[tokio::test]
async fn a_dek_committed_behind_the_cursor_is_rotated_too() {
    let server = TestServer::start().await;
    encrypt_records(&server, 3).await;
    let database = server.database().await;
    // A DEK as a replica with a slow clock would make it: its id sorts before all others.
    let early = "UPDATE np_byok_wrapped_deks SET id = '00000000-0000-7000-8000-000000000001' WHERE record_id = 'r-00001'";
    server.key.rotate().await;
    let hold =
        "UPDATE np_byok_jobs SET cursor = '00000000-0000-7000-8000-000000000002' WHERE state = 'RUNNING'";
    sqlx::query(early).execute(&database).await.unwrap();
    let started = server.post("/byok/rotate", json!({})).await;
    sqlx::query(hold).execute(&database).await.unwrap();
    done(&server, started.body["id"].as_str().unwrap()).await;
    assert_eq!(versions(&server).await, [("2".to_owned(), 3)]);
}
