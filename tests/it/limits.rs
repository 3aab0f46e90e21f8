//! The rate limits as callers see them: each refusal says when to come back, and calls that cost
//! the customer nothing go on.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use byok::kms::{DekBinding, KmsErrorClass, Purpose, Verdict};
use serde_json::{Value, json};

use crate::support::calls::binding;
use crate::support::provider::Provided;
use crate::support::relay::Relay;
use crate::support::server::{Answer, TestServer};

const ENCRYPT_MANY: &str = "mutation($i: [ByokEncryptItem!]!) { byokEncryptMany(items: $i) { ciphertext error { code message retryable } } }";
const DECRYPT_MANY: &str = "mutation($i: [ByokDecryptItem!]!) { byokDecryptMany(items: $i) { plaintext error { code message retryable } } }";
const DECRYPT: &str =
    "mutation($c: String!, $r: ID) { byokDecrypt(ciphertext: $c, recordId: $r) { plaintext } }";

fn plain(count: usize) -> Value {
    (0..count).map(|n| json!({ "plaintext": format!("p-{n}"), "record_id": format!("r-{n}") })).collect()
}

/// The same items with GraphQL's field names.
fn camel(items: &Value) -> Value {
    let text = items.to_string().replace("\"record_id\"", "\"recordId\"");
    serde_json::from_str(&text).unwrap()
}

/// Tokens for the values `p-n` of the records `r-n`, as items to decrypt.
async fn tokens(server: &TestServer, count: usize) -> Vec<Value> {
    let answer = server.post("/byok/encrypt/many", json!({ "items": plain(count) })).await;
    let answers = answer.body["items"].as_array().unwrap_or_else(|| panic!("{}", answer.body));
    let item = |(n, token): (usize, &Value)| json!({ "ciphertext": token["ciphertext"], "record_id": format!("r-{n}") });
    answers.iter().enumerate().map(item).collect()
}

/// A remote join of these items.
async fn reveal(server: &TestServer, items: &[Value]) -> Vec<Value> {
    let mut query = String::from("query {");
    for (n, item) in items.iter().enumerate() {
        write!(
            query,
            " f{n}: byokReveal(ciphertext: {}, recordId: {}) {{ value error {{ code message retryable }} }}",
            item["ciphertext"], item["record_id"]
        )
        .unwrap();
    }
    let answer = server.graphql(&server.jwt("admin", "a"), &(query + " }"), json!(null)).await;
    assert!(answer.get("errors").is_none(), "a join's errors are data: {answer}");
    (0..items.len()).map(|n| answer["data"][format!("f{n}")].clone()).collect()
}

/// Asserts that an answer is a refusal for the rate: status, code, and a wait of 1 to `most` whole
/// seconds. Returns the wait.
fn limited(answer: &Answer, most: u64) -> u64 {
    assert_eq!(
        (answer.status.as_u16(), &answer.body["code"]),
        (429, &json!("RATE_LIMITED")),
        "{}",
        answer.body
    );
    assert_eq!(answer.body["retryable"], true);
    let seconds: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=most).contains(&seconds), "{seconds}");
    seconds
}

/// Asserts the same of an answer in GraphQL.
fn limited_in_graphql(answer: &Value, most: u64) {
    let extensions = &answer["errors"][0]["extensions"];
    assert_eq!(extensions["code"], "RATE_LIMITED", "{answer}");
    let seconds = extensions["retryAfterSeconds"].as_u64().unwrap();
    assert!((1..=most).contains(&seconds), "{answer}");
}

#[tokio::test]
async fn a_batch_is_one_call_and_the_next_gets_retry_after() {
    let server = TestServer::with(&[("BYOK_ENCRYPT_RATE_RPM", "1"), ("BYOK_DECRYPT_RATE_RPM", "1")]).await;
    let admin = server.jwt("admin", "a");
    let items = tokens(&server, 5).await;
    limited(&server.post("/byok/encrypt/many", json!({ "items": plain(1) })).await, 60);
    limited_in_graphql(&server.graphql(&admin, ENCRYPT_MANY, json!({ "i": camel(&plain(1)) })).await, 60);

    let opened = server.post("/byok/decrypt/many", json!({ "items": items })).await;
    assert_eq!(opened.body["items"][4]["plaintext"], "p-4", "{}", opened.body);
    limited(&server.post("/byok/decrypt/many", json!({ "items": items })).await, 60);
    let decrypt_many = json!({ "i": camel(&json!(items)) });
    limited_in_graphql(&server.graphql(&admin, DECRYPT_MANY, decrypt_many).await, 60);
    for row in reveal(&server, &items).await {
        assert_eq!(
            (&row["error"]["code"], &row["error"]["retryable"]),
            (&json!("RATE_LIMITED"), &json!(true))
        );
    }
}

#[tokio::test]
async fn items_past_the_budget_wait_unless_they_can_never_pass() {
    let server =
        TestServer::with(&[("BYOK_ENCRYPT_ITEMS_PER_MINUTE", "10"), ("BYOK_DECRYPT_ITEMS_PER_MINUTE", "10")])
            .await;
    let admin = server.jwt("admin", "the-admin");
    let items = tokens(&server, 8).await;
    // Eight of ten are used: five more must wait until three are free, at six seconds each.
    let many = json!({ "items": plain(5) });
    limited(&server.post("/byok/encrypt/many", many.clone()).await, 18);
    limited_in_graphql(&server.graphql(&admin, ENCRYPT_MANY, json!({ "i": camel(&plain(5)) })).await, 18);
    assert_eq!(server.post("/byok/encrypt", plain(1)[0].clone()).await.status, 200, "there is room for one");

    let never = server.post("/byok/encrypt/many", json!({ "items": plain(11) })).await;
    assert_eq!((never.status.as_u16(), &never.body["code"]), (413, &json!("TOO_MANY_ITEMS")));
    assert_eq!(never.body["retryable"], false);
    assert!(never.headers.get("retry-after").is_none(), "waiting would not help");
    assert!(never.body["detail"].as_str().unwrap().contains("never"), "{}", never.body);
    let never = server.graphql(&admin, ENCRYPT_MANY, json!({ "i": camel(&plain(11)) })).await;
    assert_eq!(never["errors"][0]["extensions"]["code"], "TOO_MANY_ITEMS", "{never}");
    assert!(never["errors"][0]["extensions"].get("retryAfterSeconds").is_none());

    let rows = reveal(&server, &items).await;
    assert_eq!(rows[7]["value"], "p-7");
    for row in reveal(&server, &items).await {
        assert_eq!(
            (&row["error"]["code"], &row["error"]["retryable"]),
            (&json!("RATE_LIMITED"), &json!(true))
        );
    }
    limited(&server.post("/byok/decrypt/many", json!({ "items": items })).await, 60);
    let twice: Vec<Value> = items.iter().chain(&items).cloned().collect();
    for row in reveal(&server, &twice).await {
        assert_eq!(
            (&row["error"]["code"], &row["error"]["retryable"]),
            (&json!("TOO_MANY_ITEMS"), &json!(false))
        );
    }
}

/// The most requests that a budget of this many a minute allows in this time, plus probes.
fn most(per_minute: u64, began: Instant) -> usize {
    let seconds = began.elapsed().as_secs() + 1;
    usize::try_from(per_minute + seconds * per_minute / 60 + seconds * 4).unwrap()
}

fn asked(relay: &Relay, names: &[&str]) -> usize {
    let counts = relay.state.counts.lock().unwrap();
    names.iter().filter_map(|name| counts.get(*name)).sum()
}

#[tokio::test]
async fn past_the_kms_budget_cold_decrypts_wait_and_hot_ones_continue() {
    const BUDGET: u64 = 240;
    let mut provider = Provided::vault().await;
    let relays = provider.relayed().await;
    let mut environment = provider.environment();
    let seeder = TestServer::with(&environment).await;
    let items = tokens(&seeder, 1_500).await;
    environment.push(("BYOK_KMS_CALLS_PER_MINUTE", "240"));
    let server = TestServer::on(seeder.key.clone(), seeder.database_url.clone(), &environment).await;
    let admin = server.jwt("admin", "a");
    let hot = &items[0];
    assert_eq!(server.post("/byok/decrypt", hot.clone()).await.status, 200);

    let (began, before) = (Instant::now(), asked(&relays[0], &["decrypt"]));
    let (mut opened, mut refused) = (0, 0);
    for some in items[1..1_001].chunks(50) {
        let calls = some.iter().map(|item| server.post("/byok/decrypt", item.clone()));
        for answer in futures_util::future::join_all(calls).await {
            if answer.status == 200 {
                opened += 1;
            } else {
                limited(&answer, 1);
                assert!(answer.body["detail"].as_str().unwrap().contains("KMS"), "{}", answer.body);
                refused += 1;
            }
        }
    }
    let seen = asked(&relays[0], &["decrypt"]) - before;
    assert!(seen <= most(BUDGET, began), "{seen} requests");
    assert!(opened > 0 && opened <= seen && refused > 0, "{opened} of {seen} opened, {refused} refused");

    for _ in 0..20 {
        assert_eq!(server.post("/byok/decrypt", hot.clone()).await.body["plaintext"], "p-0");
    }
    // The budget refills meanwhile, so each caller tries until nothing is left.
    let mut cold = items[1_001..].iter();
    let refused_in_graphql = loop {
        let item = cold.next().expect("the budget is spent");
        let variables = json!({ "c": item["ciphertext"], "r": item["record_id"] });
        let answer = server.graphql(&admin, DECRYPT, variables).await;
        if answer.get("errors").is_some() {
            break answer;
        }
    };
    limited_in_graphql(&refused_in_graphql, 1);
    let row = loop {
        let item = cold.next().expect("the budget is spent");
        let rows = reveal(&server, &[hot.clone(), item.clone()]).await;
        assert_eq!(rows[0]["value"], "p-0", "the hot row of the join is there");
        if rows[1]["error"] != Value::Null {
            break rows[1].clone();
        }
    };
    assert_eq!((&row["error"]["code"], &row["error"]["retryable"]), (&json!("RATE_LIMITED"), &json!(true)));
    let item = loop {
        let item = cold.next().expect("the budget is spent");
        let many = json!({ "items": [hot, item] });
        let answer = server.post("/byok/decrypt/many", many).await;
        assert_eq!(answer.body["items"][0]["plaintext"], "p-0");
        if answer.body["items"][1].get("error").is_some() {
            break answer.body["items"][1].clone();
        }
    };
    assert_eq!((&item["error"]["code"], &item["error"]["retryable"]), (&json!("RATE_LIMITED"), &json!(true)));
    assert_eq!(
        server.get("/byok/health").await.body["status"],
        "OK",
        "the key is well: a probe goes through"
    );
    let times_logged = server.logged().matches("BYOK_KMS_CALLS_PER_MINUTE").count();
    assert!((1..=3).contains(&times_logged), "logged {times_logged} times, and not for each call");
}

/// Of a batch of twenty, ten are sent and the others are refused; then only probes are sent. A
/// provider that takes a whole batch in one request has used one.
async fn not_one_more_than_the_budget_goes_out(mut provider: Provided, batch: bool, names: &[&str]) {
    let relays = provider.relayed().await;
    provider.variables.push(("BYOK_KMS_CALLS_PER_MINUTE".to_owned(), "10".to_owned()));
    let kms = provider.kms();
    let bindings = [binding(); 20];
    let began = Instant::now();
    let answers = kms.generate(&bindings).await;
    let made = answers.iter().filter(|answer| answer.is_ok()).count();
    for error in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!((error.class, error.class.verdict()), (KmsErrorClass::BudgetSpent, Verdict::Unasked));
        assert!(error.retry_after.is_some_and(|wait| wait <= Duration::from_secs(6)));
    }
    assert_eq!(made, if batch { 20 } else { made.min(10) });
    let last = loop {
        let answer = kms.generate(&bindings[..1]).await.remove(0);
        if let Err(error) = answer {
            break error;
        }
    };
    assert_eq!(last.class, KmsErrorClass::BudgetSpent);
    // The budget refills by one in six seconds.
    let refilled = usize::try_from(began.elapsed().as_secs() / 6).unwrap();
    let seen = asked(&relays[0], names);
    // One of the ten may be AWS's list of the key's versions, which is requested once and not
    // refused.
    assert!((9..=10 + refilled).contains(&seen), "{seen}: {:?}", relays[0].state.counts.lock().unwrap());

    let probe = DekBinding { purpose: Purpose::Probe, ..binding() };
    let wrapped = kms.generate(&[probe]).await.remove(0).expect("a probe is never refused").value.wrapped;
    assert!(kms.unwrap(&[(probe, wrapped.clone())]).await.remove(0).is_ok());
    let as_record = kms.unwrap(&[(binding(), wrapped)]).await.remove(0);
    assert!(as_record.is_err_and(|error| error.class == KmsErrorClass::BudgetSpent));
}

#[tokio::test]
async fn not_one_request_more_than_the_budget_goes_to_vault() {
    not_one_more_than_the_budget_goes_out(Provided::vault().await, true, &["encrypt"]).await;
}

#[tokio::test]
async fn not_one_request_more_than_the_budget_goes_to_google() {
    not_one_more_than_the_budget_goes_out(Provided::gcp().await, false, &["encrypt"]).await;
}

#[tokio::test]
async fn not_one_request_more_than_the_budget_goes_to_aws() {
    not_one_more_than_the_budget_goes_out(Provided::aws().await, false, &["GenerateDataKey"]).await;
}

#[tokio::test]
async fn not_one_request_more_than_the_budget_goes_to_azure() {
    not_one_more_than_the_budget_goes_out(Provided::azure().await, false, &["wrapkey"]).await;
}

#[tokio::test]
async fn a_probes_dek_is_marked_by_context_and_opens_nothing_else() {
    for provider in [Provided::gcp().await, Provided::aws().await] {
        let kms = provider.kms();
        let record = binding();
        let probe = DekBinding { purpose: Purpose::Probe, ..record };
        let wrapped = kms.generate(&[probe]).await.remove(0).expect("it is made").value.wrapped;
        assert!(kms.unwrap(&[(probe, wrapped.clone())]).await.remove(0).is_ok());
        assert!(kms.unwrap(&[(record, wrapped.clone())]).await.remove(0).is_err());
        let version = wrapped.key_version.clone();
        let again =
            kms.rewrap(&[(probe, wrapped)], &version).await.remove(0).expect("it is re-wrapped").value;
        assert!(kms.unwrap(&[(probe, again)]).await.remove(0).is_ok());
    }
}

#[tokio::test]
async fn retries_are_taken_from_the_budget() {
    let mut provider = Provided::vault().await;
    let relays = provider.relayed().await;
    provider.variables.push(("BYOK_KMS_CALLS_PER_MINUTE".to_owned(), "10".to_owned()));
    relays[0].say(Some(Box::new(|| (StatusCode::INTERNAL_SERVER_ERROR, "{}").into_response())));
    let kms = provider.kms();
    let began = Instant::now();
    let mut classes = Vec::new();
    for _ in 0..8 {
        classes.push(kms.generate(&[binding()]).await.remove(0).err().unwrap().class);
    }
    let refilled = usize::try_from(began.elapsed().as_secs() / 6).unwrap();
    let seen = asked(&relays[0], &["encrypt"]);
    assert!((10..=10 + refilled).contains(&seen), "{seen}");
    // Three tries each, and one more: the provider's error is returned even if the budget has no
    // room for a retry.
    assert_eq!(classes[..4], [KmsErrorClass::Internal; 4]);
    assert!(classes.contains(&KmsErrorClass::BudgetSpent));
}

#[tokio::test]
async fn a_rotation_leaves_half_of_the_budget_and_loses_nothing() {
    const RECORDS: usize = 180;
    let provider = Provided::gcp().await;
    let mut environment = provider.environment();
    environment.push(("BYOK_DEK_CACHE_SECONDS", "0"));
    let mut seeder = TestServer::with(&environment).await;
    let items = tokens(&seeder, RECORDS).await;
    seeder.stop().await;
    (provider.rotate)().await;
    // Each re-wrap is two calls: three hundred at once, the other sixty at five a second.
    environment.push(("BYOK_KMS_CALLS_PER_MINUTE", "600"));
    let server = TestServer::on(seeder.key.clone(), seeder.database_url.clone(), &environment).await;
    let began = Instant::now();
    let started = server.post("/byok/rotate", json!({})).await;
    assert_eq!(started.status, 202, "{}", started.body);
    let path = format!("/byok/rotate/{}", started.body["id"].as_str().unwrap());
    let mut slowed = false;
    let job = loop {
        let job = server.get(&path).await.body;
        assert_eq!(job["failed"], 0, "{job}");
        assert!(matches!(job["stalled"].as_str(), None | Some("RATE_LIMITED")), "{job}");
        if !slowed && job["rewrapped"].as_u64().is_some_and(|done| done > 120) && job["state"] == "RUNNING" {
            slowed = true;
            for item in &items[..20] {
                let answer = server.post("/byok/decrypt", item.clone()).await;
                assert_eq!(answer.status, 200, "callers have the other half: {}", answer.body);
            }
        }
        if job["state"] == "DONE" {
            break job;
        }
        assert!(began.elapsed() < Duration::from_secs(90), "{job}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(slowed && began.elapsed() > Duration::from_secs(8), "{:?}: {job}", began.elapsed());
    assert_eq!((&job["rewrapped"], &job["total"]), (&json!(RECORDS), &json!(RECORDS)), "{job}");
    assert_eq!(job["kms_calls"], 2 * RECORDS, "none was made for nothing: {job}");
    let versions: Vec<(String, i64)> =
        sqlx::query_as("SELECT key_version, count(*) FROM np_byok_wrapped_deks GROUP BY 1")
            .fetch_all(&server.database().await)
            .await
            .unwrap();
    assert_eq!(versions, [("2".to_owned(), RECORDS as i64)]);
    let audit = server.get("/byok/audit?operation=rotate&first=500").await;
    let entries = audit.body["entries"].as_array().unwrap();
    let recorded: usize = entries.iter().map(|entry| entry["items"].as_array().unwrap().len()).sum();
    assert_eq!(recorded, RECORDS, "each DEK stands in an entry once");
    let answer = server.post("/byok/decrypt/many", json!({ "items": items })).await;
    for (n, item) in answer.body["items"].as_array().unwrap().iter().enumerate() {
        // An item beyond the budget is refused as such, and succeeds later.
        let opened = item["plaintext"] == format!("p-{n}");
        assert!(opened || item["error"]["code"] == "RATE_LIMITED", "{item}");
    }
}

/// One mutation with this many root fields, each a call of its own.
fn roots(count: usize, ciphertext: &str, record_id: &str) -> String {
    let root = |n| {
        format!("f{n}: byokDecrypt(ciphertext: \"{ciphertext}\", recordId: \"{record_id}\") {{ plaintext }} ")
    };
    format!("mutation {{ {} }}", (0..count).map(root).collect::<String>())
}

/// The number of root fields that were answered, and of those that were refused with this code.
fn counted(answer: &Value, code: &str) -> (usize, usize) {
    let answered =
        answer["data"].as_object().map_or(0, |data| data.values().filter(|root| !root.is_null()).count());
    let errors = answer["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    (answered, errors.iter().filter(|error| error["extensions"]["code"] == code).count())
}

#[tokio::test]
async fn the_junk_of_one_user_uses_only_their_own_share() {
    let server = TestServer::with(&[("BYOK_DECRYPT_RATE_RPM", "100")]).await;
    let token = server.encrypt("p", "r").await;
    let (greedy, other) = (server.jwt("service", "greedy"), server.jwt("service", "other"));
    for ciphertext in ["junk", token.as_str()] {
        // Not a token; and a token that cannot be decrypted in this context.
        let answer = server.graphql(&greedy, &roots(300, ciphertext, "not-r"), Value::Null).await;
        assert_eq!(counted(&answer, "RATE_LIMITED").0, 0, "{ciphertext}");
        assert!(counted(&answer, "RATE_LIMITED").1 >= 190, "their own share is used up: {answer}");
    }
    // When two users have called in a minute, each has half of it; the junk used none of the
    // other's half.
    let answer = server.graphql(&other, &roots(45, &token, "r"), Value::Null).await;
    assert_eq!(counted(&answer, "RATE_LIMITED"), (45, 0), "nothing of it was used up: {answer}");
    let empty =
        (0..300).map(|n| format!("f{n}: byokDecryptMany(items: []) {{ plaintext }} ")).collect::<String>();
    server.graphql(&server.jwt("service", "third"), &format!("mutation {{ {empty} }}"), Value::Null).await;
    let entries: i64 = sqlx::query_scalar("SELECT count(*) FROM np_byok_audit WHERE user_id <> 'the-admin'")
        .fetch_one(&server.database().await)
        .await
        .unwrap();
    // One minute's worth of refusals, the successful calls, and refills meanwhile; further refusals
    // leave no entries.
    assert!((145..=330).contains(&entries), "{entries}");
}

#[tokio::test]
async fn one_user_has_the_whole_minute_and_two_nearly_half_each() {
    let server = TestServer::with(&[("BYOK_DECRYPT_RATE_RPM", "600")]).await;
    let token = server.encrypt("p", "r").await;
    let ask = async |user: &str, roots_at_once: usize| {
        let query = roots(roots_at_once, &token, "r");
        let answer = server.graphql(&server.jwt("service", user), &query, Value::Null).await;
        counted(&answer, "RATE_LIMITED").0
    };
    assert_eq!(ask("alone", 150).await + ask("alone", 150).await, 300);
    // From here on there are two users.
    let (mut first, mut second) = (0, 0);
    for _ in 0..6 {
        let (of_first, of_second) = tokio::join!(ask("alone", 100), ask("second", 100));
        first += of_first;
        second += of_second;
    }
    assert!(first >= 140 && second >= 140, "{first} and {second} of some 300");
    let whole = TestServer::with(&[("BYOK_DECRYPT_RATE_RPM", "600")]).await;
    let token = whole.encrypt("p", "r").await;
    let mut alone = 0;
    for _ in 0..4 {
        let query = roots(150, &token, "r");
        let answer = whole.graphql(&whole.jwt("service", "alone"), &query, Value::Null).await;
        alone += counted(&answer, "RATE_LIMITED").0;
    }
    assert_eq!(alone, 600);
}
