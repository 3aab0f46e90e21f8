//! The kill switch: once the bound has passed, no path returns anything that the key protects, and
//! the service resumes by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::needed;
use crate::support::relay::Relay;
use crate::support::server::{TestServer, create_database};
use crate::support::shared_vault::VaultKey;
use crate::support::switch::{
    A, Answers, Caller, Switch, all_active, all_open, encrypt_all, eventually, incidents, postures,
    serves_again,
};
use crate::support::toxics::Way;

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(was, is)| ((*was).to_owned(), (*is).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_hot_is_dark_in_time_and_returns_by_itself() {
    let server = TestServer::start().await;
    let (switch, database) = (Switch::of(&server.key).await, server.database().await);
    let token = server.encrypt("hot-record", "hot-record").await;
    let callers: Vec<Caller> =
        (0..6).map(|n| Caller::decrypting(&server, &format!("caller {n}"), "hot-record", &token)).collect();
    for caller in &callers {
        caller.is_served(20).await;
    }
    let off = switch.off().await;
    tokio::time::sleep(A + Duration::from_millis(1_500)).await;
    for caller in callers {
        let answers = caller.end().await;
        answers.none_after_the_bound(off);
        answers.all_say(off + A, "KMS_ACCESS_DENIED");
        assert!(answers.past(off + A).all(|seen| seen.status == 403));
    }
    assert_eq!(incidents(&database).await, pairs(&[("active", "revoked")]));
    // Nobody calls from here on.
    switch.on().await;
    all_active(&database).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let answer = server.decrypt(&token, "hot-record").await;
    assert_eq!((answer.status.as_u16(), &answer.body["plaintext"]), (200, &json!("hot-record")));
    assert_eq!(incidents(&database).await, pairs(&[("active", "revoked"), ("revoked", "active")]));
    let entries = server.get("/byok/audit?operation=incident").await.body["entries"].clone();
    let outcomes: Vec<&Value> = entries.as_array().unwrap().iter().map(|entry| &entry["outcome"]).collect();
    assert_eq!(outcomes.len(), 2, "{entries}");
    let times_logged = |message: &str| server.logged().matches(message).count();
    assert_eq!(times_logged("a key was turned off: what it protects cannot be read"), 1);
    assert_eq!(times_logged("a key may be used again"), 1);
}

/// Asserts that this way to turn a key off stops decrypts of a record in memory.
async fn goes_dark(turn_off: impl AsyncFnOnce(&VaultKey), code: &str) {
    let server = TestServer::start().await;
    let token = server.encrypt("hot-record", "hot-record").await;
    let caller = Caller::decrypting(&server, "caller", "hot-record", &token);
    caller.is_served(20).await;
    turn_off(&server.key).await;
    let off = Instant::now();
    tokio::time::sleep(A + Duration::from_secs(1)).await;
    let answers = caller.end().await;
    answers.none_after_the_bound(off);
    answers.all_say(off + A, code);
    let cold = server.replica().await;
    assert_eq!(cold.decrypt(&token, "hot-record").await.body["code"], code);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_deleted_is_dark() {
    goes_dark(async |key| key.delete().await, "KMS_ACCESS_DENIED").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_that_was_revoked_is_dark() {
    goes_dark(async |key| key.revoke_token().await, "KMS_ACCESS_DENIED").await;
}

fn graphql(query: &str, variables: Value) -> (&'static str, Value) {
    ("/graphql", json!({ "query": query, "variables": variables }))
}

/// One caller on each path that returns data. `hot` are records in memory, `cold` are records that
/// are not.
fn on_every_path(server: &TestServer, hot: &[(String, String)], cold: &[(String, String)]) -> Vec<Caller> {
    let (record, token) = hot[0].clone();
    let both: Vec<Value> =
        hot.iter().map(|(record, token)| json!({ "ciphertext": token, "recordId": record })).collect();
    let rest: Vec<Value> =
        hot.iter().map(|(record, token)| json!({ "ciphertext": token, "record_id": record })).collect();
    let join: String = (0..4)
        .map(|n| {
            let (record, token) = &hot[n % hot.len()];
            format!(" f{n}: byokReveal(ciphertext: \"{token}\", recordId: \"{record}\") {{ value error {{ code }} }}")
        })
        .collect();
    let (cold, first) = (cold.to_vec(), rest[0].clone());
    let one = json!({ "c": token, "r": record });
    let secret = "secret-";
    let made = "byok:v1:";
    let of = |what: &str, secret: &str, call| Caller::of(server, what, secret, call);
    let decrypt = json!({ "ciphertext": token, "record_id": record });
    let (one_more, many, many_more, known) = (one.clone(), both.clone(), both, record);
    vec![
        of("decrypt", secret, Box::new(move |_| ("/byok/decrypt", decrypt.clone()))),
        of("decrypt many", secret, Box::new(move |_| ("/byok/decrypt/many", json!({ "items": rest })))),
        of(
            "hot and cold",
            secret,
            Box::new(move |n| {
                let (record, token) = &cold[n % cold.len()];
                let items = [first.clone(), json!({ "ciphertext": token, "record_id": record })];
                ("/byok/decrypt/many", json!({ "items": items }))
            }),
        ),
        of(
            "byokDecrypt",
            secret,
            Box::new(move |_| {
                graphql(
                    "mutation($c: String!, $r: ID!) { byokDecrypt(ciphertext: $c, recordId: $r) { plaintext } }",
                    one.clone(),
                )
            }),
        ),
        of(
            "byokDecryptMany",
            secret,
            Box::new(move |_| {
                graphql(
                    "mutation($i: [ByokDecryptItem!]!) { byokDecryptMany(items: $i) { plaintext error { code } } }",
                    json!({ "i": many }),
                )
            }),
        ),
        of(
            "byokReveal",
            secret,
            Box::new(move |_| {
                graphql(
                    "query($c: String!, $r: ID!) { byokReveal(ciphertext: $c, recordId: $r) { value error { code } } }",
                    one_more.clone(),
                )
            }),
        ),
        of(
            "byokRevealMany",
            secret,
            Box::new(move |_| {
                graphql(
                    "query($i: [ByokDecryptItem!]!) { byokRevealMany(items: $i) { value error { code } } }",
                    json!({ "i": many_more }),
                )
            }),
        ),
        of("join", secret, Box::new(move |_| graphql(&format!("query {{{join} }}"), Value::Null))),
        of(
            "encrypt for a known record",
            made,
            Box::new(move |n| {
                ("/byok/encrypt", json!({ "plaintext": format!("known-{n}"), "record_id": known }))
            }),
        ),
        of(
            "encrypt for a new record",
            made,
            Box::new(|n| {
                ("/byok/encrypt", json!({ "plaintext": format!("new-{n}"), "record_id": format!("new-{n}") }))
            }),
        ),
        of(
            "byokEncryptMany",
            made,
            Box::new(|n| {
                let item = json!({ "plaintext": format!("many-{n}"), "recordId": format!("many-{n}") });
                graphql(
                    "mutation($i: [ByokEncryptItem!]!) { byokEncryptMany(items: $i) { ciphertext error { code } } }",
                    json!({ "i": [item] }),
                )
            }),
        ),
    ]
}

/// The acknowledged encrypts: record, token and plaintext.
fn acknowledged(answers: &Answers, known: &str) -> Vec<(String, String, String)> {
    let kind = match answers.what.as_str() {
        "encrypt for a known record" => "known",
        "encrypt for a new record" => "new",
        "byokEncryptMany" => "many",
        _ => return Vec::new(),
    };
    let token = |body: &str| Some(body[body.find("byok:v1:")?..].split('"').next()?.to_owned());
    let seen = answers.seen.iter().filter(|seen| seen.secret);
    seen.map(|seen| {
        let plaintext = format!("{kind}-{}", seen.n);
        let record = if kind == "known" { known.to_owned() } else { plaintext.clone() };
        (record, token(&seen.body).expect("a token"), plaintext)
    })
    .collect()
}

async fn every_path(cache_seconds: &str) {
    let key = VaultKey::create().await;
    let relay = Relay::before(&key.address, |request| request.uri().path().to_owned()).await;
    let database_url = create_database(&needed("DATABASE_URL")).await;
    let variables = [("BYOK_VAULT_ADDR", relay.url.as_str()), ("BYOK_DEK_CACHE_SECONDS", cache_seconds)];
    let server = TestServer::on(key, database_url, &variables).await;
    let switch = Switch::of(&server.key).await;
    let names = |kind: &str, count: usize| -> Vec<String> {
        (0..count).map(|n| format!("secret-{kind}-{n}")).collect()
    };
    // The cold records are made by another process.
    let (hot, cold) = {
        let writer = server.replica().await;
        let made = async |records: Vec<String>| -> Vec<(String, String)> {
            let tokens = encrypt_all(&writer, &records).await;
            records.into_iter().zip(tokens).collect()
        };
        (made(names("hot", 3)).await, made(names("cold", 900)).await)
    };
    let callers = on_every_path(&server, &hot, &cold);
    for caller in &callers {
        caller.is_served(5).await;
    }
    let healthy = server.get("/byok/health").await;
    assert_eq!(healthy.body["status"], "OK", "{}", healthy.body);
    let off = switch.off().await;
    tokio::time::sleep(A + Duration::from_secs(2)).await;
    let mut kept = Vec::new();
    for caller in callers {
        let answers = caller.end().await;
        answers.none_after_the_bound(off);
        answers.all_say(off + A + Duration::from_millis(500), "KMS_ACCESS_DENIED");
        kept.extend(acknowledged(&answers, &hot[0].0));
    }
    assert!(kept.len() > 10);
    eventually("health says so", async || server.get("/byok/health").await.body["status"] == "REVOKED").await;
    assert_eq!(server.get("/ready").await.status, 200, "a revoked tenant does not make the server unready");
    // The server asked for this key only, and only for the operations that it needs.
    let asked: Vec<String> = relay.state.counts.lock().unwrap().keys().cloned().collect();
    for path in asked.iter().filter(|path| path.contains("/transit/")) {
        assert!(path.ends_with(&format!("/{}", server.key.name)), "{path}");
        assert!(!path.contains("/rewrap/"), "{path}");
    }
    switch.on().await;
    serves_again(&server, &hot[0].0, &hot[0].1).await;
    kept.extend(hot.into_iter().chain(cold).map(|(record, token)| (record.clone(), token, record)));
    all_open(&server, &kept).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_that_answers_is_dark_and_nothing_acknowledged_is_lost() {
    every_path("300").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_cache_every_path_is_dark_too() {
    every_path("0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_turned_off_alone_is_dark_alone_without_any_fallback() {
    let key = VaultKey::create().await;
    let relay = Relay::before(&key.address, |request| request.uri().path().to_owned()).await;
    let database_url = create_database(&needed("DATABASE_URL")).await;
    let server = TestServer::on(key, database_url, &[("BYOK_VAULT_ADDR", &relay.url)]).await;
    let database = server.database().await;
    let old = server.encrypt("secret-old", "secret-old").await;
    server.key.rotate().await;
    let new = server.encrypt("secret-new", "secret-new").await;
    let both = json!({ "items": [
        { "ciphertext": old, "record_id": "secret-old" }, { "ciphertext": new, "record_id": "secret-new" },
    ] });
    let on_old = Caller::decrypting(&server, "old", "secret-old", &old);
    let on_new = Caller::decrypting(&server, "new", "secret-new", &new);
    let item = json!({ "plaintext": "more", "record_id": "secret-old" });
    let more = Caller::of(
        &server,
        "encrypt under old",
        "byok:v1:",
        Box::new(move |_| ("/byok/encrypt", item.clone())),
    );
    let batch =
        Caller::of(&server, "both", "secret-old", Box::new(move |_| ("/byok/decrypt/many", both.clone())));
    for caller in [&on_old, &on_new, &more, &batch] {
        caller.is_served(20).await;
    }
    server.key.refuse_below(2).await;
    let off = Instant::now();
    tokio::time::sleep(A + Duration::from_millis(1_500)).await;
    for caller in [on_old, more, batch] {
        let answers = caller.end().await;
        answers.none_after_the_bound(off);
        answers.all_say(off + A, "KMS_ACCESS_DENIED");
        for seen in answers.past(off + A).filter(|_| answers.what == "both") {
            assert!(seen.body.contains("secret-new"), "{}", seen.body);
        }
    }
    let answers = on_new.end().await;
    for seen in &answers.seen {
        assert!(seen.secret, "the new version continues: {} {}", seen.status, seen.body);
    }
    let is = postures(&database).await;
    assert_eq!((is[0].1.as_str(), is[1].1.as_str()), ("revoked", "active"), "{is:?}");
    // What the old version wrapped was unwrapped under the old version, and is still wrapped under
    // it.
    assert!(relay.state.counts.lock().unwrap().keys().all(|path| !path.contains("/rewrap/")));
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT record_id, key_version FROM np_byok_wrapped_deks ORDER BY record_id")
            .fetch_all(&database)
            .await
            .unwrap();
    assert_eq!(rows, pairs(&[("secret-new", "2"), ("secret-old", "1")]));
    server.key.refuse_below(1).await;
    serves_again(&server, "secret-old", &old).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_whose_commit_waited_past_the_bound_is_withheld() {
    let server = TestServer::start().await;
    let (switch, database) = (Switch::of(&server.key).await, server.database().await);
    let server = Arc::new(server);
    let token = server.encrypt("hot-record", "hot-record").await;
    assert_eq!(server.decrypt(&token, "hot-record").await.status, 200);
    for turned_off in [false, true] {
        let mut head = database.begin().await.unwrap();
        sqlx::query("SELECT * FROM np_byok_heads FOR UPDATE").fetch_all(&mut *head).await.unwrap();
        let calls: Vec<_> = (0..3)
            .map(|_| {
                let (server, token) = (server.clone(), token.clone());
                tokio::spawn(async move { server.decrypt(&token, "hot-record").await })
            })
            .collect();
        // The records are in memory, so the calls are waiting for their commits by now.
        tokio::time::sleep(Duration::from_millis(500)).await;
        if turned_off {
            switch.off().await;
        }
        tokio::time::sleep(A + Duration::from_millis(300)).await;
        head.rollback().await.unwrap();
        for call in calls {
            let answer = call.await.unwrap();
            if turned_off {
                assert!([403, 503].contains(&answer.status.as_u16()), "{}", answer.body);
            } else {
                // A slow commit is no reason to refuse while the key is shown to work.
                assert_eq!(answer.body["plaintext"], "hot-record", "{}", answer.body);
            }
        }
    }
    eventually("it is dark", async || server.decrypt(&token, "hot-record").await.status == 403).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_whose_commit_is_confirmed_after_the_bound_is_withheld() {
    let database_url = create_database(&needed("DATABASE_URL")).await;
    let (server_part, name) = database_url.rsplit_once('/').unwrap();
    let (user, address) = server_part.rsplit_once('@').unwrap();
    let way = Way::to(address).await;
    let slow = format!("{user}@{}/{name}", way.address);
    let server = Arc::new(
        TestServer::on(VaultKey::create().await, database_url.clone(), &[("DATABASE_URL", &slow)]).await,
    );
    let switch = Switch::of(&server.key).await;
    let token = server.encrypt("hot-record", "hot-record").await;
    assert_eq!(server.decrypt(&token, "hot-record").await.status, 200);
    way.delay(A + Duration::from_millis(500)).await;
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let (server, token) = (server.clone(), token.clone());
            tokio::spawn(async move { server.decrypt(&token, "hot-record").await })
        })
        .collect();
    let off = switch.off().await;
    tokio::time::sleep(A + Duration::from_secs(1)).await;
    way.delay(Duration::ZERO).await;
    for call in calls {
        let answer = call.await.unwrap();
        assert!(off.elapsed() > A);
        assert!([403, 503].contains(&answer.status.as_u16()), "{} {}", answer.status, answer.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_stalls_in_the_dark_and_goes_on_after() {
    let key = VaultKey::create().await;
    let relay = Relay::before(&key.address, |request| request.uri().path().to_owned()).await;
    let database_url = create_database(&needed("DATABASE_URL")).await;
    let server = TestServer::on(key, database_url, &[("BYOK_VAULT_ADDR", &relay.url)]).await;
    let (switch, database) = (Switch::of(&server.key).await, server.database().await);
    let mut kept = Vec::new();
    for part in 0..4 {
        let records: Vec<String> = (0..800).map(|n| format!("secret-{part}-{n}")).collect();
        let tokens = encrypt_all(&server, &records).await;
        kept.extend(records.into_iter().zip(tokens).map(|(record, token)| (record.clone(), token, record)));
    }
    let moved = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM np_byok_wrapped_deks WHERE key_version = '2'")
            .fetch_one(&database)
            .await
            .unwrap()
    };
    server.key.rotate().await;
    relay.state.slow.store(500, std::sync::atomic::Ordering::Relaxed);
    let started = server.post("/byok/rotate", json!({})).await;
    let job = format!("/byok/rotate/{}", started.body["id"].as_str().unwrap());
    eventually("some have moved", async || moved().await > 0).await;
    let off = switch.off().await;
    tokio::time::sleep(A + Duration::from_secs(1)).await;
    relay.state.slow.store(0, std::sync::atomic::Ordering::Relaxed);
    let in_the_dark = moved().await;
    assert!(in_the_dark < kept.len() as i64, "it was not done before the key was turned off");
    eventually("it has a reason", async || server.get(&job).await.body["stalled"] == "KMS_ACCESS_DENIED")
        .await;
    assert!(off.elapsed() > A);
    assert_eq!(moved().await, in_the_dark, "nothing is rotated while the key is off");
    switch.on().await;
    eventually("it is done", async || server.get(&job).await.body["state"] == "DONE").await;
    let done = server.get(&job).await.body;
    assert_eq!((&done["rewrapped"], &done["failed"]), (&json!(3_200), &json!(0)), "{done}");
    assert_eq!(moved().await, 3_200);
    all_open(&server.replica().await, &kept).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dek_that_was_just_made_is_dark_with_the_others() {
    let server = TestServer::start().await;
    let switch = Switch::of(&server.key).await;
    let mut made = Vec::new();
    for n in 0..20 {
        let record = format!("secret-{n}");
        made.push((record.clone(), server.encrypt(&record, &record).await, record));
    }
    let off = switch.off().await;
    loop {
        let began = Instant::now();
        let items: Vec<Value> = made
            .iter()
            .map(|(record, token, _)| json!({ "ciphertext": token, "record_id": record }))
            .collect();
        let answer = server
            .call(
                Method::POST,
                "/byok/decrypt/many",
                &server.jwt("admin", "a"),
                Some(json!({ "items": items })),
            )
            .await;
        let (trip, seen) = (began.elapsed(), off.elapsed());
        if answer.body.to_string().contains("secret-") {
            assert!(seen <= A + Duration::from_millis(100) + trip, "{seen:?}");
        } else if seen > A + Duration::from_secs(1) {
            break;
        }
    }
    switch.on().await;
    serves_again(&server, &made[0].0, &made[0].1).await;
    all_open(&server, &made).await;
}
