//! `byok health`: asks a running server for its health. Meant for a container's health check, in an
//! image without a shell or `curl`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use reqwest::{Url, redirect};
use serde_json::Value;

use super::Failure;
use crate::config::{Env, Reader, Server};
use crate::crypto::SecretText;

/// The time limit for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The server to ask, and the kind of health to ask for.
#[derive(Args)]
pub(super) struct Arguments {
    /// The server [default: this machine, at the port of BYOK_LISTEN]
    #[arg(long)]
    url: Option<Url>,
    /// Ask whether the key works, and not only whether the server serves
    #[arg(long)]
    key: bool,
    /// A file with a token; without one, the server answers with the last known state of the key
    #[arg(long, value_name = "FILE", requires = "key")]
    token_file: Option<PathBuf>,
    /// Print the server's answer as it is
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let token = arguments.token_file.as_ref().map(|path| {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| Failure::Running(format!("{}: {error}", path.display())))?;
        Ok(SecretText::new(text.trim().to_owned()))
    });
    let token = token.transpose()?;
    let is_this_machine = arguments.url.is_none();
    let base = match arguments.url {
        Some(url) => url,
        None => this_machine()?,
    };
    let path = if arguments.key { "byok/health" } else { "health" };
    let url =
        base.join(path).map_err(|_| Failure::Running(format!("{base} is not the address of a server")))?;
    let client = reqwest::Client::builder().timeout(PATIENCE).redirect(redirect::Policy::none()).no_proxy();
    // No certificate is valid for a loopback address. Nothing secret is sent, and nobody else
    // listens there.
    let client = client.tls_danger_accept_invalid_certs(is_this_machine && token.is_none());
    let client =
        client.build().map_err(|_| Failure::Running("the HTTP client cannot be built".to_owned()))?;
    let mut request = client.get(url.clone());
    if let Some(token) = &token {
        request = request.bearer_auth(token.expose());
    }
    let response = request.send().await.map_err(|_| Failure::Running(format!("{url} does not answer")))?;
    let status = response.status().as_u16();
    let answer = response.bytes().await.ok().and_then(|body| serde_json::from_slice::<Value>(&body).ok());
    let answer = answer
        .ok_or_else(|| Failure::Running(format!("{url} answers {status}, which is not an answer of byok")))?;
    let line = summary(&answer);
    match (arguments.json, status) {
        (true, _) => println!("{answer}"),
        (false, 200) => println!("{line}"),
        (false, _) => {}
    }
    match status {
        200 => Ok(()),
        _ => Err(Failure::Running(format!("{url} answers {status}: {line}"))),
    }
}

/// Returns the URL of the server on this machine that has the same environment.
fn this_machine() -> Result<Url, Failure> {
    let env = Env::of_process();
    let mut reader = Reader::new(&env);
    let listen = Server::read_listen(&mut reader);
    let scheme = if reader.text("BYOK_TLS_CERT_FILE").is_some() { "https" } else { "http" };
    let errors = reader.into_errors();
    if errors.is_empty() { Ok(url_of(scheme, listen)) } else { Err(Failure::Configuration(errors)) }
}

/// Returns the URL at which a server with this listen address is reached from the same machine.
fn url_of(scheme: &str, listen: SocketAddr) -> Url {
    let address = match listen.ip() {
        IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    let url = format!("{scheme}://{}/", SocketAddr::new(address, listen.port()));
    Url::parse(&url).unwrap_or_else(|_| unreachable!("an address and a port make a URL"))
}

/// Summarizes an answer in one line.
fn summary(answer: &Value) -> String {
    let mut parts = vec![answer["status"].as_str().unwrap_or("no status").to_owned()];
    for name in ["error", "key_version", "posture"] {
        parts.extend(answer[name].as_str().map(|value| format!("{} {value}", name.replace('_', " "))));
    }
    if let Some(seconds) = answer["last_success_seconds_ago"].as_f64() {
        parts.push(format!("the key was last shown to work {seconds:.1} s ago"));
    }
    if let (Some(applied), Some(expected)) =
        (answer["migrations"]["applied"].as_u64(), answer["migrations"]["expected"].as_u64())
    {
        parts.push(format!("{applied} of {expected} migrations applied"));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_server_that_listens_everywhere_is_asked_on_the_loopback_address() {
        for (listen, url) in [
            ("0.0.0.0:3741", "http://127.0.0.1:3741/"),
            ("[::]:80", "http://[::1]/"),
            ("10.0.0.7:1", "http://10.0.0.7:1/"),
        ] {
            assert_eq!(url_of("http", listen.parse().unwrap()).as_str(), url);
        }
    }

    #[test]
    fn an_answer_is_a_line() {
        let serves = json!({ "status": "OK", "migrations": { "applied": 8, "expected": 8 } });
        assert_eq!(summary(&serves), "OK, 8 of 8 migrations applied");
        let revoked = json!({
            "status": "REVOKED", "error": "KMS_ACCESS_DENIED", "key_version": "byok/1", "posture": null,
            "last_success_seconds_ago": 4.25,
        });
        let expected =
            "REVOKED, error KMS_ACCESS_DENIED, key version byok/1, the key was last shown to work 4.2 s ago";
        assert_eq!(summary(&revoked), expected);
        assert_eq!(summary(&json!([])), "no status");
    }
}
