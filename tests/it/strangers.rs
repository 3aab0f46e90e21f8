//! Callers without credentials: they get one introspection and little else, and take nothing from
//! those that have credentials.

use std::time::Duration;

use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::offered::memory;
use crate::support::server::TestServer;

/// The introspection that Hasura v2 sends: fragments inlined, seven levels of `ofType`.
fn introspection() -> String {
    let of_type = (0..7).fold("kind name".to_owned(), |inner, _| format!("kind name ofType {{ {inner} }}"));
    let input = format!("name description type {{ {of_type} }} defaultValue");
    format!(
        "query IntrospectionQuery {{ __schema {{ queryType {{ name }} mutationType {{ name }} subscriptionType {{ name }}
        types {{ kind name description
            fields(includeDeprecated: true) {{ name description args {{ {input} }} type {{ {of_type} }} isDeprecated deprecationReason }}
            inputFields {{ {input} }} interfaces {{ {of_type} }}
            enumValues(includeDeprecated: true) {{ name description isDeprecated deprecationReason }}
            possibleTypes {{ {of_type} }} }}
        directives {{ name description locations args {{ {input} }} }} }} }}"
    )
}

/// Documents of 64 KB that once had answers of many megabytes, or kept the server busy for long.
fn attacks() -> Vec<String> {
    let fill = |open: &str, one: &dyn Fn(usize) -> String, close: &str| {
        let mut text = open.to_owned();
        for n in 0.. {
            let more = one(n);
            if text.len() + more.len() + close.len() > 63_000 {
                break;
            }
            text.push_str(&more);
        }
        text + close
    };
    vec![
        fill("{", &|n| format!("a{n}:__schema{{types{{description}}}}"), "}"),
        fill("{__schema{types{fields{", &|n| format!("a{n}:description "), "}}}}"),
        fill("{__schema{types{enumValues{", &|n| format!("a{n}:description "), "}}}}"),
        fill("{", &|n| format!("a{n}:__type(name:\"ByokErrorCode\"){{enumValues{{description}}}}"), "}"),
        fill("{", &|n| format!("a{n}:byokHealth{{status}}"), "}"),
        fill("{byokHealth{", &|n| format!("a{n}:status "), "}}"),
        fill("{", &|n| format!("a{n}:__typename "), "}"),
    ]
}

fn ask(server: &TestServer, client: &Client, query: &str) -> reqwest::RequestBuilder {
    client.post(format!("{}/graphql", server.base)).json(&json!({ "query": query }))
}

/// The bytes of a GraphQL request without credentials.
fn request(query: &str) -> String {
    let body = json!({ "query": query }).to_string();
    format!(
        "POST /graphql HTTP/1.1\r\nhost: byok\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn hasura_can_introspect_and_a_stranger_gets_no_more_than_that() {
    let server = TestServer::start().await;
    let whole = ask(&server, &server.client, &introspection()).send().await.unwrap().bytes().await.unwrap();
    let answer: Value = serde_json::from_slice(&whole).unwrap();
    assert!(answer["data"]["__schema"]["types"].as_array().unwrap().len() > 30, "{answer}");
    assert!(whole.len() < 256 << 10, "{} bytes", whole.len());
    for attack in attacks() {
        let refused = ask(&server, &server.client, &attack).send().await.unwrap().bytes().await.unwrap();
        let answer: Value = serde_json::from_slice(&refused).unwrap();
        let code = answer["errors"][0]["extensions"]["code"].as_str().unwrap_or_default().to_owned();
        assert!(["TOO_MANY_ITEMS", "QUERY_INVALID"].contains(&code.as_str()), "{}: {answer}", &attack[..60]);
        assert!(refused.len() < 1_024, "{} bytes", refused.len());
    }
}

/// A connection with a request that reads nothing of its answer.
async fn slow_reader(server: &TestServer, query: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let address = server.base.strip_prefix("http://").unwrap().parse().unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(request(query).as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn strangers_who_read_slowly_or_are_many_take_nothing_from_callers() {
    let server = TestServer::with(&[("BYOK_LOG", "info")]).await;
    let token = server.encrypt("kept", "r").await;
    let before = memory(server.pid(), "VmRSS");
    let mut slow = Vec::new();
    for query in attacks().iter().chain(std::iter::repeat_n(&introspection(), 33)) {
        slow.push(slow_reader(&server, query).await);
    }
    let clients: Vec<_> = (0..200)
        .map(|n| {
            let (client, address) = (Client::new(), format!("{}/graphql", server.base));
            let attacks = attacks();
            tokio::spawn(async move {
                for attack in attacks.iter().cycle().skip(n).take(4) {
                    let body = json!({ "query": attack });
                    let status = client.post(&address).json(&body).send().await.unwrap().status();
                    assert!(status == 200 || status == 503, "{status}");
                }
            })
        })
        .collect();
    for _ in 0..140 {
        let answer = server.decrypt(&token, "r").await;
        assert_eq!(answer.body, json!({ "plaintext": "kept" }), "a caller is affected by strangers");
    }
    for client in clients {
        client.await.unwrap();
    }
    let most = memory(server.pid(), "VmHWM");
    assert!(most < before + (96 << 10), "{before} KiB before, {most} at most");
    assert_eq!(server.decrypt(&token, "r").await.status, 200);
}

/// Sends over a connection that stays open, and returns the status.
async fn exchange(stream: &mut TcpStream, request: &str) -> u16 {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    loop {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "it was closed");
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if body.len() == length.parse::<usize>().unwrap() {
            return head[9..12].parse().unwrap();
        }
    }
}

#[tokio::test]
async fn callers_with_tokens_are_not_counted_as_one_address() {
    let server = TestServer::with(&[("BYOK_LOG", "info")]).await;
    let token = server.encrypt("kept", "r").await;
    let body = json!({ "ciphertext": token, "record_id": "r" }).to_string();
    let request = format!(
        "POST /byok/decrypt HTTP/1.1\r\nhost: byok\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
        server.jwt("admin", "a"),
        body.len()
    );
    let mut streams = Vec::new();
    for _ in 0..500 {
        streams.push(TcpStream::connect(server.base.strip_prefix("http://").unwrap()).await.unwrap());
    }
    for _ in 0..2 {
        let answers = streams.iter_mut().map(|stream| exchange(stream, &request));
        let statuses = futures_util::future::join_all(answers).await;
        assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    }
}

#[tokio::test]
async fn an_address_that_used_up_its_share_alone_is_refused() {
    let server = TestServer::with(&[("BYOK_TRUSTED_PROXIES", "127.0.0.0/8")]).await;
    let from = |address: &str| {
        let asked = ask(&server, &server.client, "{ __typename }").header("x-forwarded-for", address);
        async move { asked.send().await.unwrap() }
    };
    let mut refused = None;
    for _ in 0..500 {
        let answers =
            futures_util::future::join_all((0..32).map(|_| from("203.0.113.9, 198.51.100.1"))).await;
        refused = answers.into_iter().find(|answer| answer.status() != 200);
        if refused.is_some() {
            break;
        }
    }
    let refused = refused.expect("no address may ask without end");
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    assert_eq!(refused.json::<Value>().await.unwrap()["errors"][0]["extensions"]["code"], "UNAVAILABLE");
    assert_eq!(from("198.51.100.2").await.status(), 200);
    assert_eq!(server.get("/byok/audit").await.status, 200);
}

#[tokio::test]
async fn metrics_can_have_a_listener_of_their_own() {
    let server = TestServer::with(&[("BYOK_METRICS_LISTEN", "127.0.0.1:0")]).await;
    let logged = server.logged();
    let line = logged.lines().find(|line| line.contains("metrics are listening")).expect("it says where");
    let address = serde_json::from_str::<Value>(line).unwrap()["address"].as_str().unwrap().to_owned();
    let get = |base: &str, path: &str| {
        let asked = server.client.get(format!("{base}{path}"));
        async move { asked.send().await.unwrap() }
    };
    let watched = format!("http://{address}");
    assert_eq!(get(&server.base, "/metrics").await.status(), 404);
    server.encrypt("x", "r").await;
    let health = async |base: &str| get(base, "/byok/health").await.json::<Value>().await.unwrap();
    assert_eq!(health(&server.base).await["key_version"], Value::Null);
    assert!(health(&watched).await["key_version"].is_string());
    assert!(server.get("/byok/health").await.body["key_version"].is_string(), "a caller sees it");
    assert_eq!(get(&watched, "/live").await.status(), 200);
    let metrics = get(&watched, "/metrics").await;
    assert_eq!(metrics.status(), 200);
    assert!(metrics.text().await.unwrap().contains("byok_requests_total"));
    let graphql = ask(&server, &server.client, "{ __typename }").build().unwrap().url().path().to_owned();
    let other = server.client.post(format!("http://{address}{graphql}")).body("{}").send().await.unwrap();
    assert_eq!(other.status(), 404, "nothing else is served there");
}

#[tokio::test]
async fn a_megabyte_that_is_used_nine_thousand_times_is_not_copied() {
    let server = TestServer::with(&[("BYOK_LOG", "info")]).await;
    server.encrypt("x", "r").await;
    let before = memory(server.pid(), "VmRSS");
    let roots: String =
        (0..9_000).map(|n| format!("f{n}:byokReveal(ciphertext:$t){{error{{code}}}}")).collect();
    let text = json!({ "t": "x".repeat(1 << 20) });
    let reveal = format!("query($t:String!){{{roots}}}");
    let refused = server.graphql(&server.jwt("service", "u"), &reveal, text.clone()).await;
    assert_eq!(refused["errors"][0]["extensions"]["code"], "BODY_TOO_LARGE");
    // A caller without rights is refused whatever it sent, and so this much of it is not read.
    let denied = server.graphql(&server.jwt("nobody", "u"), &reveal, text).await;
    assert_eq!(denied["errors"][0]["extensions"]["code"], "PERMISSION_DENIED", "{denied}");
    let short = format!("{}}}", &reveal[..reveal.find("f500:").unwrap()]);
    let denied = server.graphql(&server.jwt("nobody", "u"), &short, json!({ "t": "x" })).await;
    assert!(denied.get("errors").is_none(), "{}", denied["errors"]);
    assert_eq!(denied["data"]["f499"]["error"]["code"], "PERMISSION_DENIED");
    let list = json!({ "c": vec![1; 500_000] });
    let lists: String =
        (0..90).map(|n| format!("f{n}:byokReveal(ciphertext:\"x\",context:$c){{error{{code}}}}")).collect();
    let lists = format!("query($c:jsonb){{{lists}}}");
    let refused = server.graphql(&server.jwt("service", "u"), &lists, list).await;
    assert_eq!(refused["errors"][0]["extensions"]["code"], "TOO_MANY_ITEMS");
    let most = memory(server.pid(), "VmHWM");
    assert!(most < before + (160 << 10), "{before} KiB before, {most} at most");
    tokio::time::timeout(Duration::from_secs(60), server.encrypt("x", "r")).await.unwrap();
}

#[tokio::test]
async fn items_are_counted_over_all_roots_and_a_refusal_is_recorded() {
    let server = TestServer::with(&[("BYOK_MAX_ITEMS_PER_REQUEST", "10")]).await;
    let service = server.jwt("service", "u");
    let token = server.encrypt("kept", "r").await;
    let item = json!({ "ciphertext": token, "recordId": "r" });
    let two = "query($a:[ByokDecryptItem!]!,$b:[ByokDecryptItem!]!) {
        a: byokRevealMany(items: $a) { value } b: byokRevealMany(items: $b) { value } }";
    let of = |a: usize, b: usize| json!({ "a": vec![item.clone(); a], "b": vec![item.clone(); b] });
    let answer = server.graphql(&service, two, of(5, 5)).await;
    assert_eq!(answer["data"]["b"][4]["value"], "kept", "{answer}");
    let answer = server.graphql(&service, two, of(5, 6)).await;
    assert_eq!(answer["errors"][0]["extensions"]["code"], "TOO_MANY_ITEMS");
    let audit = server.get("/byok/audit?first=1").await.body;
    assert_eq!(audit["entries"][0]["outcome"], "TOO_MANY_ITEMS", "{audit}");
}
