//! GraphQL, end to end.

use std::fmt::Write as _;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::server::{TestServer, answer};

/// A join as Hasura sends it: one aliased root for each row, with its values in the text.
fn join<'a>(rows: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut query = String::from("query {");
    for (n, (ciphertext, record_id)) in rows.into_iter().enumerate() {
        write!(query, " f{n}: byokReveal(ciphertext: \"{ciphertext}\", recordId: \"{record_id}\") {{ value form error {{ code message retryable }} }}").unwrap();
    }
    query + " }"
}

/// The entries of one operation, newest first: outcome and number of items.
async fn entries(server: &TestServer, operation: &str) -> Vec<(String, u64)> {
    let query = "query($o: ByokOperation) { byokAudit(filter: {operation: $o}) { edges { node { outcome itemCount } } } }";
    let answer = server.graphql(&server.jwt("admin", "a"), query, json!({ "o": operation })).await;
    let edges = answer["data"]["byokAudit"]["edges"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let entry = |edge: &Value| {
        (edge["node"]["outcome"].as_str().unwrap().to_owned(), edge["node"]["itemCount"].as_u64().unwrap())
    };
    edges.iter().map(entry).collect()
}

fn code(answer: &Value) -> &str {
    answer["errors"][0]["extensions"]["code"].as_str().unwrap_or_else(|| panic!("no error in {answer}"))
}

#[tokio::test]
async fn what_is_encrypted_can_be_decrypted_by_both_fronts() {
    let server = TestServer::start().await;
    let service = server.jwt("service", "u-1");
    let query = "mutation($p: String!, $r: ID, $c: jsonb) {
        byokEncrypt(plaintext: $p, recordId: $r, context: $c) { ciphertext keyVersion } }";
    let encrypted = server.graphql(&service, query, json!({ "p": "żółć", "r": "user-123", "c": null })).await;
    let ciphertext =
        encrypted["data"]["byokEncrypt"]["ciphertext"].as_str().unwrap_or_else(|| panic!("{encrypted}"));
    assert!(ciphertext.starts_with("byok:v1:"));

    let query = "mutation($c: String!, $r: ID!) { byokDecrypt(ciphertext: $c, recordId: $r) { plaintext keyVersion } }";
    let decrypted = server.graphql(&service, query, json!({ "c": ciphertext, "r": "user-123" })).await;
    assert_eq!(decrypted["data"]["byokDecrypt"]["plaintext"], "żółć");
    assert_eq!(
        decrypted["data"]["byokDecrypt"]["keyVersion"],
        encrypted["data"]["byokEncrypt"]["keyVersion"]
    );
    assert_eq!(server.decrypt(ciphertext, "user-123").await.body, json!({ "plaintext": "żółć" }));

    let over_rest = server.encrypt("by REST", "user-123").await;
    let decrypted = server.graphql(&service, query, json!({ "c": over_rest, "r": "user-123" })).await;
    assert_eq!(decrypted["data"]["byokDecrypt"]["plaintext"], "by REST");
}

#[tokio::test]
async fn many_items_are_one_entry_and_fail_one_by_one() {
    let server = TestServer::start().await;
    let service = server.jwt("service", "u-1");
    let query = "mutation($i: [ByokEncryptItem!]!) { byokEncryptMany(items: $i) { ciphertext keyVersion error { code retryable } } }";
    let items = json!([
        { "plaintext": "a", "recordId": "r-1", "context": { "org": "o" } },
        { "plaintext": "b", "recordId": "r-1", "context": { "record_id": "r-2" } },
        { "plaintext": "AP8=", "recordId": "r-2", "encoding": "BASE64" },
        { "plaintext": "AP8", "recordId": "r-2", "encoding": "BASE64" },
    ]);
    let encrypted = server.graphql(&service, query, json!({ "i": items })).await;
    let encrypted = &encrypted["data"]["byokEncryptMany"];
    assert_eq!(
        encrypted[1],
        json!({ "ciphertext": null, "keyVersion": null, "error": { "code": "CONTEXT_CONFLICT", "retryable": false } })
    );
    assert_eq!(encrypted[3]["error"]["code"], "ENCODING_INVALID");
    assert_eq!(entries(&server, "ENCRYPT").await, [("PARTIAL".to_owned(), 4)]);

    let query =
        "mutation($i: [ByokDecryptItem!]!) { byokDecryptMany(items: $i) { plaintext error { code } } }";
    let items = json!([
        { "ciphertext": encrypted[0]["ciphertext"], "context": { "org": "o", "record_id": "r-1" } },
        { "ciphertext": encrypted[0]["ciphertext"], "recordId": "r-1" },
        { "ciphertext": encrypted[2]["ciphertext"], "recordId": "r-2", "encoding": "BASE64" },
        { "ciphertext": encrypted[2]["ciphertext"], "recordId": "r-2" },
    ]);
    let decrypted = server.graphql(&service, query, json!({ "i": items })).await;
    assert_eq!(
        decrypted["data"]["byokDecryptMany"],
        json!([
            { "plaintext": "a", "error": null },
            { "plaintext": null, "error": { "code": "DECRYPT_FAILED" } },
            { "plaintext": "AP8=", "error": null },
            { "plaintext": null, "error": { "code": "NOT_TEXT" } },
        ])
    );

    let query = "query($i: [ByokDecryptItem!]!) { byokRevealMany(items: $i) { value form error { code } } }";
    let revealed = server.graphql(&service, query, json!({ "i": items })).await;
    assert_eq!(
        revealed["data"]["byokRevealMany"][0],
        json!({ "value": "a", "form": "PLAIN", "error": null })
    );
    assert_eq!(
        revealed["data"]["byokRevealMany"][1],
        json!({ "value": null, "form": null, "error": { "code": "DECRYPT_FAILED" } })
    );
}

#[tokio::test]
async fn a_join_is_one_call_and_a_failed_row_is_data() {
    let server = TestServer::start().await;
    let token = server.encrypt("kept", "r").await;
    let rows = (0..1_000).map(|n| match n % 4 {
        0 => (token.as_str(), "another"),
        1 => ("byok:v1:AAAA", "r"),
        _ => (token.as_str(), "r"),
    });
    let answer = server.graphql(&server.jwt("service", "u"), &join(rows), json!(null)).await;
    assert!(answer.get("errors").is_none(), "{}", answer["errors"]);
    assert_eq!(answer["data"]["f0"]["error"]["code"], "DECRYPT_FAILED");
    assert_eq!(answer["data"]["f1"]["error"]["code"], "TOKEN_MALFORMED");
    assert_eq!(answer["data"]["f999"], json!({ "value": "kept", "form": "PLAIN", "error": null }));
    assert_eq!(entries(&server, "REVEAL").await, [("PARTIAL".to_owned(), 1_000)]);
}

#[tokio::test]
async fn ten_thousand_rows_pass_and_one_more_does_not() {
    let server = TestServer::start().await;
    let token = server.encrypt("kept", "r").await;
    let service = server.jwt("service", "u");
    let answer =
        server.graphql(&service, &join((0..10_000).map(|_| (token.as_str(), "r"))), json!(null)).await;
    assert_eq!(answer["data"]["f9999"]["value"], "kept");
    assert_eq!(answer["data"].as_object().unwrap().len(), 10_000);
    assert_eq!(entries(&server, "REVEAL").await, [("OK".to_owned(), 10_000)]);
    let answer =
        server.graphql(&service, &join((0..10_001).map(|_| (token.as_str(), "r"))), json!(null)).await;
    assert_eq!(code(&answer), "TOO_MANY_ITEMS");
}

#[tokio::test]
async fn a_join_with_other_roots_fragments_and_skips_is_one_call() {
    let server = TestServer::start().await;
    let token = server.encrypt("kept", "r").await;
    let query = "query($t: String!, $no: Boolean!) {
        byokHealth { status }
        a: byokReveal(ciphertext: $t, recordId: \"r\") { value }
        b: byokReveal(ciphertext: $t, recordId: \"r\") @include(if: $no) { value }
        c: byokReveal(ciphertext: $t, context: {record_id: \"r\"}) @skip(if: $no) { value }
        ...F
        byokAudit(first: 1) { pageInfo { hasNextPage } }
    }
    fragment F on Query { d: byokReveal(ciphertext: $t, recordId: \"r\", context: {record_id: \"s\"}) { error { code } } }";
    let answer = server.graphql(&server.jwt("admin", "a"), query, json!({ "t": token, "no": false })).await;
    assert!(answer.get("errors").is_none(), "{answer}");
    assert_eq!(answer["data"]["a"]["value"], "kept");
    assert!(answer["data"].get("b").is_none());
    assert_eq!(answer["data"]["c"]["value"], "kept");
    assert_eq!(answer["data"]["d"]["error"]["code"], "CONTEXT_CONFLICT");
    assert_eq!(entries(&server, "REVEAL").await, [("PARTIAL".to_owned(), 3)]);
}

#[tokio::test]
async fn what_refuses_a_whole_call_is_data_only_in_a_reveal() {
    let server = TestServer::start().await;
    let token = server.encrypt("kept", "r").await;
    let nobody = server.jwt("nobody", "u");
    let answer = server.graphql(&nobody, &join([(token.as_str(), "r"); 2]), json!(null)).await;
    assert!(answer.get("errors").is_none(), "{answer}");
    assert_eq!(answer["data"]["f1"]["error"]["code"], "PERMISSION_DENIED");
    let query = "mutation($c: String!) { x: byokDecrypt(ciphertext: $c, recordId: \"r\") { plaintext } }";
    let answer = server.graphql(&nobody, query, json!({ "c": token })).await;
    assert_eq!((code(&answer), &answer["errors"][0]["path"]), ("PERMISSION_DENIED", &json!(["x"])));
    assert_eq!(answer["data"], json!({ "x": null }));
    let refused = &answer["errors"][0]["extensions"];
    assert_eq!(refused["retryable"], false);
    let query = "mutation { byokNothing { id } }";
    let answer = server.graphql(&server.jwt("admin", "a"), query, json!(null)).await;
    assert_eq!((code(&answer), answer.get("data")), ("QUERY_INVALID", None), "it did not run");
}

#[tokio::test]
async fn without_identity_there_is_introspection_and_health() {
    let server = TestServer::start().await;
    let post = |query: String| {
        let request = server.client.post(format!("{}/graphql", server.base)).header("x-request-id", "r-17");
        answer(request.json(&json!({ "query": query })))
    };
    let open = post(
        "{ __schema { queryType { name } } byokHealth { status database keyVersion error } }".to_owned(),
    )
    .await;
    assert_eq!(open.body["data"]["__schema"]["queryType"]["name"], "Query");
    assert_eq!(open.body["data"]["byokHealth"]["status"], "OK");
    for query in [
        "{ byokAudit { edges { cursor } } }",
        "{ byokReveal(ciphertext: \"x\") { value } }",
        "mutation { byokRotate { id } }",
    ] {
        let refused = post(query.to_owned()).await;
        assert_eq!((refused.status, code(&refused.body)), (StatusCode::OK, "invalid-headers"), "{query}");
        assert_eq!(refused.body.get("data"), None, "it did not run");
        assert_eq!(refused.body["errors"][0]["extensions"]["path"], "$");
        assert_eq!(refused.body["errors"][0]["extensions"]["requestId"], "r-17");
    }
    // A document larger than introspection needs is not read to its end.
    let refused = post(join([("x".repeat(100_000).as_str(), "r")])).await;
    assert_eq!((refused.status, code(&refused.body)), (StatusCode::OK, "invalid-headers"));
}

#[tokio::test]
async fn only_post_and_json_are_taken() {
    let server = TestServer::with(&[("BYOK_MAX_BODY_BYTES", "200000")]).await;
    let admin = server.jwt("admin", "a");
    let url = format!("{}/graphql", server.base);
    let request = |method: Method| server.client.request(method, &url).bearer_auth(&admin);
    let json =
        |body: &str| request(Method::POST).header("content-type", "application/json").body(body.to_owned());
    let query = r#"{"query":"{byokHealth{status}}"}"#;

    let get =
        answer(server.client.get(format!("{url}?query=%7BbyokHealth%7Bstatus%7D%7D")).bearer_auth(&admin))
            .await;
    assert_eq!((get.status.as_u16(), code(&get.body)), (405, "METHOD_NOT_ALLOWED"));
    assert_eq!(get.headers["allow"], "POST");
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/graphql",
    ] {
        let other = answer(request(Method::POST).header("content-type", kind).body(query)).await;
        assert_eq!((other.status.as_u16(), code(&other.body)), (415, "MEDIA_TYPE_UNSUPPORTED"), "{kind}");
    }
    let encoded = answer(json(query).header("content-encoding", "gzip")).await;
    assert_eq!((encoded.status.as_u16(), code(&encoded.body)), (415, "MEDIA_TYPE_UNSUPPORTED"));
    for body in
        ["", "{", "[]", "{}", r#"[{"query":"{byokHealth{status}}"}]"#, r#"{"query":"{a}","variables":[1]}"#]
    {
        let bad = answer(json(body)).await;
        assert_eq!((bad.status.as_u16(), code(&bad.body)), (400, "REQUEST_MALFORMED"), "{body}");
    }
    let large = answer(json(&format!(r#"{{"query":"{}"}}"#, "x".repeat(200_000)))).await;
    assert_eq!((large.status.as_u16(), code(&large.body)), (413, "BODY_TOO_LARGE"));
    let good = answer(json(r#"{"query":"{byokHealth{status}}","extensions":{"a":1},"else":[]}"#)).await;
    assert_eq!((good.status.as_u16(), &good.body["data"]["byokHealth"]["status"]), (200, &json!("OK")));
    for answer in [get, large, good] {
        assert_eq!(answer.headers["cache-control"], "no-store");
    }
}

#[tokio::test]
async fn with_the_newer_media_type_the_status_shows_whether_it_ran() {
    const NEWER: &str = "application/graphql-response+json";
    let server = TestServer::start().await;
    let (admin, nobody) = (server.jwt("admin", "a"), server.jwt("nobody", "u"));
    let ask = |token: &str, accept: &str, query: &str| {
        let request = server.client.post(format!("{}/graphql", server.base)).bearer_auth(token);
        answer(request.header("accept", accept).json(&json!({ "query": query })))
    };
    for (token, query, status) in [
        (&admin, "{ byokHealth { status } }", 200),
        (&nobody, "mutation { byokRotate { id } }", 200),
        (&admin, "{ byokHealth { status } a: byokRotation(id: \"x\") { id } }", 200),
        (&admin, "{ byokHealth { status }", 400),
        (&admin, "{ byokHealth { nothing } }", 400),
        (&"no token".to_owned(), "{ byokAudit { edges { cursor } } }", 401),
    ] {
        let answered = ask(token, NEWER, query).await;
        assert_eq!(answered.status, status, "{query}: {}", answered.body);
        assert_eq!(answered.headers["content-type"], NEWER);
        assert_eq!(answered.body.get("data").is_some(), status == 200, "{query}: {}", answered.body);
        for older in ["application/json", "*/*"] {
            let answered = ask(token, older, query).await;
            assert_eq!(answered.status, 200, "{query}: {}", answered.body);
            assert_eq!(answered.headers["content-type"], "application/json");
        }
    }
}

#[tokio::test]
async fn bad_input_gets_a_clear_code() {
    let server = TestServer::with(&[("BYOK_MAX_PLAINTEXT_BYTES", "1000")]).await;
    let admin = server.jwt("admin", "a");
    let token = server.encrypt("kept", "r").await;
    let many_pairs: Value =
        (0..65).map(|n| (format!("k{n}"), json!("v"))).collect::<serde_json::Map<_, _>>().into();
    let encrypt = "mutation($p: String!, $r: ID, $f: String, $c: jsonb, $e: ByokEncoding) {
        byokEncrypt(plaintext: $p, recordId: $r, field: $f, context: $c, encoding: $e) { ciphertext } }";
    let decrypt = "mutation($c: String!, $r: ID, $f: String) { byokDecrypt(ciphertext: $c, recordId: $r, field: $f) { plaintext } }";
    for (query, variables, expected) in [
        (encrypt, json!({ "p": "p" }), "RECORD_ID_REQUIRED"),
        (encrypt, json!({ "p": "p", "r": "" }), "RECORD_ID_REQUIRED"),
        (encrypt, json!({ "p": "p", "c": "r" }), "CONTEXT_INVALID"),
        (encrypt, json!({ "p": "p", "c": ["r"] }), "CONTEXT_INVALID"),
        (encrypt, json!({ "p": "p", "c": { "record_id": { "a": "b" } } }), "CONTEXT_INVALID"),
        (encrypt, json!({ "p": "p", "c": { "record_id": 7 } }), "CONTEXT_INVALID"),
        (encrypt, json!({ "p": "p", "c": many_pairs }), "CONTEXT_TOO_LARGE"),
        (encrypt, json!({ "p": "p", "r": "x".repeat(20_000) }), "CONTEXT_TOO_LARGE"),
        (encrypt, json!({ "p": "p", "r": "a", "c": { "record_id": "b" } }), "CONTEXT_CONFLICT"),
        (encrypt, json!({ "p": "p", "r": "a", "f": "a", "c": { "field": "b" } }), "CONTEXT_CONFLICT"),
        (encrypt, json!({ "p": "!", "r": "r", "e": "BASE64" }), "ENCODING_INVALID"),
        (encrypt, json!({ "p": "p", "r": "r", "e": "HEX" }), "QUERY_INVALID"),
        (encrypt, json!({ "p": "x".repeat(1_001), "r": "r" }), "PLAINTEXT_TOO_LARGE"),
        (encrypt, json!({ "p": 7, "r": "r" }), "QUERY_INVALID"),
        (encrypt, json!({ "r": "r" }), "QUERY_INVALID"),
        (decrypt, json!({ "c": "", "r": "r" }), "TOKEN_MALFORMED"),
        (decrypt, json!({ "c": token[..40], "r": "r" }), "TOKEN_MALFORMED"),
        (decrypt, json!({ "c": token.replace("v1", "v2"), "r": "r" }), "TOKEN_VERSION_UNSUPPORTED"),
        (decrypt, json!({ "c": token, "r": "s" }), "DECRYPT_FAILED"),
        (decrypt, json!({ "c": token, "r": "r", "f": "f" }), "DECRYPT_FAILED"),
        ("mutation { byokEncryptMany(items: []) { ciphertext } }", json!({}), "REQUEST_MALFORMED"),
        ("{ byokAudit(first: 0) { edges { cursor } } }", json!({}), "REQUEST_MALFORMED"),
        ("{ byokAudit(first: -1) { edges { cursor } } }", json!({}), "REQUEST_MALFORMED"),
        ("{ byokAudit(after: \"x\") { edges { cursor } } }", json!({}), "CURSOR_INVALID"),
        ("{ byokRotation(id: \"x\") { id } }", json!({}), "ROTATION_NOT_FOUND"),
        ("subscription { byokHealth { status } }", json!({}), "QUERY_INVALID"),
    ] {
        let answer = server.graphql(&admin, query, variables.clone()).await;
        assert_eq!(code(&answer), expected, "{query} {variables}: {answer}");
    }
    assert_eq!(server.decrypt(&token, "r").await.body, json!({ "plaintext": "kept" }));
}

#[tokio::test]
async fn a_value_may_be_empty_and_null_arguments_are_the_default() {
    let server = TestServer::start().await;
    let admin = server.jwt("admin", "a");
    let query = "mutation { byokEncrypt(plaintext: \"\", recordId: 7, field: null, context: null, encoding: null) { ciphertext } }";
    let encrypted = server.graphql(&admin, query, json!(null)).await;
    let ciphertext =
        encrypted["data"]["byokEncrypt"]["ciphertext"].as_str().unwrap_or_else(|| panic!("{encrypted}"));
    assert_eq!(server.decrypt(ciphertext, "7").await.body, json!({ "plaintext": "" }));
}

#[tokio::test]
async fn the_audit_log_is_read_by_pages_and_filters() {
    let server = TestServer::start().await;
    for n in 0..5 {
        server.encrypt("p", &format!("r-{n}")).await;
    }
    let admin = server.jwt("admin", "reader");
    let query = "query($first: Int, $after: String, $filter: ByokAuditFilter) { byokAudit(first: $first, after: $after, filter: $filter) {
        edges { cursor node { id at operation outcome role user means requestId itemCount items { recordId dekId keyVersion source error } } }
        pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }";
    let page =
        async |variables: Value| server.graphql(&admin, query, variables).await["data"]["byokAudit"].clone();
    let filter = json!({ "operation": "ENCRYPT", "outcome": "OK" });
    let first = page(json!({ "first": 3, "filter": filter })).await;
    assert_eq!(first["pageInfo"]["hasNextPage"], true);
    assert_eq!(first["edges"][0]["node"]["items"][0]["recordId"], "r-4");
    assert_eq!(first["edges"][0]["node"]["items"][0]["source"], "KMS");
    assert_eq!(first["edges"][0]["cursor"], first["pageInfo"]["startCursor"]);
    assert_eq!(first["edges"][2]["cursor"], first["pageInfo"]["endCursor"]);
    assert_eq!(first["pageInfo"]["hasPreviousPage"], false);
    let second = page(json!({ "first": 3, "after": first["pageInfo"]["endCursor"], "filter": filter })).await;
    assert_eq!(second["edges"].as_array().unwrap().len(), 2);
    assert_eq!(second["edges"][0]["cursor"], second["pageInfo"]["startCursor"]);
    assert_eq!(second["pageInfo"]["hasNextPage"], false);
    assert_eq!(second["pageInfo"]["hasPreviousPage"], true);
    let of_the_last = json!({ "operation": "ENCRYPT", "recordId": "r-0" });
    let after_others = json!({ "after": first["pageInfo"]["endCursor"], "filter": of_the_last });
    let last = page(after_others).await;
    assert_eq!(last["edges"].as_array().unwrap().len(), 1);
    assert_eq!(last["pageInfo"]["hasPreviousPage"], false, "none of this filter stands before it");
    let of_record = page(json!({ "filter": { "recordId": "r-2" } })).await;
    assert_eq!(of_record["edges"].as_array().unwrap().len(), 1);
    let by_reader =
        page(json!({ "filter": { "user": "reader", "from": first["edges"][0]["node"]["at"] } })).await;
    let operations: Vec<&Value> =
        by_reader["edges"].as_array().unwrap().iter().map(|edge| &edge["node"]["operation"]).collect();
    assert_eq!(operations, ["AUDIT"; 4]);
    let empty = page(json!({ "filter": { "until": "2020-01-01T00:00:00Z" } })).await;
    let nowhere =
        json!({ "hasNextPage": false, "hasPreviousPage": false, "startCursor": null, "endCursor": null });
    assert_eq!(empty, json!({ "edges": [], "pageInfo": nowhere }));
}

#[tokio::test]
async fn a_rotation_is_planned_started_and_looked_at() {
    let server = TestServer::start().await;
    server.encrypt("p", "r").await;
    let admin = server.jwt("admin", "a");
    let planned = server
        .graphql(
            &admin,
            "mutation { byokRotate(dryRun: true) { id state dryRun target total kmsCalls percent } }",
            json!(null),
        )
        .await;
    let planned = &planned["data"]["byokRotate"];
    assert_eq!(
        (&planned["id"], &planned["dryRun"], &planned["total"]),
        (&Value::Null, &json!(true), &json!(0))
    );
    let started = server
        .graphql(&admin, "mutation { byokRotate { id state dryRun target startedAt } }", json!(null))
        .await;
    let id = &started["data"]["byokRotate"]["id"];
    assert!(id.is_string(), "{started}");
    let query = "query($id: ID!) { byokRotation(id: $id) { id state target total rewrapped skipped failed kmsCalls percent stalled startedAt updatedAt finishedAt } }";
    let shown = server.graphql(&admin, query, json!({ "id": id })).await;
    assert_eq!(shown["data"]["byokRotation"]["id"], *id);
    assert_eq!(shown["data"]["byokRotation"]["target"], started["data"]["byokRotate"]["target"]);
}

#[tokio::test]
async fn over_the_limit_a_caller_learns_when_to_come_back() {
    let server = TestServer::with(&[("BYOK_DECRYPT_RATE_RPM", "1")]).await;
    let token = server.encrypt("kept", "r").await;
    let service = server.jwt("service", "u");
    let rows = join([(token.as_str(), "r"); 5]);
    let first = server.graphql(&service, &rows, json!(null)).await;
    assert_eq!(first["data"]["f4"]["value"], "kept", "a join is one call");
    let second = server.graphql(&service, &rows, json!(null)).await;
    assert_eq!(second["data"]["f4"]["error"]["code"], "RATE_LIMITED");
    assert_eq!(second["data"]["f4"]["error"]["retryable"], true);
    let query = "mutation($c: String!) { byokDecrypt(ciphertext: $c, recordId: \"r\") { plaintext } }";
    let third = server.graphql(&service, query, json!({ "c": token })).await;
    assert_eq!(code(&third), "RATE_LIMITED");
    assert!(
        (1..=60).contains(&third["errors"][0]["extensions"]["retryAfterSeconds"].as_u64().unwrap()),
        "{third}"
    );
}
