//! The transport that we give to Microsoft's clients, over `kms::http`. It checks everything that
//! comes from outside, so that no text of an answer gets into the clients' errors and logs:
//!
//! - Requests go only to the configured vault, authority and metadata service.
//! - **The challenge.** A vault's 401 names the authority and the resource of the token that it
//!   wants. Ours are configured, and a challenge that names others is refused, so that no vault can
//!   obtain a token for another service or send us to another authority. (The client itself
//!   compares only the resource.)
//! - Each request to the vault has an id of its own, which we choose and the vault logs. Ids in
//!   answers are not relied on.
//! - A failure is mapped to a class here (see `errors`). The client only learns that the request
//!   failed, and does not retry it.
//! - A vault's answer, which may hold a DEK, goes past the client to the caller and is wiped; the
//!   client gets an empty one. It has to read an authority's answer: the copies that Microsoft's
//!   types make of tokens and secrets are not wiped.
//!
//! An [`Exchange`] travels with each call through the client: it takes the deadline in, and the
//! answer or the failure out.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use azure_core::Uuid;
use azure_core::error::ErrorKind;
use azure_core::http::headers::{Headers, WWW_AUTHENTICATE};
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{AsyncRawResponse, Body, Context, Request, StatusCode};
use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use hyper::body::Bytes;
use reqwest::Url;
use tokio::time::Instant;

use crate::config::{
    AzureCredential, AzureIdentitySource, AzureSettings, ConfigError, is_same_azure_authority,
};
use crate::crypto::SecretText;
use crate::kms::call::Failed;
use crate::kms::http::{Http, HttpSettings, Reply};
use crate::kms::{Connections, KmsError, KmsErrorClass};

use super::errors::{self, Asked, CLIENT_REQUEST_ID};

/// The context of one attempt, which passes through Microsoft's client.
pub(super) struct Exchange {
    /// The time at which the attempt began.
    pub(super) began: Instant,
    pub(super) deadline: Instant,
    outcome: Mutex<Outcome>,
}

#[derive(Default)]
struct Outcome {
    token: Option<Arc<SecretText>>,
    reply: Option<Reply>,
    failed: Option<Failed>,
}

impl Exchange {
    pub(super) fn new(deadline: Instant) -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), deadline, outcome: Mutex::default() })
    }

    /// The context for the options of a client's method.
    pub(super) fn context(self: &Arc<Self>) -> Context<'static> {
        Context::new().with_value(Arc::clone(self))
    }

    /// The exchange in a method's context.
    pub(super) fn of<'a>(context: &'a Context<'_>) -> Option<&'a Arc<Self>> {
        context.value::<Arc<Self>>()
    }

    /// Notes the token that the request carries.
    pub(super) fn bear(&self, token: Arc<SecretText>) {
        self.outcome().token = Some(token);
    }

    /// Notes why the attempt failed.
    pub(super) fn fail(&self, failed: Failed) {
        self.outcome().failed = Some(failed);
    }

    /// The token that the last request carried.
    pub(super) fn token(&self) -> Option<Arc<SecretText>> {
        self.outcome().token.clone()
    }

    /// The vault's successful answer, or the failure.
    pub(super) fn reply(&self) -> Result<Reply, Failed> {
        let mut outcome = self.outcome();
        let failed = outcome.failed.take();
        // What the client itself does not like is no answer that the vault's documentation
        // describes.
        let internal = || KmsError::local(KmsErrorClass::Internal).into();
        outcome.reply.take().ok_or_else(|| failed.unwrap_or_else(internal))
    }

    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error for the client, which passes it on without the cause.
pub(super) fn stopped() -> azure_core::Error {
    azure_core::Error::with_message(ErrorKind::Other, "the request was stopped")
}

/// The transport of Microsoft's clients, which sends only to permitted services.
pub(super) struct Transport {
    http: Http,
    vault: Url,
    authority: Url,
    identity: Option<AzureIdentitySource>,
    tenant: Option<String>,
    resource: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Service {
    Vault,
    Authority,
    Identity,
}

impl Connections for Transport {
    fn hang_up(&self) {
        self.http.hang_up();
    }
}

impl Transport {
    /// Reads the certificate file; sends nothing.
    pub(super) fn new(settings: &AzureSettings) -> Result<Self, ConfigError> {
        let identity = match &settings.credential {
            AzureCredential::ManagedIdentity { source, .. } => Some(source.clone()),
            AzureCredential::ClientSecret { .. } | AzureCredential::WorkloadIdentity { .. } => None,
        };
        let token_source = match &identity {
            Some(AzureIdentitySource::Imds(url) | AzureIdentitySource::Endpoint(url)) => url,
            None => &settings.authority,
        };
        let http = Http::new(HttpSettings {
            origins: vec![settings.key.vault.clone(), token_source.clone()],
            ca_file: settings.ca_file.as_deref().map(|path| ("BYOK_AZURE_CA_FILE", path)),
            client: None,
            timeout: settings.timeout,
        })?;
        Ok(Self {
            http,
            vault: settings.key.vault.clone(),
            authority: settings.authority.clone(),
            identity,
            tenant: settings.tenant.clone(),
            resource: settings.key.resource.clone(),
        })
    }

    async fn answer(&self, request: &Request, exchange: &Exchange) -> Result<AsyncRawResponse, Failed> {
        let (service, url) = self.service(request.url())?;
        let mut headers = headers(request)?;
        // The client would give the same id to the challenge and to the call that follows it.
        let id = HeaderValue::from_str(&Uuid::new_v4().to_string())
            .map_err(|_| KmsError::local(KmsErrorClass::Internal))?;
        headers.insert(CLIENT_REQUEST_ID, id.clone());
        let bears_token = headers.contains_key(AUTHORIZATION);
        let Body::Bytes(body) = request.body() else {
            return Err(KmsError::local(KmsErrorClass::Internal).into());
        };
        let method = Method::from_bytes(request.method().as_str().as_bytes())
            .map_err(|_| KmsError::local(KmsErrorClass::Internal))?;
        let mut reply = self.http.send(method, url, headers, body.clone(), exchange.deadline).await?;
        match service {
            Service::Vault => reply.headers.insert(CLIENT_REQUEST_ID, id),
            // These are not calls to the key, and are logged elsewhere.
            Service::Authority | Service::Identity => reply.headers.remove(CLIENT_REQUEST_ID),
        };
        match (service, reply.status) {
            (Service::Vault, 200) if bears_token => {
                exchange.outcome().reply = Some(reply);
                Ok(AsyncRawResponse::from_bytes(StatusCode::Ok, Headers::new(), Bytes::new()))
            }
            // The request that asks for the challenge has no token and no body, so it cannot
            // succeed.
            (Service::Vault, 200) => Err(errors::error(KmsErrorClass::Internal, &reply).into()),
            (Service::Vault, 401) => {
                self.check_challenge(&reply)?;
                if bears_token {
                    return Err(errors::error(KmsErrorClass::CredentialInvalid, &reply).into());
                }
                // A challenge written by us: the client remembers what it parses for all later
                // requests.
                let mut headers = Headers::new();
                headers.insert(WWW_AUTHENTICATE, format!(r#"Bearer resource="{}""#, self.resource));
                Ok(AsyncRawResponse::from_bytes(StatusCode::Unauthorized, headers, Bytes::new()))
            }
            (Service::Vault, _) => {
                let asked = match request.url().path().rsplit('/').next() {
                    Some("wrapkey") => Asked::Wrap,
                    Some("unwrapkey") => Asked::Unwrap,
                    _ => Asked::Other,
                };
                Err(errors::of_vault(&reply, asked))
            }
            (Service::Authority | Service::Identity, 200) => Ok(AsyncRawResponse::from_bytes(
                StatusCode::Ok,
                Headers::new(),
                Bytes::from_owner(reply.body),
            )),
            (Service::Authority, _) => Err(errors::of_authority(&reply)),
            (Service::Identity, _) => Err(errors::of_identity(&reply)),
        }
    }

    /// The service of an address, and the address to send to. The client asks for tokens of a
    /// managed identity at a fixed address; if another address is configured, the request goes
    /// there.
    fn service(&self, url: &Url) -> Result<(Service, Url), KmsError> {
        if url.origin() == self.vault.origin() {
            return Ok((Service::Vault, url.clone()));
        }
        match &self.identity {
            None if url.origin() == self.authority.origin() => Ok((Service::Authority, url.clone())),
            Some(AzureIdentitySource::Endpoint(endpoint)) if url.origin() == endpoint.origin() => {
                Ok((Service::Identity, url.clone()))
            }
            Some(AzureIdentitySource::Imds(host)) if url.host_str() == Some("169.254.169.254") => {
                let mut configured = host.clone();
                configured.set_path(url.path());
                configured.set_query(url.query());
                Ok((Service::Identity, configured))
            }
            None | Some(AzureIdentitySource::Endpoint(_) | AzureIdentitySource::Imds(_)) => {
                Err(KmsError::local(KmsErrorClass::Misconfigured))
            }
        }
    }

    /// Whether the challenge of a 401 names our authority, our tenant and our resource.
    fn check_challenge(&self, reply: &Reply) -> Result<(), KmsError> {
        let challenges = reply.headers.get_all(http::header::WWW_AUTHENTICATE);
        let mut challenges = challenges.iter().filter_map(|value| value.to_str().ok());
        // Without one, something other than Key Vault answered.
        let challenge = challenges
            .find(|challenge| challenge.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer ")))
            .ok_or_else(|| errors::error(KmsErrorClass::Internal, reply))?;
        let authority = parameter(challenge, "authorization").and_then(|text| Url::parse(text).ok());
        let resource = parameter(challenge, "resource");
        let resource =
            resource.or(parameter(challenge, "scope").and_then(|text| text.strip_suffix("/.default")));
        let ours = authority.is_some_and(|authority| self.is_ours(&authority))
            && resource == Some(self.resource.as_str());
        if ours { Ok(()) } else { Err(errors::error(KmsErrorClass::Misconfigured, reply)) }
    }

    fn is_ours(&self, authority: &Url) -> bool {
        let tenant = authority.path_segments().and_then(|mut segments| segments.next()).unwrap_or_default();
        is_same_azure_authority(&self.authority, authority)
            && self.tenant.as_ref().is_none_or(|ours| ours.eq_ignore_ascii_case(tenant))
    }
}

#[async_trait]
impl Policy for Transport {
    async fn send(&self, context: &Context, request: &mut Request, _: &[Arc<dyn Policy>]) -> PolicyResult {
        let Some(exchange) = Exchange::of(context) else { return Err(stopped()) };
        self.answer(request, exchange).await.map_err(|failed| {
            exchange.fail(failed);
            stopped()
        })
    }
}

/// An empty description, since the client's own logs print the transport.
impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transport")
    }
}

/// The request's headers. The customer's log shows our name, not the client's.
fn headers(request: &Request) -> Result<HeaderMap, KmsError> {
    let internal = || KmsError::local(KmsErrorClass::Internal);
    let mut headers = HeaderMap::new();
    for (name, value) in request.headers().iter() {
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).map_err(|_| internal())?;
        let mut value = HeaderValue::from_str(value.as_str()).map_err(|_| internal())?;
        value.set_sensitive(name == AUTHORIZATION);
        headers.insert(name, value);
    }
    headers.remove(USER_AGENT);
    Ok(headers)
}

/// The value of a challenge's parameter (RFC 9110, 11.2): `name="value"`.
fn parameter<'a>(challenge: &'a str, name: &str) -> Option<&'a str> {
    let parameters = challenge.get(7..)?.split(',');
    parameters.filter_map(|one| one.trim().split_once('=')).find_map(|(key, value)| {
        let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
        key.trim().eq_ignore_ascii_case(name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenges_parameters_are_read_whole() {
        let challenge = r#"Bearer authorization="https://login/t", resource="https://vault.azure.net", x=1"#;
        assert_eq!(parameter(challenge, "authorization"), Some("https://login/t"));
        assert_eq!(parameter(challenge, "resource"), Some("https://vault.azure.net"));
        assert_eq!(parameter(challenge, "source"), None);
        assert_eq!(parameter(challenge, "x"), None);
    }
}
