//! The exchange of a credential for an access token.
//!
//! | credential | asks | for |
//! |---|---|---|
//! | service account | its `token_uri`, with an assertion signed by its key (RFC 7523) | a token of one scope |
//! | user | its `token_uri`, with the refresh token (RFC 6749, 6) | a token of the scopes that were granted |
//! | metadata server | `…/service-accounts/default/token` | a token of the machine's scopes |
//! | impersonation | `generateAccessToken`, with a token of one of the above | a token of one scope |
//!
//! Where Google lets us choose the scope, the token for our calls is for Cloud KMS only, and the
//! one that impersonation starts from is for IAM only.
//!
//! [`Login`] is a [`Source`] of tokens; `kms::renewal` decides when to ask for another one. A token
//! is replaced in the last quarter of its life, at most 225 seconds before its end: the metadata
//! server has a new one 300 seconds before the end. Google may refuse the credential long before it
//! refuses the token.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};
use hyper::body::Bytes;
use reqwest::Url;
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::config::{GcpCredentials, GcpIdentity, SecretSource, read_text};
use crate::crypto::{RsaSigningKey, SecretText, sha256};
use crate::kms::call::Failed;
use crate::kms::http::{Http, Reply};
use crate::kms::pacing::Fingerprint;
use crate::kms::renewal::{Granted, Life, Meaning, Rules, Source};
use crate::kms::{KmsError, KmsErrorClass};
use crate::model::{Clock, SystemClock};

use super::errors;
use super::under;

const KMS_SCOPE: &str = "https://www.googleapis.com/auth/cloudkms";
const IAM_SCOPE: &str = "https://www.googleapis.com/auth/iam";
/// The life of an assertion and of an impersonated token: Google's maximum without further rights.
const HOUR: Duration = Duration::from_secs(3600);
/// The longest time before its end at which a token is replaced.
const EARLY: Duration = Duration::from_secs(225);
/// The bounds of a token's life, whatever its issuer says. A token that ends earlier is refused by
/// the KMS and then replaced.
const LIFE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(12 * 3600));
/// The number of refusals in a row that drop a token. A single one may come from a part of Google
/// that lags behind.
const REFUSALS: u32 = 3;
const METADATA_PATH: &str = "computeMetadata/v1/instance/service-accounts/default/token";

/// Our identity, and the account that we impersonate.
pub(super) struct Login {
    pub(super) identity: GcpIdentity,
    pub(super) impersonate: Option<String>,
    pub(super) iam_endpoint: Url,
    pub(super) http: Arc<Http>,
}

/// A token, ready to be sent.
pub(super) struct Token {
    /// `Bearer …`; wiped when the last request that carries it is dropped.
    bearer: HeaderValue,
    /// The time for which it was granted.
    lasts: Duration,
    /// The project whose quota its requests count against, if its holder has no project.
    quota_project: Option<HeaderValue>,
}

impl Token {
    /// Puts it into a request.
    pub(super) fn sign(&self, headers: &mut HeaderMap) {
        headers.insert(AUTHORIZATION, self.bearer.clone());
        if let Some(project) = &self.quota_project {
            headers.insert("x-goog-user-project", project.clone());
        }
    }
}

impl Login {
    /// The rules by which its tokens are renewed.
    pub(super) fn rules(timeout: Duration) -> Rules {
        Rules { timeout, refusals: REFUSALS, renews_unused: true }
    }

    async fn ask(&self, credentials: Option<&GcpCredentials>, deadline: Instant) -> Result<Token, KmsError> {
        let http = &self.http;
        let scope = if self.impersonate.is_some() { IAM_SCOPE } else { KMS_SCOPE };
        let token = match (credentials, &self.identity) {
            (Some(GcpCredentials::Impersonated { source, account, delegates, endpoint }), _) => {
                let source = of_key(source, IAM_SCOPE, http, deadline).await?;
                let endpoint = endpoint.as_ref().unwrap_or(&self.iam_endpoint);
                act_as(account, delegates, scope, endpoint, &source, http, deadline).await?
            }
            (Some(credentials), _) => of_key(credentials, scope, http, deadline).await?,
            (None, GcpIdentity::Metadata(address)) => of_machine(address, http, deadline).await?,
            (None, GcpIdentity::Credentials(_)) => return Err(KmsError::local(KmsErrorClass::Misconfigured)),
        };
        match &self.impersonate {
            Some(account) => {
                act_as(account, &[], KMS_SCOPE, &self.iam_endpoint, &token, http, deadline).await
            }
            None => Ok(token),
        }
    }
}

impl Source for Login {
    type Credential = Token;
    /// The credential; `None` if the metadata server has it.
    type Evidence = Option<GcpCredentials>;

    /// Reads the credential again if it is in a file, which may have been replaced.
    fn evidence(&self) -> Result<(Option<GcpCredentials>, Fingerprint), KmsError> {
        let misconfigured = || KmsError::local(KmsErrorClass::Misconfigured);
        let from_file;
        let json = match &self.identity {
            GcpIdentity::Metadata(_) => return Ok((None, [0; 32])),
            GcpIdentity::Credentials(SecretSource::Text(text)) => text,
            GcpIdentity::Credentials(SecretSource::File(path)) => {
                let mut text = read_text(path).map_err(|_| misconfigured())?;
                from_file = SecretText::new(std::mem::take(&mut *text));
                &from_file
            }
        };
        let credentials = GcpCredentials::parse(json.expose()).map_err(|_| misconfigured())?;
        Ok((Some(credentials), sha256(json.expose().as_bytes())))
    }

    async fn fetch(
        &self,
        credentials: Option<GcpCredentials>,
        deadline: Instant,
    ) -> Result<Granted<Token>, Failed> {
        let token = self.ask(credentials.as_ref(), deadline).await?;
        let lasts = token.lasts.clamp(LIFE.0, LIFE.1);
        let renew_after = (lasts - (lasts / 4).min(EARLY)).max(LIFE.0);
        let life = Life { granted: Some(lasts), usable: Some(lasts), renew_after: Some(renew_after) };
        Ok(Granted { credential: token, life })
    }

    fn meaning(&self, failed: &Failed) -> Meaning {
        match failed.error.class {
            KmsErrorClass::CredentialInvalid => Meaning::Refused,
            _ => Meaning::Outage,
        }
    }

    fn note(&self, error: &KmsError) {
        tracing::warn!(class = ?error.class, http_status = error.http_status, "no Google access token could be obtained");
    }
}

async fn of_key(
    credentials: &GcpCredentials,
    scope: &str,
    http: &Http,
    deadline: Instant,
) -> Result<Token, KmsError> {
    let (form, token_uri, quota_project) = match credentials {
        GcpCredentials::ServiceAccount { email, key_id, private_key, token_uri } => {
            let assertion = assertion(email, key_id.as_deref(), private_key, token_uri, scope)?;
            let grant = "urn:ietf:params:oauth:grant-type:jwt-bearer";
            (form(&[("grant_type", grant), ("assertion", &assertion)]), token_uri, None)
        }
        GcpCredentials::User { client_id, client_secret, refresh_token, token_uri, quota_project } => {
            let form = form(&[
                ("grant_type", "refresh_token"),
                ("client_id", client_id),
                ("client_secret", client_secret.expose()),
                ("refresh_token", refresh_token.expose()),
            ]);
            let project = quota_project.as_deref().and_then(|project| HeaderValue::from_str(project).ok());
            (form, token_uri, project)
        }
        GcpCredentials::Impersonated { .. } => return Err(KmsError::local(KmsErrorClass::Misconfigured)),
    };
    let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, kind)]);
    let reply =
        http.send(Method::POST, token_uri.clone(), headers, Bytes::from_owner(form), deadline).await?;
    match reply.status {
        200 => Ok(Token { quota_project, ..token(&reply)? }),
        _ => Err(errors::of_token(&reply)),
    }
}

async fn of_machine(address: &Url, http: &Http, deadline: Instant) -> Result<Token, KmsError> {
    let mut headers = HeaderMap::new();
    headers.insert("Metadata-Flavor", HeaderValue::from_static("Google"));
    let url = under(address, METADATA_PATH)?;
    let reply = http.send(Method::GET, url, headers, Bytes::new(), deadline).await?;
    match reply.status {
        200 if errors::is_metadata(&reply) => token(&reply),
        200 => Err(errors::internal(&reply)),
        _ => Err(errors::of_metadata(&reply)),
    }
}

/// <https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken>
async fn act_as(
    account: &str,
    delegates: &[String],
    scope: &str,
    endpoint: &Url,
    by: &Token,
    http: &Http,
    deadline: Instant,
) -> Result<Token, KmsError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer<'a> {
        #[serde(borrow)]
        access_token: Cow<'a, str>,
        expire_time: &'a str,
    }

    let url = under(endpoint, &format!("v1/projects/-/serviceAccounts/{account}:generateAccessToken"))?;
    let body =
        json!({ "scope": [scope], "delegates": delegates, "lifetime": format!("{}s", HOUR.as_secs()) });
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    by.sign(&mut headers);
    let reply = http.send(Method::POST, url, headers, Bytes::from(body.to_string()), deadline).await?;
    if reply.status != 200 {
        return Err(errors::of_impersonation(&reply));
    }
    let answer: Answer<'_> = serde_json::from_slice(&reply.body).map_err(|_| errors::internal(&reply))?;
    let end = OffsetDateTime::parse(answer.expire_time, &Rfc3339).map_err(|_| errors::internal(&reply))?;
    // The life is computed by the issuer's clock, because ours may be wrong. It is never longer
    // than what was asked for.
    let now = reply.date().unwrap_or_else(|| SystemClock.now().unix_seconds());
    let lasts = end.unix_timestamp().saturating_sub(now);
    let lasts = Duration::from_secs(lasts.try_into().unwrap_or(0)).min(HOUR);
    bearer(answer.access_token.into_owned(), lasts).ok_or_else(|| errors::internal(&reply))
}

/// The token in an answer of a token endpoint or the metadata server.
fn token(reply: &Reply) -> Result<Token, KmsError> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        access_token: Cow<'a, str>,
        expires_in: u64,
    }

    let answer = serde_json::from_slice::<Answer<'_>>(&reply.body).ok();
    let token = answer
        .and_then(|answer| bearer(answer.access_token.into_owned(), Duration::from_secs(answer.expires_in)));
    token.ok_or_else(|| errors::internal(reply))
}

fn bearer(token: String, lasts: Duration) -> Option<Token> {
    let token = Zeroizing::new(token);
    let mut text = Zeroizing::new(Vec::with_capacity(token.len() + 7));
    text.extend_from_slice(b"Bearer ");
    text.extend_from_slice(token.as_bytes());
    let mut bearer = HeaderValue::from_maybe_shared(Bytes::from_owner(text)).ok()?;
    bearer.set_sensitive(true);
    (!token.is_empty()).then_some(Token { bearer, lasts, quota_project: None })
}

/// <https://developers.google.com/identity/protocols/oauth2/service-account#authorizingrequests>
fn assertion(
    email: &str,
    key_id: Option<&str>,
    private_key: &SecretText,
    audience: &Url,
    scope: &str,
) -> Result<Zeroizing<String>, KmsError> {
    let key = RsaSigningKey::from_pem(private_key)
        .map_err(|_| KmsError::local(KmsErrorClass::CredentialInvalid))?;
    let now = SystemClock.now().unix_seconds();
    let mut header = json!({ "alg": "RS256", "typ": "JWT" });
    if let Some(key_id) = key_id {
        header["kid"] = key_id.into();
    }
    let claims = json!({
        "iss": email, "scope": scope, "aud": audience.as_str(), "iat": now,
        "exp": now.saturating_add(HOUR.as_secs().try_into().unwrap_or(i64::MAX)),
    });
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let message = format!("{header}.{claims}");
    let signature = Zeroizing::new(key.sign_sha256(message.as_bytes()));
    // At its final size, so that growing leaves no copy: the signature is enough to get a token.
    let mut assertion =
        Zeroizing::new(String::with_capacity(message.len() + 1 + signature.len() * 4 / 3 + 4));
    assertion.push_str(&message);
    assertion.push('.');
    URL_SAFE_NO_PAD.encode_string(&*signature, &mut assertion);
    Ok(assertion)
}

/// `application/x-www-form-urlencoded`, in memory that is wiped and does not grow.
fn form(pairs: &[(&str, &str)]) -> Zeroizing<Vec<u8>> {
    let most = pairs.iter().map(|(name, value)| name.len() + 2 + value.len() * 3).sum();
    let mut form = Zeroizing::new(Vec::with_capacity(most));
    for (name, value) in pairs {
        if !form.is_empty() {
            form.push(b'&');
        }
        form.extend_from_slice(name.as_bytes());
        form.push(b'=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => form.push(byte),
                _ => form.extend([b'%', hex(byte >> 4), hex(byte & 15)]),
            }
        }
    }
    form
}

fn hex(digit: u8) -> u8 {
    b"0123456789ABCDEF"[usize::from(digit)]
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_form_escapes_what_means_something() {
        let form = form(&[("a", "1//0g+x y&b=c"), ("b", "é")]);
        assert_eq!(std::str::from_utf8(&form).unwrap(), "a=1%2F%2F0g%2Bx%20y%26b%3Dc&b=%C3%A9");
    }

    #[test]
    fn an_assertion_has_issuer_audience_scope_and_lifetime() {
        let pem = SecretText::new(include_str!("../../auth/jwt/testdata/rsa2048.private.pem").to_owned());
        let audience = Url::parse("https://oauth2.googleapis.com/token").unwrap();
        let assertion =
            assertion("a@p.iam.gserviceaccount.com", Some("k1"), &pem, &audience, "s").ok().unwrap();
        let parts: Vec<_> = assertion.split('.').collect();
        let json =
            |part: &str| -> Value { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap() };
        assert_eq!(json(parts[0]), json!({ "alg": "RS256", "typ": "JWT", "kid": "k1" }));
        let claims = json(parts[1]);
        assert_eq!(claims["iss"], "a@p.iam.gserviceaccount.com");
        assert_eq!((&claims["aud"], &claims["scope"]), (&json!(audience.as_str()), &json!("s")));
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3600);
    }

    #[test]
    fn a_token_that_could_not_be_a_header_is_none() {
        assert!(bearer("ya29.x".to_owned(), HOUR).unwrap().bearer.is_sensitive());
        for bad in ["", "a\nb", "a\0"] {
            assert!(bearer(bad.to_owned(), HOUR).is_none());
        }
    }
}
