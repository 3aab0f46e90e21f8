//! One HTTP request to Vault, and its answer.
//!
//! - Redirects are not followed: one could carry the token and a DEK to another host. A standby forwards requests itself
//!   unless that was turned off; one that answers 307 is a wrong `BYOK_VAULT_ADDR`.
//! - No proxy is taken from the environment.
//! - What holds a DEK or token is wiped when it is dropped as far as we own it: the body that we send and the body that
//!   we collect. hyper and rustls copy both through buffers of their own, which nobody wipes.

use std::time::{Duration, SystemTime};

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method};
use hyper::body::Bytes;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Identity};
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use crate::config::{Mistake, VaultSettings};
use crate::crypto::SecretText;
use crate::kms::{KmsError, KmsErrorClass};

/// No answer to what we ask is longer: a batch of wrapped DEKs is some 100 KiB.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// What an answer may hold before its buffer has to grow.
const USUAL_ANSWER_BYTES: usize = 64 << 10;

/// A client of one Vault.
pub(super) struct Transport {
    client: Client,
    base: String,
}

/// What Vault answered, whatever it is.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Transport {
    /// Reads the certificate files; sends nothing.
    pub(super) fn new(settings: &VaultSettings) -> Result<Self, Mistake> {
        let mut headers = HeaderMap::new();
        // Vault's agents and proxies can be told to refuse requests without it, against forged requests from browsers.
        headers.insert("X-Vault-Request", HeaderValue::from_static("true"));
        if let Some(namespace) = &settings.namespace {
            let value = HeaderValue::from_str(namespace)
                .map_err(|_| mistake("BYOK_VAULT_NAMESPACE", "is no namespace"))?;
            headers.insert("X-Vault-Namespace", value);
        }
        let mut builder = Client::builder()
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("byok/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            // A host that does not answer at all is out of reach, and not slow: it is tried again within the deadline.
            .connect_timeout(settings.timeout / 4);
        if let Some(path) = &settings.ca_file {
            let certificates = Certificate::from_pem_bundle(&read("BYOK_VAULT_CACERT", path)?)
                .ok()
                .filter(|certificates| !certificates.is_empty())
                .ok_or_else(|| mistake("BYOK_VAULT_CACERT", "names a file without a certificate in PEM"))?;
            builder = builder.tls_certs_only(certificates);
        }
        if let Some(client) = &settings.client {
            let key = read("BYOK_VAULT_CLIENT_KEY", &client.key_file)?;
            let certificate = read("BYOK_VAULT_CLIENT_CERT", &client.certificate_file)?;
            let mut pem = Zeroizing::new(Vec::with_capacity(key.len() + 1 + certificate.len()));
            pem.extend_from_slice(&key);
            pem.push(b'\n');
            pem.extend_from_slice(&certificate);
            let identity = Identity::from_pem(&pem).map_err(|_| {
                mistake(
                    "BYOK_VAULT_CLIENT_CERT",
                    "and BYOK_VAULT_CLIENT_KEY hold no certificate and key in PEM",
                )
            })?;
            builder = builder.identity(identity);
        }
        let client = builder.build().map_err(|_| {
            let name = if settings.client.is_some() { "BYOK_VAULT_CLIENT_CERT" } else { "BYOK_VAULT_CACERT" };
            mistake(name, "TLS cannot be set up with these certificates and the system's")
        })?;
        Ok(Self { client, base: format!("{}/v1/", settings.address.as_str().trim_end_matches('/')) })
    }

    /// Sends one request. The error is [`KmsErrorClass::Unreachable`], [`KmsErrorClass::Timeout`], or
    /// [`KmsErrorClass::Internal`] for an answer that is too long.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&SecretText>,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Reply, KmsError> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(token.expose())
                .map_err(|_| KmsError::local(KmsErrorClass::CredentialInvalid))?;
            value.set_sensitive(true);
            request = request.header("X-Vault-Token", value);
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        timeout_at(deadline, receive(request))
            .await
            .unwrap_or_else(|_| Err(KmsError::local(KmsErrorClass::Timeout)))
    }
}

async fn receive(request: reqwest::RequestBuilder) -> Result<Reply, KmsError> {
    // What reqwest says of an error names the address; the class is all that leaves this function.
    let unreachable = |_| KmsError::local(KmsErrorClass::Unreachable);
    let mut response = request.send().await.map_err(unreachable)?;
    let status = response.status().as_u16();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| pause(value.to_str().ok()?));
    let announced = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let too_long = KmsError { class: KmsErrorClass::Internal, http_status: Some(status), request_id: None };
    if announced > MAX_ANSWER_BYTES {
        return Err(too_long);
    }
    let mut body = Zeroizing::new(Vec::with_capacity(announced.max(USUAL_ANSWER_BYTES)));
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(too_long);
        }
        append(&mut body, &chunk);
    }
    Ok(Reply { status, retry_after, body })
}

/// Grows by copying into new memory and wiping the old, which `Vec` alone would not.
fn append(body: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    if body.capacity() - body.len() < chunk.len() {
        let mut larger = Zeroizing::new(Vec::with_capacity((body.len() + chunk.len()) * 2));
        larger.extend_from_slice(body);
        *body = larger;
    }
    body.extend_from_slice(chunk);
}

/// `Retry-After` as RFC 9110, 10.2.3 has it: seconds, or a date.
fn pause(text: &str) -> Option<Duration> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the date is of the other side's wall clock; the deadline bounds it"
    )]
    let now = SystemTime::now();
    match text.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}

fn read(variable: &str, path: &std::path::Path) -> Result<Zeroizing<Vec<u8>>, Mistake> {
    std::fs::read(path).map(Zeroizing::new).map_err(|error| {
        mistake(
            variable,
            &format!("names the file {}, which cannot be read: {}", path.display(), error.kind()),
        )
    })
}

fn mistake(variable: &str, problem: &str) -> Mistake {
    Mistake { variable: variable.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(pause("3"), Some(Duration::from_secs(3)));
        assert_eq!(pause("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(pause("soon"), None);
    }

    #[test]
    fn a_body_that_grows_keeps_what_it_holds() {
        let mut body = Zeroizing::new(Vec::with_capacity(2));
        for _ in 0..10 {
            append(&mut body, b"abc");
        }
        assert_eq!(**body, b"abc".repeat(10));
    }
}
