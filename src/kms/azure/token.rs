//! The access token that every request to the vault carries. Microsoft's credential types fetch it,
//! and `kms::renewal` decides when.
//!
//! - A new credential type is made for each token, so that files are read again and nothing is
//!   cached in it.
//! - A token is replaced after two thirds of its life.
//! - A token that the vault refuses is replaced once, if it is not brand-new.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions};
use azure_core::http::{ClientMethodOptions, ClientOptions, RetryOptions, Transport as Sent};
use azure_core::time::OffsetDateTime;
use azure_identity::{
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId, WorkloadIdentityCredential,
    WorkloadIdentityCredentialOptions,
};
use tokio::time::Instant;

use crate::config::{AzureCredential, AzureSettings, SecretSource, read_file, read_text};
use crate::crypto::{SecretText, sha256};
use crate::kms::call::Failed;
use crate::kms::pacing::Fingerprint;
use crate::kms::renewal::{Granted, Life, Meaning, Renewer, Rules, Source};
use crate::kms::{KmsError, KmsErrorClass};

use super::transport::{Exchange, Transport, stopped};

/// The time before its end at which a token is no longer sent, if that is less than a tenth of its
/// life.
const MARGIN: Duration = Duration::from_secs(10);
/// The age below which a token that the vault refuses is not replaced: a new one would be refused
/// as well.
const BRAND_NEW: Duration = Duration::from_secs(10);
/// The number of refusals in a row that drop a token. A new secret takes a moment to be known
/// everywhere.
const REFUSALS: u32 = 3;

/// The token in use, and its renewal.
#[derive(Clone)]
pub(super) struct Tokens {
    renewer: Arc<Renewer<Login>>,
    scope: Arc<str>,
}

/// Our identity at the authority.
struct Login {
    credential: AzureCredential,
    tenant: Option<String>,
    options: ClientOptions,
    scope: Arc<str>,
}

impl Tokens {
    pub(super) fn new(settings: AzureSettings, transport: Arc<Transport>) -> Self {
        let mut cloud = CustomConfiguration::default();
        cloud.authority_host = settings.authority.as_str().to_owned();
        let options = ClientOptions {
            retry: RetryOptions::none(),
            transport: Some(Sent::with_policy(transport)),
            cloud: Some(Arc::new(CloudConfiguration::Custom(cloud))),
            ..ClientOptions::default()
        };
        let scope: Arc<str> = format!("{}/.default", settings.key.resource).into();
        let (credential, tenant) = (settings.credential, settings.tenant);
        let login = Login { credential, tenant, options, scope: Arc::clone(&scope) };
        let rules = Rules { timeout: settings.timeout, refusals: REFUSALS, renews_unused: true };
        Self { renewer: Arc::new(Renewer::start(login, rules)), scope }
    }

    /// Gets another token in place of this one, which the vault refused. Returns whether there is
    /// one, so that another attempt makes sense.
    pub(super) async fn replace(
        &self,
        refused: &Arc<SecretText>,
        deadline: Instant,
    ) -> Result<bool, KmsError> {
        if self.renewer.age(refused).is_some_and(|age| age < BRAND_NEW) {
            return Ok(false);
        }
        Ok(self.renewer.another(refused, deadline).await?.is_some())
    }
}

/// The credential that Microsoft's client asks before each request.
#[async_trait]
impl TokenCredential for Tokens {
    async fn get_token(
        &self,
        scopes: &[&str],
        options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        let options = options.unwrap_or_default();
        let Some(exchange) = Exchange::of(&options.method_options.context) else { return Err(stopped()) };
        if scopes != [&*self.scope] {
            exchange.fail(KmsError::local(KmsErrorClass::Misconfigured).into());
            return Err(stopped());
        }
        match self.renewer.get(exchange.began, exchange.deadline).await {
            Ok(token) => {
                let secret = Secret::new(token.expose().to_owned());
                exchange.bear(token);
                // Expired from the client's point of view, so that it asks again for each request.
                Ok(AccessToken::new(secret, OffsetDateTime::UNIX_EPOCH))
            }
            Err(error) => {
                exchange.fail(error.into());
                Err(stopped())
            }
        }
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

impl Source for Login {
    type Credential = SecretText;
    type Evidence = ();

    /// Files are read again by the credential type that is made for each token.
    fn evidence(&self) -> Result<((), Fingerprint), KmsError> {
        let of_file = |path: &Path| {
            read_file(path)
                .map(|bytes| ((), sha256(&bytes)))
                .map_err(|_| KmsError::local(KmsErrorClass::Misconfigured))
        };
        match &self.credential {
            AzureCredential::ClientSecret { secret: SecretSource::File(path), .. } => of_file(path),
            AzureCredential::WorkloadIdentity { token_file, .. } => of_file(token_file),
            AzureCredential::ClientSecret { secret: SecretSource::Text(_), .. }
            | AzureCredential::ManagedIdentity { .. } => Ok(((), Fingerprint::default())),
        }
    }

    async fn fetch(&self, (): (), deadline: Instant) -> Result<Granted<SecretText>, Failed> {
        let (credential, life) = self.ask(deadline).await?;
        Ok(Granted { credential, life: life_of(life) })
    }

    fn meaning(&self, Failed { error, wait }: &Failed) -> Meaning {
        match error.class {
            KmsErrorClass::AccessDenied | KmsErrorClass::CredentialInvalid | KmsErrorClass::Misconfigured => {
                Meaning::Refused
            }
            KmsErrorClass::Throttled => Meaning::Deferred(*wait),
            _ => Meaning::Outage,
        }
    }

    fn note(&self, error: &KmsError) {
        tracing::warn!(class = ?error.class, http_status = error.http_status, "no Entra token could be obtained");
    }
}

impl Login {
    /// Asks for a token; returns it with its life.
    async fn ask(&self, deadline: Instant) -> Result<(SecretText, Duration), Failed> {
        let credential = self.credential().map_err(KmsError::local)?;
        let exchange = Exchange::new(deadline);
        let options =
            TokenRequestOptions { method_options: ClientMethodOptions { context: exchange.context() } };
        let Ok(token) = credential.get_token(&[&*self.scope], Some(options)).await else {
            return Err(exchange.reply().err().unwrap_or_else(|| internal().into()));
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "its end is by the wall clock; its life is what is used"
        )]
        let now = OffsetDateTime::now_utc();
        let life = Duration::try_from(token.expires_on - now).unwrap_or_default();
        let token = SecretText::new(token.token.secret().to_owned());
        if token.expose().is_empty() || life.is_zero() {
            return Err(internal().into());
        }
        Ok((token, life))
    }

    /// A credential that holds no token yet.
    fn credential(&self) -> Result<Arc<dyn TokenCredential>, KmsErrorClass> {
        // This error says nothing about the key or our identity.
        let unreadable = KmsErrorClass::Misconfigured;
        let client_options = self.options.clone();
        let tenant = || self.tenant.clone().unwrap_or_default();
        Ok(match &self.credential {
            AzureCredential::ClientSecret { client_id, secret } => {
                let secret = match secret {
                    SecretSource::Text(text) => text.expose().to_owned(),
                    SecretSource::File(path) => {
                        let text = read_text(path).map_err(|_| unreadable)?;
                        trimmed(&text).to_owned()
                    }
                };
                let options = ClientSecretCredentialOptions { client_options };
                ClientSecretCredential::new(&tenant(), client_id.clone(), Secret::new(secret), Some(options))
                    .map_err(|_| KmsErrorClass::Misconfigured)?
            }
            AzureCredential::WorkloadIdentity { client_id, token_file } => {
                WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
                    credential_options: ClientAssertionCredentialOptions { client_options },
                    client_id: Some(client_id.clone()),
                    tenant_id: Some(tenant()),
                    token_file_path: Some(token_file.clone()),
                }))
                .map_err(|_| unreadable)?
            }
            AzureCredential::ManagedIdentity { client_id, .. } => {
                ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
                    user_assigned_id: client_id.clone().map(UserAssignedId::ClientId),
                    client_options,
                }))
                // A kind of machine whose managed identities Microsoft's client does not support.
                .map_err(|_| KmsErrorClass::Misconfigured)?
            }
        })
    }
}

fn life_of(life: Duration) -> Life {
    let usable = life.saturating_sub(MARGIN.min(life / 10));
    Life { granted: Some(life), usable: Some(usable), renew_after: Some(life * 2 / 3) }
}

fn internal() -> KmsError {
    KmsError::local(KmsErrorClass::Internal)
}

fn trimmed(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_replaced_after_two_thirds_of_its_life() {
        for (life, usable) in [(3_600, 3_590), (60, 54)] {
            let of = life_of(Duration::from_secs(life));
            assert_eq!(of.usable, Some(Duration::from_secs(usable)));
            assert_eq!(of.renew_after, Some(Duration::from_secs(life * 2 / 3)));
        }
    }
}
