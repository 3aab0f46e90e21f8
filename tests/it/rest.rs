//! REST, as the original specification prints it.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::server::{TestServer, answer};

#[tokio::test]
async fn what_is_encrypted_can_be_decrypted_with_the_same_context() {
    let server = TestServer::start().await;
    let body = json!({ "plaintext": "sensitive-data", "context": { "record_id": "user-123" } });
    let encrypted = server.post("/byok/encrypt", body).await;
    assert_eq!(encrypted.status, 200);
    let fields: Vec<&String> = encrypted.body.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["ciphertext", "key_version"], "the specification's fields and no others");
    assert!(encrypted.body["ciphertext"].as_str().unwrap().starts_with("byok:v1:"));
    assert_eq!(encrypted.body["key_version"], format!("{}/1", server.key.name));
    let decrypted = server.decrypt(encrypted.body["ciphertext"].as_str().unwrap(), "user-123").await;
    assert_eq!((decrypted.status.as_u16(), decrypted.body), (200, json!({ "plaintext": "sensitive-data" })));
}

#[tokio::test]
async fn the_seeds_curl_lines_run_verbatim() {
    let server = TestServer::start().await;
    // The specification's lines, with this server's host.
    let encrypt = r#"curl -X POST https://api.yoursite.com/byok/encrypt \
-H "Authorization: Bearer $ADMIN_TOKEN" \
-d '{"plaintext": "sensitive-data", "context": {"record_id": "user-123"}}'"#;
    let decrypt = r#"curl -X POST https://api.yoursite.com/byok/decrypt \
-H "Authorization: Bearer $ADMIN_TOKEN" \
-d '{"ciphertext": "byok:v1:...", "context": {"record_id": "user-123"}}'"#;
    let run = |line: String| {
        let base = server.base.clone();
        let token = server.jwt("admin", "the-admin");
        async move {
            let line = line.replace("https://api.yoursite.com", &base);
            let output = tokio::process::Command::new("sh")
                .args(["-c", &line])
                .env("ADMIN_TOKEN", token)
                .output()
                .await
                .unwrap();
            serde_json::from_slice::<Value>(&output.stdout).unwrap()
        }
    };
    let encrypted = run(encrypt.to_owned()).await;
    let decrypted = run(decrypt.replace("byok:v1:...", encrypted["ciphertext"].as_str().unwrap())).await;
    assert_eq!(decrypted, json!({ "plaintext": "sensitive-data" }));
}

#[tokio::test]
async fn one_record_has_one_dek() {
    let server = TestServer::start().await;
    server.encrypt("a", "r-1").await;
    server.encrypt("b", "r-1").await;
    server.encrypt("c", "r-2").await;
    let deks: i64 = sqlx::query_scalar("SELECT count(*) FROM np_byok_wrapped_deks")
        .fetch_one(&server.database().await)
        .await
        .unwrap();
    assert_eq!(deks, 2);
}

#[tokio::test]
async fn many_values_are_one_entry_and_fail_one_by_one() {
    let server = TestServer::start().await;
    let items = json!({ "items": [
        { "plaintext": "a", "record_id": "r-1" },
        { "plaintext": "b", "record_id": "r-1", "context": { "record_id": "r-2" } },
        { "plaintext": "AP8=", "record_id": "r-2", "encoding": "BASE64" },
    ]});
    let encrypted = server.post("/byok/encrypt/many", items).await;
    assert_eq!(encrypted.status, 200, "{}", encrypted.body);
    assert_eq!(encrypted.body["items"][1]["error"]["code"], "CONTEXT_CONFLICT");
    let token = |index: usize| encrypted.body["items"][index]["ciphertext"].clone();
    let items = json!({ "items": [
        { "ciphertext": token(0), "record_id": "r-1" },
        { "ciphertext": token(0), "record_id": "r-2" },
        { "ciphertext": token(2), "record_id": "r-2", "encoding": "BASE64" },
        { "ciphertext": token(2), "record_id": "r-2" },
    ]});
    let decrypted = server.post("/byok/decrypt/many", items).await;
    assert_eq!(decrypted.body["items"][0], json!({ "plaintext": "a" }));
    assert_eq!(decrypted.body["items"][1]["error"]["code"], "DECRYPT_FAILED");
    assert_eq!(decrypted.body["items"][2], json!({ "plaintext": "AP8=" }));
    assert_eq!(decrypted.body["items"][3]["error"]["code"], "NOT_TEXT");
    let audit = server.get("/byok/audit?operation=decrypt").await;
    assert_eq!(audit.body["entries"].as_array().unwrap().len(), 1);
    assert_eq!(audit.body["entries"][0]["outcome"], "PARTIAL");
    assert_eq!(audit.body["entries"][0]["items"][1]["outcome"], "DECRYPT_FAILED");
}

#[tokio::test]
async fn a_call_of_refused_items_is_refused_and_names_each_record() {
    let server = TestServer::start().await;
    let items = json!({ "items": [
        { "plaintext": "AP8", "record_id": "r-1", "encoding": "BASE64" },
        { "plaintext": "b", "record_id": "r-1", "context": { "record_id": "r-2" } },
    ]});
    let encrypted = server.post("/byok/encrypt/many", items).await;
    assert_eq!(encrypted.status, 200, "{}", encrypted.body);
    assert_eq!(encrypted.body["items"][0]["error"]["code"], "ENCODING_INVALID");
    assert_eq!(encrypted.body["items"][1]["error"]["code"], "CONTEXT_CONFLICT");
    let service = server.jwt("service", "u-1");
    let query =
        "mutation { byokEncrypt(plaintext: \"AP8\", recordId: \"r-3\", encoding: BASE64) { ciphertext } }";
    let answer = server.graphql(&service, query, json!(null)).await;
    assert_eq!(answer["errors"][0]["extensions"]["code"], "ENCODING_INVALID", "{answer}");
    let audit = server.get("/byok/audit?operation=encrypt").await;
    let entries = &audit.body["entries"];
    assert_eq!(entries[1]["outcome"], "ENCODING_INVALID", "that of the first item: {entries}");
    assert_eq!(entries[1]["items"][0]["record_id"], "r-1");
    assert_eq!(
        entries[1]["items"][1]["record_id"],
        Value::Null,
        "it is ambiguous which of the two was meant"
    );
    assert_eq!(entries[0]["items"][0]["record_id"], "r-3");
}

#[tokio::test]
async fn bad_input_gets_a_clear_error_and_loses_nothing() {
    let server =
        TestServer::with(&[("BYOK_MAX_PLAINTEXT_BYTES", "1048576"), ("BYOK_MAX_BODY_BYTES", "2000000")])
            .await;
    let token = server.encrypt("kept", "r").await;
    let encrypt = |body: Value| (body, "/byok/encrypt");
    let decrypt = |body: Value| (body, "/byok/decrypt");
    let context = |context: Value| json!({ "plaintext": "p", "context": context });
    let many_pairs: serde_json::Map<String, Value> = (0..65).map(|n| (format!("k{n}"), json!("v"))).collect();
    let future = token.replace("byok:v1:", "byok:v2:");
    let cases = [
        (encrypt(json!({})), "REQUEST_MALFORMED"),
        (encrypt(json!([])), "REQUEST_MALFORMED"),
        (encrypt(json!(["p", { "record_id": "r" }, null, null, null])), "REQUEST_MALFORMED"),
        (decrypt(json!([token, { "record_id": "r" }, null, null, null])), "REQUEST_MALFORMED"),
        ((json!([[]]), "/byok/encrypt/many"), "REQUEST_MALFORMED"),
        (
            (json!({ "items": [["p", { "record_id": "r" }, null, null, null]] }), "/byok/encrypt/many"),
            "REQUEST_MALFORMED",
        ),
        (
            (json!({ "items": [[token, { "record_id": "r" }, null, null, null]] }), "/byok/decrypt/many"),
            "REQUEST_MALFORMED",
        ),
        ((json!([]), "/byok/rotate"), "REQUEST_MALFORMED"),
        ((json!([true]), "/byok/rotate"), "REQUEST_MALFORMED"),
        (encrypt(json!({ "plaintext": 1, "context": { "record_id": "r" } })), "REQUEST_MALFORMED"),
        (
            encrypt(json!({ "plaintext": "p", "context": { "record_id": "r" }, "tenant": "t" })),
            "REQUEST_MALFORMED",
        ),
        (encrypt(json!({ "plaintext": "p" })), "RECORD_ID_REQUIRED"),
        (encrypt(context(json!({}))), "RECORD_ID_REQUIRED"),
        (encrypt(context(json!({ "record_id": "" }))), "RECORD_ID_REQUIRED"),
        (encrypt(context(json!("r"))), "CONTEXT_INVALID"),
        (encrypt(context(json!(["r"]))), "CONTEXT_INVALID"),
        (encrypt(context(json!({ "record_id": { "a": "b" } }))), "CONTEXT_INVALID"),
        (encrypt(context(json!({ "record_id": 7 }))), "CONTEXT_INVALID"),
        (encrypt(context(json!({ "record_id": "a\0b" }))), "CONTEXT_INVALID"),
        (encrypt(context(json!(many_pairs))), "CONTEXT_TOO_LARGE"),
        (encrypt(context(json!({ "record_id": "x".repeat(20_000) }))), "CONTEXT_TOO_LARGE"),
        (
            encrypt(json!({ "plaintext": "p", "record_id": "a", "context": { "record_id": "b" } })),
            "CONTEXT_CONFLICT",
        ),
        (encrypt(json!({ "plaintext": "!", "record_id": "r", "encoding": "BASE64" })), "ENCODING_INVALID"),
        (encrypt(json!({ "plaintext": "x".repeat((1 << 20) + 1), "record_id": "r" })), "PLAINTEXT_TOO_LARGE"),
        (encrypt(json!({ "plaintext": "x".repeat(3_000_000), "record_id": "r" })), "BODY_TOO_LARGE"),
        (decrypt(json!({ "ciphertext": "", "record_id": "r" })), "TOKEN_MALFORMED"),
        (decrypt(json!({ "ciphertext": "hello", "record_id": "r" })), "TOKEN_MALFORMED"),
        (decrypt(json!({ "ciphertext": token[..40], "record_id": "r" })), "TOKEN_MALFORMED"),
        (decrypt(json!({ "ciphertext": format!("{token}="), "record_id": "r" })), "TOKEN_MALFORMED"),
        (decrypt(json!({ "ciphertext": future, "record_id": "r" })), "TOKEN_VERSION_UNSUPPORTED"),
        (decrypt(json!({ "ciphertext": token, "record_id": "another" })), "DECRYPT_FAILED"),
        (decrypt(json!({ "ciphertext": token, "record_id": "r", "field": "f" })), "DECRYPT_FAILED"),
    ];
    for ((body, path), expected) in cases {
        let shown: String = body.to_string().chars().take(120).collect();
        let refused = server.post(path, body).await;
        assert_eq!(refused.body["code"], expected, "{path} {shown}");
        assert_eq!(refused.headers["content-type"], "application/problem+json");
        assert!(refused.status.is_client_error(), "{shown}");
    }
    assert_eq!(server.decrypt(&token, "r").await.body["plaintext"], "kept");
}

#[tokio::test]
async fn what_is_no_json_is_refused_without_an_echo() {
    let server = TestServer::start().await;
    let admin = server.jwt("admin", "a");
    let send = |bytes: Vec<u8>| {
        server.client.post(format!("{}/byok/encrypt", server.base)).bearer_auth(&admin).body(bytes)
    };
    for body in [
        b"".to_vec(),
        b"CANARY".to_vec(),
        b"{\"plaintext\": \"CANARY".to_vec(),
        b"{\"plaintext\": \"CANARY\xff\", \"record_id\": \"r\"}".to_vec(),
        b"{\"CANARY\": 1}".to_vec(),
        b"{\"plaintext\": \"p\", \"encoding\": \"CANARY\", \"record_id\": \"r\"}".to_vec(),
        b"{\"plaintext\": \"p\", \"context\": {\"record_id\": \"CANARY\", \"record_id\": \"r\"}}".to_vec(),
        format!("{}{}", "[".repeat(5_000), "]".repeat(5_000)).into_bytes(),
    ] {
        let refused = answer(send(body)).await;
        assert_eq!(refused.status, 400);
        assert!(!refused.body.to_string().contains("CANARY"), "{}", refused.body);
    }
    assert!(!server.logged().contains("CANARY"));
}

#[tokio::test]
async fn an_unroutable_request_is_refused_by_a_problem_document_too() {
    let server = TestServer::start().await;
    let request = |method: Method, path: &str| {
        let request = server.client.request(method, format!("{}{path}", server.base));
        request.bearer_auth(server.jwt("admin", "a"))
    };
    let encoded =
        request(Method::POST, "/byok/encrypt").header("content-encoding", "gzip").body(vec![0x1f, 0x8b]);
    for (request, status, code) in [
        (request(Method::GET, "/byok/nothing"), 404, "NOT_FOUND"),
        (request(Method::GET, "/byok/encrypt/%ff"), 404, "NOT_FOUND"),
        (request(Method::GET, "/byok/encrypt"), 405, "METHOD_NOT_ALLOWED"),
        (request(Method::POST, "/metrics"), 405, "METHOD_NOT_ALLOWED"),
        (request(Method::POST, "/graphiql"), 405, "METHOD_NOT_ALLOWED"),
        (request(Method::GET, "/graphiql/%ff"), 404, "NOT_FOUND"),
        (request(Method::GET, "/graphiql/nothing.js"), 404, "NOT_FOUND"),
        (request(Method::GET, "/byok/rotate/%ff"), 400, "REQUEST_MALFORMED"),
        (request(Method::GET, "/byok/audit?%ff"), 400, "REQUEST_MALFORMED"),
        (encoded, 415, "MEDIA_TYPE_UNSUPPORTED"),
    ] {
        let refused = answer(request).await;
        assert_eq!((refused.status.as_u16(), &refused.body["code"]), (status, &json!(code)));
        assert_eq!(refused.headers["content-type"], "application/problem+json");
        assert_eq!(refused.headers.contains_key("allow"), status == 405, "{:?}", refused.headers);
        assert_eq!(refused.headers.contains_key("accept-encoding"), status == 415);
        let members: Vec<&String> = refused.body.as_object().unwrap().keys().collect();
        assert_eq!(members, ["code", "detail", "retryable", "status", "title", "type"]);
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_named() {
    let server = TestServer::start().await;
    let token = server.encrypt("p", "r").await;
    for (path, body, code, field) in [
        ("/byok/encrypt", json!({ "record_id": "r" }), "REQUEST_MALFORMED", json!("plaintext")),
        ("/byok/encrypt", json!({ "plaintext": 7 }), "REQUEST_MALFORMED", json!("plaintext")),
        (
            "/byok/encrypt",
            json!({ "plaintext": "", "encoding": "HEX" }),
            "REQUEST_MALFORMED",
            json!("encoding"),
        ),
        ("/byok/encrypt", json!({ "plaintext": "", "C4N4RY": 1 }), "REQUEST_MALFORMED", Value::Null),
        (
            "/byok/encrypt",
            json!({ "plaintext": "!", "record_id": "r", "encoding": "BASE64" }),
            "ENCODING_INVALID",
            json!("plaintext"),
        ),
        (
            "/byok/encrypt",
            json!({ "plaintext": "", "context": { "record_id": 7 } }),
            "CONTEXT_INVALID",
            json!("context"),
        ),
        (
            "/byok/encrypt",
            json!({ "plaintext": "", "record_id": "r", "context": { "record_id": "s" } }),
            "CONTEXT_CONFLICT",
            json!("record_id"),
        ),
        (
            "/byok/encrypt/many",
            json!({ "items": [{ "plaintext": "" }, { "plaintext": "", "field": [] }] }),
            "REQUEST_MALFORMED",
            json!("items[1].field"),
        ),
        (
            "/byok/decrypt",
            json!({ "ciphertext": "C4N4RY", "record_id": "r" }),
            "TOKEN_MALFORMED",
            json!("ciphertext"),
        ),
        ("/byok/decrypt", json!({ "ciphertext": token, "record_id": "s" }), "DECRYPT_FAILED", Value::Null),
        ("/byok/rotate", json!({ "dry_run": "yes" }), "REQUEST_MALFORMED", json!("dry_run")),
    ] {
        let refused = server.post(path, body.clone()).await;
        assert_eq!((&refused.body["code"], &refused.body["field"]), (&json!(code), &field), "{body}");
        assert!(!refused.body.to_string().contains("C4N4RY"), "{}", refused.body);
    }
    let many =
        server.post("/byok/decrypt/many", json!({ "items": [{ "ciphertext": "", "record_id": "r" }] })).await;
    let error = many.body.get("items").map_or(&many.body, |items| &items[0]["error"]);
    assert_eq!(error["field"], "ciphertext", "{}", many.body);
    let admin = server.jwt("admin", "a");
    for (query, field) in [
        ("first=x", json!("first")),
        ("first=0", json!("first")),
        ("from=C4N4RY", json!("from")),
        ("operation=C4N4RY", json!("operation")),
        ("after=C4N4RY", json!("after")),
        ("C4N4RY=1", Value::Null),
    ] {
        let asked = server.client.get(format!("{}/byok/audit?{query}", server.base)).bearer_auth(&admin);
        let refused = answer(asked).await;
        assert_eq!(refused.body["field"], field, "{query}: {}", refused.body);
        assert!(!refused.body.to_string().contains("C4N4RY"), "{}", refused.body);
    }
}

#[tokio::test]
async fn a_request_names_one_host() {
    let server = TestServer::start().await;
    for (hosts, status) in
        [("", "HTTP/1.1 400"), ("host: a\r\nhost: a\r\n", "HTTP/1.1 400"), ("host: a\r\n", "HTTP/1.1 200")]
    {
        let mut stream =
            tokio::net::TcpStream::connect(server.base.strip_prefix("http://").unwrap()).await.unwrap();
        let head = format!("GET /live HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(status), "{answer}");
        assert_eq!(answer.contains("REQUEST_MALFORMED"), status.ends_with("400"), "{answer}");
    }
}

#[tokio::test]
async fn a_plaintext_may_be_empty_or_a_mebibyte() {
    let server = TestServer::start().await;
    for plaintext in [String::new(), "ü".repeat(1 << 19)] {
        let token = server.encrypt(&plaintext, "r").await;
        assert_eq!(server.decrypt(&token, "r").await.body["plaintext"], plaintext);
    }
}

#[tokio::test]
async fn a_request_id_is_taken_returned_and_recorded() {
    let server = TestServer::start().await;
    let request = server
        .client
        .post(format!("{}/byok/encrypt", server.base))
        .bearer_auth(server.jwt("admin", "a"))
        .header("X-Request-Id", "my-request")
        .body(r#"{"plaintext": "p", "record_id": "r"}"#);
    assert_eq!(answer(request).await.headers["x-request-id"], "my-request");
    let made = server.get("/live").await;
    assert!(!made.headers["x-request-id"].is_empty());
    let audit = server.get("/byok/audit?operation=encrypt").await;
    assert_eq!(audit.body["entries"][0]["request_id"], "my-request");
}

#[tokio::test]
async fn the_audit_log_pages_by_cursor_and_filters() {
    let server = TestServer::start().await;
    let user = server.jwt("service", "u-1");
    for n in 0..5 {
        let body = json!({ "plaintext": "p", "context": { "record_id": format!("r-{n}") } });
        assert_eq!(server.call(Method::POST, "/byok/encrypt", &user, Some(body)).await.status, 200);
    }
    let mut seen = Vec::new();
    let mut path = "/byok/audit?operation=encrypt&user=u-1&outcome=OK&first=2".to_owned();
    loop {
        let page = server.get(&path).await;
        assert_eq!(page.status, 200, "{}", page.body);
        let entries = page.body["entries"].as_array().unwrap().clone();
        assert!(entries.len() <= 2);
        seen.extend(entries.iter().map(|entry| entry["items"][0]["record_id"].as_str().unwrap().to_owned()));
        match page.body["next"].as_str() {
            Some(next) => {
                path = format!("/byok/audit?operation=encrypt&user=u-1&outcome=OK&first=2&after={next}")
            }
            None => break,
        }
    }
    assert_eq!(seen, ["r-4", "r-3", "r-2", "r-1", "r-0"], "newest first, each once");
    let one = server.get("/byok/audit?record_id=r-3").await;
    assert_eq!(one.body["entries"].as_array().unwrap().len(), 1);
    let none = server.get("/byok/audit?until=2020-01-01T00:00:00Z").await;
    assert_eq!(none.body["entries"], json!([]));
    for bad in [
        "first=0",
        "first=501",
        "first=x",
        "after=x",
        "from=yesterday",
        "operation=x",
        "outcome=x",
        "tenant=x",
    ] {
        let refused = server.get(&format!("/byok/audit?{bad}")).await;
        assert_eq!(refused.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn every_operation_of_the_openapi_document_is_served() {
    let server = TestServer::start().await;
    let document = server.get("/openapi.json").await.body;
    assert_eq!(document["openapi"], "3.1.0");
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let stranger = server.client.request(method.clone(), format!("{}{path}", server.base));
            let status = answer(stranger).await.status;
            let expected = if path.ends_with("/health") { 200 } else { 401 };
            assert_eq!(status, expected, "{method} {path} for a stranger");
        }
    }
}

#[tokio::test]
async fn health_answers_under_every_alias() {
    let server = TestServer::start().await;
    for path in [
        "/byok/health",
        "/health",
        "/healthz",
        "/ready",
        "/readyz",
        "/live",
        "/livez",
        "/version",
        "/capabilities",
    ] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    let health = server.get("/byok/health").await.body;
    assert_eq!(health["migrations"]["applied"], health["migrations"]["expected"]);
    assert_eq!(health["audit_protected"], false, "the tests serve as a superuser");
    assert_eq!(health["key_version"], format!("{}/1", server.key.name));
    let document = server.get("/openapi.json").await.body;
    let described = document["components"]["schemas"]["Health"]["properties"].as_object().unwrap();
    for member in health.as_object().unwrap().keys() {
        assert!(described.contains_key(member), "{member} is in the description");
    }
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.as_str().unwrap().contains("byok_requests_total"));
}

#[tokio::test]
async fn over_the_limit_a_call_is_told_when_to_come_back() {
    let server = TestServer::with(&[("BYOK_ENCRYPT_RATE_RPM", "2")]).await;
    for _ in 0..2 {
        server.encrypt("p", "r").await;
    }
    let refused = server.post("/byok/encrypt", json!({ "plaintext": "p", "record_id": "r" })).await;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (429, &json!("RATE_LIMITED")));
    let seconds: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds));
}
