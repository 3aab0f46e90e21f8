//! Google's credential files: what byok uses of them, and the addresses that they may name.
//!
//! A file of a service account, a user, or an impersonated service account names addresses. byok
//! checks these instead of following them: a token may be requested only at Google's own addresses
//! or, for tests, on this machine. Any other address is an error.

use std::borrow::Cow;

use reqwest::Url;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::is_loopback;
use crate::crypto::{RsaSigningKey, SecretText};

/// The addresses where a token may be requested, in addition to this machine.
const TOKEN_URIS: [&str; 3] = [
    "https://oauth2.googleapis.com/token",
    "https://accounts.google.com/o/oauth2/token",
    "https://www.googleapis.com/oauth2/v4/token",
];
/// The address where impersonation may be requested, in addition to this machine.
const IAM_ORIGIN: &str = "https://iamcredentials.googleapis.com";

/// A credential in the form of one of Google's files (<https://google.aip.dev/auth/4110>).
pub enum GcpCredentials {
    /// `service_account`.
    ServiceAccount {
        /// The account's name.
        email: String,
        /// The id of the account's key.
        key_id: Option<String>,
        /// The private key, as PKCS#8 in PEM.
        private_key: SecretText,
        /// The address where the key is exchanged for a token.
        token_uri: Url,
    },
    /// `authorized_user`, which `gcloud auth application-default login` writes.
    User {
        /// The id of gcloud, or of an OAuth client of the customer's.
        client_id: String,
        /// The client's secret. gcloud's own is public; a customer's is secret.
        client_secret: SecretText,
        /// The token that is exchanged for an access token.
        refresh_token: SecretText,
        /// The address where it is exchanged.
        token_uri: Url,
        /// The project whose quota the calls count against: a user's calls have no project of their
        /// own.
        quota_project: Option<String>,
    },
    /// `impersonated_service_account`.
    Impersonated {
        /// The credential that requests the impersonation.
        source: Box<Self>,
        /// The account to impersonate.
        account: String,
        /// The delegates in between.
        delegates: Vec<String>,
        /// An endpoint on this machine; `None` means Google's.
        endpoint: Option<Url>,
    },
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(rename = "type", default, borrow)]
    kind: Cow<'a, str>,
    universe_domain: Option<String>,
    token_uri: Option<String>,
    client_email: Option<String>,
    private_key_id: Option<String>,
    // Kept as raw JSON: unescaping by serde would leave a copy behind.
    #[serde(borrow)]
    private_key: Option<&'a RawValue>,
    client_id: Option<String>,
    #[serde(borrow)]
    client_secret: Option<&'a RawValue>,
    #[serde(borrow)]
    refresh_token: Option<&'a RawValue>,
    quota_project_id: Option<String>,
    service_account_impersonation_url: Option<String>,
    #[serde(default)]
    delegates: Vec<String>,
    #[serde(borrow)]
    source_credentials: Option<&'a RawValue>,
}

impl GcpCredentials {
    /// Parses a file's JSON.
    ///
    /// # Errors
    ///
    /// A sentence that tells what is wrong, and contains nothing of the file's content.
    pub fn parse(json: &str) -> Result<Self, &'static str> {
        let file: File<'_> =
            serde_json::from_str(json).map_err(|_| "is not the JSON of a Google credential")?;
        if file.universe_domain.as_deref().is_some_and(|domain| domain != "googleapis.com") {
            return Err(
                "is a credential of another universe than googleapis.com, which byok does not support",
            );
        }
        match &*file.kind {
            "service_account" => file.service_account(),
            "authorized_user" => file.user(),
            "impersonated_service_account" => file.impersonated(),
            "external_account" | "external_account_authorized_user" => Err(
                "is a workload identity federation's credential (external_account), which byok does not take: use the \
                 metadata server, a service account's key, or impersonation from one of them",
            ),
            _ => Err("is not a credential of a service account, a user, or an impersonated service account"),
        }
    }

    /// Returns the address where a token is requested. For an impersonated account, this is the
    /// address of its source.
    pub fn token_uri(&self) -> &Url {
        match self {
            Self::ServiceAccount { token_uri, .. } | Self::User { token_uri, .. } => token_uri,
            Self::Impersonated { source, .. } => source.token_uri(),
        }
    }
}

impl File<'_> {
    fn service_account(self) -> Result<GcpCredentials, &'static str> {
        let missing = "is a service account's credential without `client_email` and `private_key`";
        let token_uri = token_uri(self.token_uri.as_deref())?;
        let private_key = self.private_key.and_then(secret).ok_or(missing)?;
        RsaSigningKey::from_pem(&private_key)
            .map_err(|_| "has a `private_key` that is not an RSA key in PKCS#8 and PEM")?;
        let email = self.client_email.filter(|email| is_account(email)).ok_or(missing)?;
        Ok(GcpCredentials::ServiceAccount { email, key_id: self.private_key_id, private_key, token_uri })
    }

    fn user(self) -> Result<GcpCredentials, &'static str> {
        let missing = "is a user's credential without `client_id`, `client_secret` and `refresh_token`";
        let quota_project = self.quota_project_id;
        if quota_project.as_ref().is_some_and(|project| !project.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err("has a `quota_project_id` that is not the id of a project");
        }
        Ok(GcpCredentials::User {
            token_uri: token_uri(self.token_uri.as_deref())?,
            client_id: self.client_id.ok_or(missing)?,
            client_secret: self.client_secret.and_then(secret).ok_or(missing)?,
            refresh_token: self.refresh_token.and_then(secret).ok_or(missing)?,
            quota_project,
        })
    }

    fn impersonated(self) -> Result<GcpCredentials, &'static str> {
        let address = self.service_account_impersonation_url.and_then(|url| Url::parse(&url).ok());
        let address = address.ok_or("impersonates without a `service_account_impersonation_url`")?;
        if address.as_str() != format!("{}{}", address.origin().ascii_serialization(), address.path()) {
            return Err(
                "has a `service_account_impersonation_url` that holds more than scheme, host and path",
            );
        }
        let account = address
            .path()
            .strip_prefix("/v1/projects/-/serviceAccounts/")
            .and_then(|rest| rest.strip_suffix(":generateAccessToken"))
            .filter(|account| is_account(account))
            .ok_or("has a `service_account_impersonation_url` that names no service account")?
            .to_owned();
        let endpoint = if address.origin().ascii_serialization() == IAM_ORIGIN {
            None
        } else if is_loopback(&address) {
            address.join("/").ok()
        } else {
            return Err("has a `service_account_impersonation_url` that is not Google's");
        };
        if !self.delegates.iter().all(|delegate| is_account(delegate_account(delegate))) {
            return Err("has `delegates` that are not service accounts");
        }
        let source = self.source_credentials.ok_or("impersonates without `source_credentials`")?;
        match GcpCredentials::parse(source.get())? {
            GcpCredentials::Impersonated { .. } => Err("impersonates an account by another impersonation"),
            source => Ok(GcpCredentials::Impersonated {
                source: Box::new(source),
                account,
                delegates: self.delegates,
                endpoint,
            }),
        }
    }
}

/// Returns whether the text has the form `name@project.iam.gserviceaccount.com`. Such a text
/// contains nothing with a meaning in a URL.
pub(super) fn is_account(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    text.split_once('@').is_some_and(|(name, domain)| part(name) && part(domain))
}

fn delegate_account(delegate: &str) -> &str {
    delegate.strip_prefix("projects/-/serviceAccounts/").unwrap_or(delegate)
}

fn token_uri(text: Option<&str>) -> Result<Url, &'static str> {
    let text = text.unwrap_or(TOKEN_URIS[0]);
    let address = Url::parse(text).ok().filter(|address| {
        let plain =
            address.username().is_empty() && address.password().is_none() && address.fragment().is_none();
        TOKEN_URIS.contains(&text)
            || (is_loopback(address) && matches!(address.scheme(), "http" | "https") && plain)
    });
    address.ok_or("has a `token_uri` that is not Google's")
}

/// Returns the text of a JSON string, unescaped into memory that is wiped and does not grow.
/// Returns `None` if it is not a string, or contains an escape that no credential has.
fn secret(raw: &RawValue) -> Option<SecretText> {
    let text = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    let mut plain = zeroize::Zeroizing::new(String::with_capacity(text.len()));
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let (character, length) = match after.as_bytes().first()? {
            b'n' => ('\n', 1),
            b'r' => ('\r', 1),
            b't' => ('\t', 1),
            b'u' => (char::from_u32(u32::from_str_radix(after.get(1..5)?, 16).ok()?)?, 5),
            byte @ (b'/' | b'\\' | b'"') => (char::from(*byte), 1),
            _ => return None,
        };
        plain.push(character);
        rest = after.get(length..)?;
    }
    plain.push_str(rest);
    Some(SecretText::new(std::mem::take(&mut *plain))).filter(|secret| !secret.expose().is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const PEM: &str = include_str!("../../auth/jwt/testdata/rsa2048.private.pem");

    fn service_account() -> Value {
        json!({
            "type": "service_account", "project_id": "p", "private_key_id": "k", "private_key": PEM,
            "client_email": "byok@p.iam.gserviceaccount.com", "client_id": "1",
            "token_uri": "https://oauth2.googleapis.com/token", "universe_domain": "googleapis.com",
        })
    }

    fn with(mut json: Value, name: &str, value: impl Into<Value>) -> Value {
        json[name] = value.into();
        json
    }

    fn parse(json: &Value) -> Result<GcpCredentials, &'static str> {
        GcpCredentials::parse(&json.to_string())
    }

    fn impersonated(url: &str) -> Value {
        json!({
            "type": "impersonated_service_account", "service_account_impersonation_url": url,
            "source_credentials": service_account(),
        })
    }

    #[test]
    fn a_service_accounts_file_is_read_as_google_writes_it() {
        let Ok(GcpCredentials::ServiceAccount { email, private_key, .. }) = parse(&service_account()) else {
            panic!("it is one");
        };
        assert_eq!((email.as_str(), private_key.expose()), ("byok@p.iam.gserviceaccount.com", PEM));
    }

    #[test]
    fn a_token_is_requested_from_google_or_this_machine_only() {
        for fine in ["https://accounts.google.com/o/oauth2/token", "http://127.0.0.1:1/token"] {
            let parsed = parse(&with(service_account(), "token_uri", fine)).ok().unwrap();
            assert_eq!(parsed.token_uri().as_str(), fine);
        }
        for bad in [
            "https://oauth2.googleapis.com.evil.net/token",
            "http://oauth2.googleapis.com/token",
            "https://oauth2.googleapis.com/token/../x",
            "http://169.254.169.254/token",
            "http://x@127.0.0.1/token",
            "file:///etc/passwd",
        ] {
            assert!(parse(&with(service_account(), "token_uri", bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn impersonation_is_asked_for_at_googles_address_or_on_this_machine() {
        let of = |host: &str| {
            impersonated(&format!(
                "{host}/v1/projects/-/serviceAccounts/a@p.iam.gserviceaccount.com:generateAccessToken"
            ))
        };
        assert!(parse(&of("https://iamcredentials.googleapis.com")).is_ok());
        let Ok(GcpCredentials::Impersonated { endpoint, account, .. }) = parse(&of("http://localhost:7"))
        else {
            panic!("it is one");
        };
        assert_eq!(endpoint.unwrap().as_str(), "http://localhost:7/");
        assert_eq!(account, "a@p.iam.gserviceaccount.com");
        for bad in [
            "https://evil.net",
            "http://iamcredentials.googleapis.com",
            "https://x@iamcredentials.googleapis.com",
        ] {
            assert!(parse(&of(bad)).is_err(), "{bad}");
        }
        for bad in ["https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/a@p:signBlob", ""] {
            assert!(parse(&impersonated(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_taken_is_said_plainly() {
        let federation = json!({ "type": "external_account", "audience": "x" });
        assert!(parse(&federation).err().unwrap().contains("external_account"));
        let universe = with(service_account(), "universe_domain", "example.goog");
        assert!(parse(&universe).err().unwrap().contains("universe"));
    }

    #[test]
    fn an_incomplete_file_is_refused_and_its_content_is_not_shown() {
        for bad in [
            with(
                service_account(),
                "private_key",
                "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----",
            ),
            with(service_account(), "private_key", Value::Null),
            with(service_account(), "client_email", "canary"),
            with(service_account(), "type", "canary"),
            json!({ "type": "authorized_user", "client_id": "c", "client_secret": "canary" }),
            with(impersonated("https://evil.net/canary"), "source_credentials", Value::Null),
        ] {
            assert!(!parse(&bad).err().unwrap().contains("canary"));
        }
    }

    #[test]
    fn an_escape_in_a_secret_is_undone() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        assert_eq!(secret(&raw(r#""1\/\/a\u003d\n""#)).unwrap().expose(), "1//a=\n");
        for bad in [r#""""#, "7", r#""\ud800""#, r#""\b""#] {
            assert!(secret(&raw(bad)).is_none(), "{bad}");
        }
    }
}
