//! A rotation that is paused, resumed and cancelled: by whom, from which state, and what remains
//! after a crash.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::rotation::{all_open, done, encrypt_records, versions};
use crate::support::server::TestServer;

/// Starts a rotation that is held by a replica that does not work on it. Returns its id.
async fn held(server: &TestServer) -> String {
    held_in(server, "RUNNING").await
}

async fn held_in(server: &TestServer, state: &str) -> String {
    let id = Uuid::now_v7();
    let insert = "INSERT INTO np_byok_jobs (tenant, id, state, target_key, target_version, total, rewrapped, skipped, failed, \
        kms_calls, started_at, updated_at, holder, lease_until) \
        SELECT uid, $1, $2, $3, '1', 0, 0, 0, 0, 0, now(), now(), gen_random_uuid(), now() + interval '1 hour' \
        FROM np_byok_tenants";
    let insert = sqlx::query(insert).bind(id).bind(state).bind(&server.key.name);
    insert.execute(&server.database().await).await.unwrap();
    id.to_string()
}

async fn command(server: &TestServer, id: &str, command: &str) -> (u16, Value) {
    let answer = server.post(&format!("/byok/rotate/{id}/{command}"), json!({})).await;
    (answer.status.as_u16(), answer.body)
}

/// The details and outcomes of a caller's entries about rotations, oldest first.
async fn entries(server: &TestServer) -> Vec<(String, String)> {
    let page = server.get("/byok/audit?operation=rotate&user=the-admin&first=500").await.body;
    let mut entries: Vec<(String, String)> = page["entries"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["detail"] != "read state")
        .filter_map(|entry| {
            Some((entry["detail"].as_str()?.to_owned(), entry["outcome"].as_str()?.to_owned()))
        })
        .collect();
    entries.reverse();
    entries
}

#[tokio::test]
async fn each_command_reaches_its_state_idempotently_and_always_leaves_an_entry() {
    let server = TestServer::start().await;
    let id = held(&server).await;
    let commands =
        [("pause", "PAUSED"), ("pause", "PAUSED"), ("cancel", "CANCELLED"), ("cancel", "CANCELLED")];
    for (word, state) in commands {
        let (status, job) = command(&server, &id, word).await;
        assert_eq!((status, &job["state"], &job["id"]), (200, &json!(state), &json!(id)), "{word}: {job}");
        assert_eq!(job["finished_at"].is_null(), state != "CANCELLED", "{job}");
    }
    let mut recorded: Vec<_> =
        commands.iter().map(|(word, _)| (format!("{word} {id}"), "OK".to_owned())).collect();
    assert_eq!(entries(&server).await, recorded);
    let id = held(&server).await;
    command(&server, &id, "pause").await;
    let (status, job) = command(&server, &id, "resume").await;
    // There is nothing to do, so a worker may have finished it already.
    assert!(status == 200 && ["RUNNING", "DONE"].contains(&job["state"].as_str().unwrap()), "{job}");
    recorded.extend(["pause", "resume"].map(|word| (format!("{word} {id}"), "OK".to_owned())));
    assert_eq!(entries(&server).await, recorded);
    done(&server, &id).await;
}

#[tokio::test]
async fn over_graphql_it_is_the_same() {
    let server = TestServer::start().await;
    let id = held(&server).await;
    let admin = server.jwt("admin", "the-admin");
    for (mutation, state) in [("byokPauseRotation", "PAUSED"), ("byokCancelRotation", "CANCELLED")] {
        let query = format!("mutation($id: ID!) {{ {mutation}(id: $id) {{ id state }} }}");
        let answer = server.graphql(&admin, &query, json!({ "id": id })).await;
        assert_eq!(answer["data"][mutation], json!({ "id": id, "state": state }), "{answer}");
    }
    let query = "mutation($id: ID!) { byokResumeRotation(id: $id) { id } }";
    let answer = server.graphql(&admin, query, json!({ "id": id })).await;
    assert_eq!(answer["errors"][0]["extensions"]["code"], "ROTATION_STATE_CONFLICT", "{answer}");
    let answer = server.graphql(&admin, query, json!({ "id": "not-an-id" })).await;
    assert_eq!(answer["errors"][0]["extensions"]["code"], "ROTATION_NOT_FOUND", "{answer}");
}

#[tokio::test]
async fn a_rotation_that_has_ended_takes_no_other_command() {
    let server = TestServer::start().await;
    for (state, refused) in
        [("DONE", &["pause", "resume", "cancel"][..]), ("CANCELLED", &["pause", "resume"][..])]
    {
        let id = held_in(&server, state).await;
        for word in refused {
            let (status, problem) = command(&server, &id, word).await;
            assert_eq!((status, &problem["code"]), (409, &json!("ROTATION_STATE_CONFLICT")), "{problem}");
            assert!(problem["detail"].as_str().unwrap().contains(state), "{problem}");
        }
        assert_eq!(server.get(&format!("/byok/rotate/{id}")).await.body["state"], state);
    }
}

#[tokio::test]
async fn a_wrong_id_body_or_caller_is_refused() {
    let server = TestServer::start().await;
    let id = held(&server).await;
    for word in ["pause", "resume", "cancel"] {
        for wrong in ["00000000-0000-7000-8000-000000000000", "not-an-id", "%00"] {
            let (status, problem) = command(&server, wrong, word).await;
            assert_eq!((status, &problem["code"]), (404, &json!("ROTATION_NOT_FOUND")), "{problem}");
        }
        let path = format!("/byok/rotate/{id}/{word}");
        for body in [json!({ "id": id }), json!([])] {
            let answer = server.post(&path, body).await;
            assert_eq!((answer.status.as_u16(), &answer.body["code"]), (400, &json!("REQUEST_MALFORMED")));
        }
        for role in ["user", "service", "auditor"] {
            let answer = server.call(Method::POST, &path, &server.jwt(role, "u"), None).await;
            assert_eq!((answer.status.as_u16(), &answer.body["code"]), (403, &json!("PERMISSION_DENIED")));
        }
        let answer = server.call(Method::POST, &path, "nobody", None).await;
        assert_eq!(answer.status, 401, "{}", answer.body);
        let answer = server.get(&path).await;
        assert_eq!(answer.status, 405, "{}", answer.body);
    }
    assert_eq!(server.get(&format!("/byok/rotate/{id}")).await.body["state"], "RUNNING");
    assert_eq!(entries(&server).await, []);
}

#[tokio::test]
async fn beside_one_that_is_paused_none_is_started() {
    let server = TestServer::start().await;
    let id = held(&server).await;
    command(&server, &id, "pause").await;
    let refused = server.post("/byok/rotate", json!({})).await;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (409, &json!("ROTATION_STATE_CONFLICT")));
    assert!(refused.body["detail"].as_str().unwrap().contains(&id), "{}", refused.body);
    assert_eq!(server.post("/byok/rotate", json!({ "dry_run": true })).await.status, 200);
    // A release that does not check relies on the database, which allows one live rotation for a
    // tenant.
    let beside = "INSERT INTO np_byok_jobs SELECT tenant, gen_random_uuid(), 'RUNNING', target_key, target_version, total, \
        rewrapped, skipped, failed, kms_calls, stalled, started_at, updated_at FROM np_byok_jobs";
    assert!(sqlx::query(beside).execute(&server.database().await).await.is_err());
    command(&server, &id, "cancel").await;
    let started = server.post("/byok/rotate", json!({})).await;
    assert_eq!(started.status, 202, "{}", started.body);
    assert_ne!(started.body["id"], json!(id));
    done(&server, started.body["id"].as_str().unwrap()).await;
    assert_eq!(server.get(&format!("/byok/rotate/{id}")).await.body["state"], "CANCELLED");
}

/// A server with this many records, whose rotation has re-wrapped some and cannot go on. Returns
/// the tokens and the rotation's id.
async fn in_the_middle(records: usize) -> (TestServer, Vec<(String, String)>, String) {
    let mut server = TestServer::start().await;
    let tokens = encrypt_records(&server, records).await;
    server.key.rotate().await;
    server.stop().await;
    // A budget so low that a rotation gets only a few batches done.
    server.environment.push(("BYOK_KMS_CALLS_PER_MINUTE".to_owned(), "10".to_owned()));
    server.start_again().await;
    let started = server.post("/byok/rotate", json!({})).await;
    let id = started.body["id"].as_str().unwrap().to_owned();
    while server.get(&format!("/byok/rotate/{id}")).await.body["rewrapped"] == 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (server, tokens, id)
}

#[tokio::test]
async fn what_is_paused_stays_so_over_a_kill_and_resumes_there() {
    let (mut server, tokens, id) = in_the_middle(3_000).await;
    assert_eq!(command(&server, &id, "pause").await.1["state"], "PAUSED");
    server.kill().await;
    server.environment.retain(|(name, _)| name != "BYOK_KMS_CALLS_PER_MINUTE");
    server.start_again().await;
    let other = server.replica().await;
    let before = server.get(&format!("/byok/rotate/{id}")).await.body;
    assert_eq!((&before["state"], &before["finished_at"]), (&json!("PAUSED"), &Value::Null), "{before}");
    // Each server looks for work once a second.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(other.get(&format!("/byok/rotate/{id}")).await.body, before);
    all_open(&other, &tokens[..100]).await;
    assert_eq!(command(&other, &id, "resume").await.1["state"], "RUNNING");
    let job = done(&server, &id).await;
    assert_eq!(versions(&server).await, [("2".to_owned(), 3_000)]);
    let counted = job["rewrapped"].as_u64().unwrap() + job["skipped"].as_u64().unwrap();
    assert_eq!((counted, &job["failed"]), (3_000, &json!(0)), "{job}");
    server.key.refuse_below(2).await;
    all_open(&server.replica().await, &tokens).await;
}

#[tokio::test]
async fn pausing_and_resuming_at_any_moment_loses_and_wakes_no_dek() {
    let server = TestServer::start().await;
    let other = server.replica().await;
    let tokens = encrypt_records(&server, 2_000).await;
    server.key.rotate().await;
    let started = server.post("/byok/rotate", json!({})).await;
    let id = started.body["id"].as_str().unwrap().to_owned();
    for round in 0_u64.. {
        let (status, job) = command(&server, &id, "pause").await;
        if status == 409 {
            break;
        }
        assert_eq!(job["state"], "PAUSED", "{job}");
        // Work in progress ends meanwhile, and cannot set the state to running.
        tokio::time::sleep(Duration::from_millis(20 * (round % 4))).await;
        let seen = other.get(&format!("/byok/rotate/{id}")).await.body;
        assert_eq!((&seen["state"], &seen["rewrapped"]), (&json!("PAUSED"), &job["rewrapped"]), "{seen}");
        assert_ne!(command(&other, &id, "resume").await.1["state"], "PAUSED");
        tokio::time::sleep(Duration::from_millis(200 * (round % 8))).await;
    }
    done(&server, &id).await;
    assert_eq!(versions(&server).await, [("2".to_owned(), 2_000)]);
    all_open(&other, &tokens).await;
}

#[tokio::test]
async fn a_rotation_cancelled_halfway_is_valid_and_another_does_the_rest() {
    let (mut server, tokens, id) = in_the_middle(2_500).await;
    let (status, job) = command(&server, &id, "cancel").await;
    assert_eq!((status, &job["state"], &job["stalled"]), (200, &json!("CANCELLED"), &Value::Null), "{job}");
    server.stop().await;
    server.environment.retain(|(name, _)| name != "BYOK_KMS_CALLS_PER_MINUTE");
    server.start_again().await;
    let before = versions(&server).await;
    assert_eq!(before.len(), 2, "some are under the old version, some under the new one");
    // The result of the batch that was in progress during the cancellation is kept, but not
    // counted.
    assert!(before[1].1 >= job["rewrapped"].as_i64().unwrap(), "{before:?} {job}");
    all_open(&server, &tokens).await;
    let rest = server.post("/byok/rotate", json!({})).await;
    assert_eq!(rest.body["total"].as_i64(), Some(before[0].1), "{}", rest.body);
    done(&server, rest.body["id"].as_str().unwrap()).await;
    assert_eq!(versions(&server).await, [("2".to_owned(), 2_500)]);
}

#[tokio::test]
async fn a_command_arriving_at_the_rotations_end_is_refused_and_voided() {
    let server = TestServer::start().await;
    let id = held(&server).await;
    let database = server.database().await;
    // The rotation's last update, which commits while the command waits for the row.
    let mut ending = database.begin().await.unwrap();
    let done = "UPDATE np_byok_jobs SET state = 'DONE', finished_at = now() WHERE id = $1::uuid";
    sqlx::query(done).bind(&id).execute(&mut *ending).await.unwrap();
    let pausing = command(&server, &id, "pause");
    let commit = async {
        let waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
            AND wait_event_type = 'Lock')";
        while !sqlx::query_scalar::<_, bool>(waiting).fetch_one(&database).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ending.commit().await.unwrap();
    };
    let ((status, problem), ()) = tokio::join!(pausing, commit);
    assert_eq!((status, &problem["code"]), (409, &json!("ROTATION_STATE_CONFLICT")), "{problem}");
    let page = server.get("/byok/audit?operation=rotate&user=the-admin").await.body;
    let (voiding, voided) = (&page["entries"][0], &page["entries"][1]);
    assert_eq!((&voiding["outcome"], &voiding["voids"]), (&json!("ROTATION_STATE_CONFLICT"), &voided["id"]));
    assert_eq!((&voided["outcome"], &voided["detail"]), (&json!("OK"), &json!(format!("pause {id}"))));
}
