//! One request to Vault: its address, namespace and token on top of `kms::http`.
//!
//! A standby forwards requests itself, unless that is turned off. If it answers 307 instead,
//! `BYOK_VAULT_ADDR` is wrong.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use hyper::body::Bytes;
use reqwest::Url;
use tokio::time::Instant;

use crate::config::{ConfigError, VaultSettings};
use crate::crypto::SecretText;
use crate::kms::http::{Http, HttpSettings, Reply};
use crate::kms::{Connections, KmsError, KmsErrorClass};

/// A client of one Vault.
pub(super) struct Transport {
    http: Http,
    base: String,
    headers: HeaderMap,
}

impl Connections for Transport {
    fn hang_up(&self) {
        self.http.hang_up();
    }
}

impl Transport {
    /// Reads the certificate files; sends nothing.
    pub(super) fn new(settings: &VaultSettings) -> Result<Self, ConfigError> {
        let mut headers = HeaderMap::new();
        // Vault's agents and proxies can be configured to refuse requests without it, against
        // forged requests from browsers.
        headers.insert("X-Vault-Request", HeaderValue::from_static("true"));
        if let Some(namespace) = &settings.namespace {
            let value = HeaderValue::from_str(namespace).map_err(|_| ConfigError {
                variable: "BYOK_VAULT_NAMESPACE".to_owned(),
                problem: "is not a namespace".to_owned(),
            })?;
            headers.insert("X-Vault-Namespace", value);
        }
        let http = Http::new(HttpSettings {
            origins: vec![settings.address.clone()],
            ca_file: settings.ca_file.as_deref().map(|path| ("BYOK_VAULT_CACERT", path)),
            client: settings.client.as_ref().map(|client| {
                [
                    ("BYOK_VAULT_CLIENT_CERT", client.certificate_file.as_path()),
                    ("BYOK_VAULT_CLIENT_KEY", client.key_file.as_path()),
                ]
            }),
            timeout: settings.timeout,
        })?;
        Ok(Self { http, base: format!("{}/v1/", settings.address.as_str().trim_end_matches('/')), headers })
    }

    /// Sends one request; errors as [`Http::send`].
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&SecretText>,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Reply, KmsError> {
        let url = Url::parse(&format!("{}{path}", self.base))
            .map_err(|_| KmsError::local(KmsErrorClass::Misconfigured))?;
        let mut headers = self.headers.clone();
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(token.expose())
                .map_err(|_| KmsError::local(KmsErrorClass::CredentialInvalid))?;
            value.set_sensitive(true);
            headers.insert("X-Vault-Token", value);
        }
        if !body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        self.http.send(method, url, headers, body, deadline).await
    }
}
