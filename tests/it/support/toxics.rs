//! Toxiproxy between us and a server: network faults that tests turn on and off while calls run.

use std::time::Duration;

use serde_json::{Value, json};

use super::needed;

/// A fault on the route to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nobody listens, and open connections end.
    Cut,
    /// The server's bytes arrive ten seconds late.
    Delayed,
    /// Connections are accepted, and no bytes are forwarded.
    Hung,
    /// Connections are reset as soon as something is sent.
    Reset,
    /// The server's answer ends after some bytes, in the middle of its headers.
    TruncatedHead,
    /// The server's answer ends within its body.
    TruncatedBody,
    /// Every byte of the server's answer is changed.
    Corrupted,
}

impl Fault {
    pub(crate) const ALL: [Self; 7] = [
        Self::Cut,
        Self::Delayed,
        Self::Hung,
        Self::Reset,
        Self::TruncatedHead,
        Self::TruncatedBody,
        Self::Corrupted,
    ];

    /// Toxiproxy's type and attributes; none for a fault that is not a toxic.
    fn toxic(self) -> Option<(&'static str, Value)> {
        match self {
            Self::Cut => None,
            Self::Delayed => Some(("latency", json!({ "latency": 10_000 }))),
            Self::Hung => Some(("timeout", json!({ "timeout": 0 }))),
            Self::Reset => Some(("reset_peer", json!({ "timeout": 0 }))),
            Self::TruncatedHead => Some(("limit_data", json!({ "bytes": 9 }))),
            Self::TruncatedBody => Some(("limit_data", json!({ "bytes": 180 }))),
            Self::Corrupted => Some(("corrupt", json!({ "after": 0, "every": 1 }))),
        }
    }
}

/// A route to one server through Toxiproxy.
pub(crate) struct Way {
    api: String,
    name: String,
    /// The address `127.0.0.1:PORT` under which this route reaches the server.
    pub(crate) address: String,
}

impl Way {
    /// Opens a route to the server at `host:port`.
    pub(crate) async fn to(upstream: &str) -> Self {
        let api = needed("BYOK_TEST_TOXIPROXY_ADDR");
        let name = uuid::Uuid::now_v7().to_string();
        let proxy = json!({ "name": name, "listen": "127.0.0.1:0", "upstream": upstream, "enabled": true });
        let made: Value = post(&format!("{api}/proxies"), &proxy).await;
        let address = made["listen"].as_str().expect("an address").to_owned();
        Self { api, name, address }
    }

    /// Opens a route to the server of a URL, and returns the URL with the route's address.
    pub(crate) async fn to_url(url: &str) -> (Self, String) {
        let (scheme, rest) = url.split_once("://").expect("a URL");
        let (upstream, path) =
            rest.split_once('/').map_or((rest, String::new()), |(host, path)| (host, format!("/{path}")));
        let way = Self::to(upstream).await;
        let url = format!("{scheme}://{}{path}", way.address);
        (way, url)
    }

    /// Turns a fault on, for open connections too.
    pub(crate) async fn spoil(&self, fault: Fault) {
        match fault.toxic() {
            None => self.enable(false).await,
            Some((kind, attributes)) => {
                let toxic = json!({ "name": "fault", "type": kind, "stream": "downstream", "attributes": attributes });
                let _: Value = post(&format!("{}/proxies/{}/toxics", self.api, self.name), &toxic).await;
            }
        }
    }

    /// Turns a fault off.
    pub(crate) async fn mend(&self, fault: Fault) {
        match fault.toxic() {
            None => self.enable(true).await,
            Some(_) => {
                let url = format!("{}/proxies/{}/toxics/fault", self.api, self.name);
                let answer = super::http().delete(url).send().await.expect("Toxiproxy answers");
                assert!(answer.status().is_success(), "{}", answer.status());
            }
        }
    }

    /// Delays the server's bytes by this much from now on. Zero ends the delay and forwards what is
    /// held back.
    pub(crate) async fn delay(&self, by: Duration) {
        let toxics = format!("{}/proxies/{}/toxics", self.api, self.name);
        if by.is_zero() {
            let answer = super::http().delete(format!("{toxics}/delay")).send().await;
            assert!(answer.expect("Toxiproxy answers").status().is_success());
        } else {
            let latency = json!({ "latency": by.as_millis() as u64 });
            let toxic =
                json!({ "name": "delay", "type": "latency", "stream": "downstream", "attributes": latency });
            let _: Value = post(&toxics, &toxic).await;
        }
    }

    async fn enable(&self, enabled: bool) {
        let _: Value =
            post(&format!("{}/proxies/{}", self.api, self.name), &json!({ "enabled": enabled })).await;
    }
}

async fn post(url: &str, body: &Value) -> Value {
    let answer = super::http().post(url).json(body).send().await.expect("Toxiproxy answers");
    let status = answer.status();
    let text = answer.text().await.expect("text");
    assert!(status.is_success(), "{status} {text}");
    serde_json::from_str(&text).expect("JSON")
}
