//! One HTTP request to a provider, and its answer, for the providers that have no client library
//! with its own HTTP.
//!
//! - **Requests go only to the configured hosts.** A client is made for a list of origins; a
//!   request to another one is refused before its name is resolved. Redirects are not followed, and
//!   no proxy is taken from the environment, so no answer of a provider (a redirect, a challenge,
//!   an address in a token's answer) can send a DEK or a credential to another host.
//! - An answer is read up to [`MAX_ANSWER_BYTES`].
//! - Bodies, which hold DEKs and credentials, are wiped when they are dropped: the types of the one
//!   that we send and the one that we receive do that. hyper and rustls copy both through buffers
//!   of their own, which live as long as their connection and are wiped by the allocator when it
//!   ends: see [`Connections::hang_up`].

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::header::{DATE, RETRY_AFTER};
use http::{HeaderMap, Method};
use hyper::body::Bytes;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Identity, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use crate::config::{ConfigError, read_file};
use crate::kms::{Connections, Distrust, KmsError, KmsErrorClass};

/// The longest answer that is read: a batch of wrapped DEKs is some 100 KiB.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// The size of an answer's first buffer.
const USUAL_ANSWER_BYTES: usize = 64 << 10;

/// The origins that requests may go to, and the certificates that are trusted there.
pub(super) struct HttpSettings<'a> {
    /// The permitted origins: scheme, host and port are compared, the rest is ignored.
    pub(super) origins: Vec<Url>,
    /// The only trusted certificates, in PEM, instead of the system's; with the variable that names
    /// the file.
    pub(super) ca_file: Option<(&'static str, &'a Path)>,
    /// The certificate and key for mutual TLS, each with its variable.
    pub(super) client: Option<[(&'static str, &'a Path); 2]>,
    /// The time limit of a call. Connecting may take a quarter of it; a connection that stays
    /// silent is given up after half of it.
    pub(super) timeout: Duration,
}

/// A client of these origins.
pub(super) struct Http {
    /// The client, built when it is needed and there is none.
    client: Mutex<Option<Client>>,
    making: Making,
    origins: Vec<Url>,
}

/// The parts of a client.
struct Making {
    certificates: Option<Vec<Certificate>>,
    identity: Option<Identity>,
    timeout: Duration,
}

/// An answer with any status.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Reply {
    /// The pause that `Retry-After` asks for (RFC 9110, 10.2.3): seconds, or a date.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        pause(self.headers.get(RETRY_AFTER)?.to_str().ok()?)
    }

    /// The time at the other side, in seconds of Unix time.
    pub(super) fn date(&self) -> Option<i64> {
        let date = httpdate::parse_http_date(self.headers.get(DATE)?.to_str().ok()?).ok()?;
        date.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs().try_into().ok()
    }
}

impl Connections for Http {
    /// Closes all connections: idle ones at once, the others when their call ends.
    fn hang_up(&self) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Http {
    /// Reads the certificate files; sends nothing.
    ///
    /// # Errors
    ///
    /// A certificate or key file that cannot be read or used, with its variable.
    pub(super) fn new(settings: HttpSettings<'_>) -> Result<Self, ConfigError> {
        let mut making = Making { certificates: None, identity: None, timeout: settings.timeout };
        if let Some((variable, path)) = settings.ca_file {
            let bundle = read(variable, path)?;
            authorities(&bundle).map_err(|problem| error(variable, &problem))?;
            let certificates = Certificate::from_pem_bundle(&bundle);
            let certificates = certificates.map_err(|_| error(variable, DAMAGED))?;
            making.certificates = Some(certificates);
        }
        if let Some([(variable, certificate), (key_variable, key)]) = settings.client {
            let key = read(key_variable, key)?;
            let certificate = read(variable, certificate)?;
            let mut pem = Zeroizing::new(Vec::with_capacity(key.len() + 1 + certificate.len()));
            pem.extend_from_slice(&key);
            pem.push(b'\n');
            pem.extend_from_slice(&certificate);
            let identity = Identity::from_pem(&pem).map_err(|_| {
                error(variable, &format!("and {key_variable} hold no certificate and key in PEM"))
            })?;
            making.identity = Some(identity);
        }
        let named = settings.client.map(|[(variable, _), _]| variable);
        let named = named.or(settings.ca_file.map(|(variable, _)| variable)).unwrap_or("SSL_CERT_FILE");
        let client = making
            .client()
            .map_err(|_| error(named, "TLS cannot be set up with these certificates and the system's"))?;
        Ok(Self { client: Mutex::new(Some(client)), making, origins: settings.origins })
    }

    fn client(&self) -> Result<Client, KmsError> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        match &*client {
            Some(client) => Ok(client.clone()),
            None => {
                let made = self.making.client().map_err(|_| KmsError::local(KmsErrorClass::Internal))?;
                *client = Some(made.clone());
                Ok(made)
            }
        }
    }

    /// Sends one request. The error is [`KmsErrorClass::Unreachable`], [`KmsErrorClass::Timeout`],
    /// [`KmsErrorClass::Internal`] for an answer that is too long, or
    /// [`KmsErrorClass::Misconfigured`] for an origin that is not ours.
    pub(super) async fn send(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Reply, KmsError> {
        if !self.origins.iter().any(|ours| ours.origin() == url.origin()) {
            return Err(KmsError::local(KmsErrorClass::Misconfigured));
        }
        let mut request = self.client()?.request(method, url).headers(headers);
        if !body.is_empty() {
            request = request.body(body);
        }
        timeout_at(deadline, receive(request))
            .await
            .unwrap_or_else(|_| Err(KmsError::local(KmsErrorClass::Timeout)))
    }
}

impl Making {
    fn client(&self) -> reqwest::Result<Client> {
        let mut builder = Client::builder()
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("byok/", env!("CARGO_PKG_VERSION")))
            // A host that does not answer at all is out of reach, not slow, so the request is
            // retried within the deadline.
            .connect_timeout(self.timeout / 4)
            // The same applies to a connection that does not even answer a ping: with HTTP/2, all
            // calls would share it.
            .http2_keep_alive_interval(self.timeout / 4)
            .http2_keep_alive_timeout(self.timeout / 4);
        if let Some(certificates) = &self.certificates {
            builder = builder.tls_certs_only(certificates.clone());
        }
        if let Some(identity) = &self.identity {
            builder = builder.identity(identity.clone());
        }
        builder.build()
    }
}

async fn receive(request: reqwest::RequestBuilder) -> Result<Reply, KmsError> {
    // The text of reqwest's error contains the address, so only the class leaves this function.
    let unreachable = |error: reqwest::Error| {
        let distrust = Distrust::of(&error);
        KmsError { distrust, ..KmsError::local(KmsErrorClass::Unreachable) }
    };
    let mut response = request.send().await.map_err(unreachable)?;
    let status = response.status().as_u16();
    let announced = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let too_long = KmsError::answered(KmsErrorClass::Internal, status, None);
    if announced > MAX_ANSWER_BYTES {
        return Err(too_long);
    }
    let headers = std::mem::take(response.headers_mut());
    let mut body = Zeroizing::new(Vec::with_capacity(announced.max(USUAL_ANSWER_BYTES)));
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(too_long);
        }
        append(&mut body, &chunk);
    }
    Ok(Reply { status, headers, body })
}

/// Grows a buffer by copying into new memory and wiping the old, which `Vec` alone would not.
fn append(body: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    if body.capacity() - body.len() < chunk.len() {
        let mut larger = Zeroizing::new(Vec::with_capacity((body.len() + chunk.len()) * 2));
        larger.extend_from_slice(body);
        *body = larger;
    }
    body.extend_from_slice(chunk);
}

fn pause(text: &str) -> Option<Duration> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the date is from the other side's wall clock; the deadline bounds it"
    )]
    let now = SystemTime::now();
    match text.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}

const DAMAGED: &str = "names a file in which a certificate's PEM is damaged";

/// Whether a file holds certificates in PEM, each of which can be trusted as an authority's.
fn authorities(bundle: &[u8]) -> Result<(), String> {
    let has = |text: &str| bundle.windows(text.len()).any(|window| window == text.as_bytes());
    let without = |what: &str| format!("names a file without a certificate in PEM: {what}");
    let mut roots = rustls::RootCertStore::empty();
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        let certificate = certificate.map_err(|_| DAMAGED.to_owned())?;
        count += 1;
        let unusable = |_| {
            format!(
                "names a file whose certificate no. {count} is not an X.509 certificate that can be trusted"
            )
        };
        roots.add(certificate).map_err(unusable)?;
    }
    match count {
        0 if bundle.is_empty() => Err(without("it is empty")),
        // A DER sequence, as RFC 5280 has a certificate.
        0 if bundle.starts_with(&[0x30, 0x82]) => {
            Err(without("it is in DER; `openssl x509 -inform der -in FILE -out FILE.pem` makes PEM of it"))
        }
        0 if has("BEGIN TRUSTED CERTIFICATE") => {
            Err(without("it is in OpenSSL's own form; `openssl x509 -in FILE -out FILE.pem` makes PEM of it"))
        }
        0 if has("PRIVATE KEY-----") => Err(without("it holds a private key")),
        0 if has("BEGIN CERTIFICATE") => Err(DAMAGED.to_owned()),
        0 => Err(without("it holds something else")),
        _ => Ok(()),
    }
}

fn read(variable: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
    read_file(path).map_err(|problem| error(variable, &problem.to_string()))
}

fn error(variable: &str, problem: &str) -> ConfigError {
    ConfigError { variable: variable.to_owned(), problem: problem.to_owned() }
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
    fn the_error_says_what_a_file_without_an_authority_holds() {
        let problem = |bundle: &[u8]| authorities(bundle).err().unwrap_or_default();
        for (bundle, why) in [
            (&b""[..], "it is empty"),
            (&[0x30, 0x82, 1, 2][..], "it is in DER"),
            (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "a private key"),
            (
                b"-----BEGIN TRUSTED CERTIFICATE-----\nAAAA\n-----END TRUSTED CERTIFICATE-----\n",
                "OpenSSL's own",
            ),
            (b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n", "damaged"),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n", "damaged"),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate no. 1"),
            (b"hello", "something else"),
        ] {
            assert!(problem(bundle).contains(why), "{why}: {}", problem(bundle));
        }
    }

    #[test]
    fn a_body_that_grows_keeps_what_it_holds() {
        let mut body = Zeroizing::new(Vec::with_capacity(2));
        for _ in 0..10 {
            append(&mut body, b"abc");
        }
        assert_eq!(**body, b"abc".repeat(10));
    }

    #[tokio::test]
    async fn a_request_to_another_origin_is_not_sent() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = |text: &str| Url::parse(text).unwrap();
        let http = Http::new(HttpSettings {
            origins: vec![url("https://kms.example.com/v1")],
            ca_file: None,
            client: None,
            timeout: Duration::from_secs(1),
        })
        .ok()
        .unwrap();
        for other in [
            "http://kms.example.com",
            "https://kms.example.com:8443",
            "https://kms.example.com.evil.net",
            "https://kms.example.com@evil.net",
            "https://169.254.169.254",
        ] {
            let deadline = Instant::now() + Duration::from_secs(1);
            let sent = http.send(Method::GET, url(other), HeaderMap::new(), Bytes::new(), deadline).await;
            assert_eq!(sent.err().map(|error| error.class), Some(KmsErrorClass::Misconfigured), "{other}");
        }
    }
}
