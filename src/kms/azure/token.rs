//! The access token that every request to the vault bears: from Microsoft's credential types, which
//! fetch it, into a cache of ours, which decides when.
//!
//! - A new credential is made for each token, so that a file's present content counts and nothing
//!   is cached but here.
//! - One fetch at a time. It goes on if the call that began it ends; whoever waited for it shares
//!   what came of it, a failure too.
//! - A token is replaced after [`LONGEST_USE`] at the latest, in the background and long before its
//!   end. So a credential that the customer has revoked shows within that time, and an outage of
//!   the authority shorter than the rest of the token's life is not felt: a token that lives goes
//!   on being used while no other is to be had.
//! - A credential that is refused (not one that gets no answer) is not shown again at once: the
//!   pause doubles from one second to sixty, unless it changes meanwhile. After [`REFUSALS`]
//!   refusals the token that it gave before is dropped; not after the first, since a new secret
//!   takes a moment to be known everywhere. An outage between them makes none of them forgotten.
//! - A token that the vault refuses is replaced once, if it is not brand-new.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::{Instant, timeout_at};

use crate::config::{AzureCredential, AzureSettings, SecretSource, read_file, read_text};
use crate::crypto::{SecretText, sha256};
use crate::kms::call::Failed;
use crate::kms::pacing::{Fingerprint, PAUSES};
use crate::kms::{KmsError, KmsErrorClass};

use super::transport::{Exchange, Transport, stopped};

/// How long a token is used at most before another one is asked for.
const LONGEST_USE: Duration = Duration::from_secs(900);
/// The time before its end at which a token is not sent any more, if that is less than a tenth of
/// its life.
const MARGIN: Duration = Duration::from_secs(10);
/// The age below which a token that the vault refuses is not replaced: a new one would be refused
/// the same.
const BRAND_NEW: Duration = Duration::from_secs(10);
/// After so many refusals in a row the token in use is dropped.
const REFUSALS: u32 = 3;
/// How long after a failed renewal in the background the next one is tried, at least and at most.
const RENEWAL_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The token in use and the way to another one.
#[derive(Clone)]
pub(super) struct Tokens(Arc<Inner>);

struct Inner {
    credential: AzureCredential,
    tenant: Option<String>,
    options: ClientOptions,
    scope: String,
    timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    flight: Option<Flight>,
    /// The last failure that forbids to try again at once.
    refusal: Option<Refusal>,
    /// The last failure of any kind but the flight's own deadline, and when it was.
    failed: Option<(Instant, KmsError)>,
}

struct Held {
    token: Arc<SecretText>,
    since: Instant,
    usable_until: Instant,
    renew_at: Instant,
}

struct Refusal {
    error: KmsError,
    credential: Fingerprint,
    until: Instant,
    pause: Duration,
    count: u32,
}

type Flight = Shared<BoxFuture<'static, Result<Arc<SecretText>, KmsError>>>;

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
        Self(Arc::new(Inner {
            credential: settings.credential,
            tenant: settings.tenant,
            options,
            scope: format!("{}/.default", settings.key.resource),
            timeout: settings.timeout,
            state: Mutex::default(),
        }))
    }

    /// The vault refused this token. Whether there may be another one now, so that trying once more
    /// makes sense.
    pub(super) fn refused(&self, token: &Arc<SecretText>) -> bool {
        let mut state = self.0.state();
        match &state.held {
            Some(held) if Arc::ptr_eq(&held.token, token) => {
                if held.since.elapsed() < BRAND_NEW {
                    return false;
                }
                state.held = None;
                true
            }
            Some(_) | None => true,
        }
    }

    /// Begins the renewal that is due, if one is. Called again and again in the background.
    pub(super) fn keep(&self) {
        let mut state = self.0.state();
        if state.held.as_ref().is_some_and(|held| held.renew_at <= Instant::now()) {
            // Its outcome is recorded by itself; a pause after a refusal is one to wait for.
            let _ = self.0.fly(&mut state);
        }
    }

    /// For a request that began then.
    async fn token(&self, began: Instant) -> Result<Arc<SecretText>, Failed> {
        loop {
            let (flight, joined) = {
                let mut state = self.0.state();
                let live = state.held.as_ref().filter(|held| Instant::now() < held.usable_until);
                if let Some(held) = live {
                    return Ok(Arc::clone(&held.token));
                }
                // Microsoft's client lets one at a time in here: we waited for that fetch outside.
                if let Some((at, error)) = &state.failed
                    && *at > began
                {
                    return Err(error.clone().into());
                }
                let joined = state.flight.is_some();
                (self.0.fly(&mut state)?, joined)
            };
            match flight.await {
                // It began before we came, and its time was up, not ours.
                Err(error) if joined && error.class == KmsErrorClass::Timeout => {}
                outcome => return Ok(outcome?),
            }
        }
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
        if scopes != [self.0.scope.as_str()] {
            exchange.fail(KmsError::local(KmsErrorClass::Misconfigured).into());
            return Err(stopped());
        }
        let outcome = timeout_at(exchange.deadline, self.token(exchange.began)).await;
        match outcome.unwrap_or_else(|_| Err(KmsError::local(KmsErrorClass::Timeout).into())) {
            Ok(token) => {
                let secret = Secret::new(token.expose().to_owned());
                exchange.bear(token);
                // Already over as far as the client is concerned, so that it asks again for each
                // request.
                Ok(AccessToken::new(secret, OffsetDateTime::UNIX_EPOCH))
            }
            Err(Failed { error, wait }) => {
                exchange.fail(Failed { error: error.of_credential(), wait });
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

impl Inner {
    /// The fetch that is under way, or a new one; an error while a refused credential must wait.
    fn fly(self: &Arc<Self>, state: &mut State) -> Result<Flight, Failed> {
        // One that has ended and is still there was never settled: its task is gone.
        if let Some(flight) = state.flight.as_ref().filter(|flight| flight.peek().is_none()) {
            return Ok(flight.clone());
        }
        let shown = self.shown()?;
        if let Some(refusal) = &state.refusal
            && refusal.credential == shown
            && let Some(left) = refusal.until.checked_duration_since(Instant::now())
        {
            return Err(KmsError { retry_after: Some(left), ..refusal.error.clone() }.into());
        }
        let this = Arc::clone(self);
        let fetch = tokio::spawn(async move {
            let deadline = Instant::now() + this.timeout;
            let outcome = timeout_at(deadline, this.fetch(deadline)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(KmsError::local(KmsErrorClass::Timeout).into()));
            this.settle(outcome, shown)
        });
        let flight =
            async move { fetch.await.unwrap_or_else(|_| Err(KmsError::local(KmsErrorClass::Internal))) };
        let flight = flight.boxed().shared();
        state.flight = Some(flight.clone());
        Ok(flight)
    }

    /// A token and how long it lives.
    async fn fetch(&self, deadline: Instant) -> Result<(SecretText, Duration), Failed> {
        let credential = self.credential().map_err(KmsError::local)?;
        let exchange = Exchange::new(deadline);
        let options =
            TokenRequestOptions { method_options: ClientMethodOptions { context: exchange.context() } };
        let Ok(token) = credential.get_token(&[&self.scope], Some(options)).await else {
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

    /// Records what became of a fetch.
    fn settle(
        &self,
        outcome: Result<(SecretText, Duration), Failed>,
        shown: Fingerprint,
    ) -> Result<Arc<SecretText>, KmsError> {
        let now = Instant::now();
        let mut state = self.state();
        state.flight = None;
        let failed = match outcome {
            Ok((token, life)) => {
                let token = Arc::new(token);
                state.refusal = None;
                state.held = Some(Held {
                    token: Arc::clone(&token),
                    since: now,
                    usable_until: now + life.saturating_sub(MARGIN.min(life / 10)),
                    renew_at: now + LONGEST_USE.min(life * 2 / 3),
                });
                return Ok(token);
            }
            Err(failed) => failed,
        };
        let Failed { error, wait } = failed;
        tracing::warn!(class = ?error.class, http_status = error.http_status, "no Entra token was to be had");
        state.failed = (error.class != KmsErrorClass::Timeout).then(|| (now, error.clone()));
        let before = state.refusal.take().filter(|before| before.credential == shown);
        let (count, last) = before.as_ref().map_or((0, None), |before| (before.count, Some(before.pause)));
        let refused = match error.class {
            KmsErrorClass::AccessDenied | KmsErrorClass::CredentialInvalid | KmsErrorClass::Misconfigured => {
                Some((last.map_or(PAUSES.0, |last| last * 2), count + 1))
            }
            KmsErrorClass::Throttled => Some((wait.or(last).unwrap_or(PAUSES.0), count)),
            KmsErrorClass::Internal
            | KmsErrorClass::InvalidWrappedDek
            | KmsErrorClass::KeyDisabled
            | KmsErrorClass::KeyNotFound
            | KmsErrorClass::KeyPendingDeletion
            | KmsErrorClass::KeyVersionUnavailable
            | KmsErrorClass::Sealed
            | KmsErrorClass::Timeout
            | KmsErrorClass::Unreachable
            | KmsErrorClass::WrappedByAnotherKey
            | KmsErrorClass::BudgetSpent
            | KmsErrorClass::LoginPaused => None,
        };
        // One answer must not keep us away for a day.
        let refused = refused.map(|(pause, count)| (pause.min(PAUSES.1), count));
        // What an outage leaves as it was.
        state.refusal = before;
        if let Some((pause, count)) = refused {
            let (error, until) = (error.clone(), now + pause);
            state.refusal = Some(Refusal { error, credential: shown, until, pause, count });
            if count >= REFUSALS {
                state.held = None;
            }
        }
        if let Some(held) = &mut state.held {
            let rest = held.usable_until.saturating_duration_since(now);
            let pause = refused.map_or(rest / 3, |(pause, _)| pause);
            held.renew_at = now + pause.clamp(RENEWAL_PAUSES.0, RENEWAL_PAUSES.1);
        }
        Err(error)
    }

    /// A credential that holds no token yet.
    fn credential(&self) -> Result<Arc<dyn TokenCredential>, KmsErrorClass> {
        // It says nothing of the key, nor of who we are.
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
                // Of a machine whose managed identities Microsoft's client does not know.
                .map_err(|_| KmsErrorClass::Misconfigured)?
            }
        })
    }

    /// Which credential is shown now.
    fn shown(&self) -> Result<Fingerprint, KmsError> {
        let of_file = |path: &Path| {
            read_file(path)
                .map(|bytes| sha256(&bytes))
                .map_err(|_| KmsError::local(KmsErrorClass::Misconfigured))
        };
        match &self.credential {
            AzureCredential::ClientSecret { secret: SecretSource::File(path), .. } => of_file(path),
            AzureCredential::WorkloadIdentity { token_file, .. } => of_file(token_file),
            AzureCredential::ClientSecret { secret: SecretSource::Text(_), .. }
            | AzureCredential::ManagedIdentity { .. } => Ok(Fingerprint::default()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    use reqwest::Url;

    use super::*;
    use crate::config::{AzureAlgorithm, AzureKey, AzureService};

    fn tokens() -> Tokens {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = |text| Url::parse(text).unwrap();
        let settings = AzureSettings {
            key: AzureKey {
                vault: url("https://v.vault.azure.net"),
                name: "byok".to_owned(),
                version: None,
                service: AzureService::Vault,
                resource: "https://vault.azure.net".to_owned(),
                algorithm: AzureAlgorithm::RsaOaep256,
            },
            tenant: Some("t".to_owned()),
            authority: url("https://login.microsoftonline.com"),
            credential: AzureCredential::ClientSecret {
                client_id: "c".to_owned(),
                secret: SecretSource::Text(SecretText::new("s".to_owned())),
            },
            ca_file: None,
            timeout: Duration::from_secs(1),
            calls_per_minute: None,
        };
        let transport = Arc::new(Transport::new(&settings).ok().unwrap());
        Tokens::new(settings, transport)
    }

    fn got(seconds: u64) -> Result<(SecretText, Duration), Failed> {
        Ok((SecretText::new("t".to_owned()), Duration::from_secs(seconds)))
    }

    fn failed(class: KmsErrorClass) -> Result<(SecretText, Duration), Failed> {
        Err(KmsError::answered(class, 401, None).into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_after_fifteen_minutes_or_two_thirds_if_shorter() {
        let tokens = tokens();
        for (life, used) in [(86_400, 900), (3_600, 900), (600, 400)] {
            assert!(tokens.0.settle(got(life), Fingerprint::default()).is_ok());
            let renewal = tokens.0.state().held.as_ref().unwrap().renew_at;
            assert_eq!(renewal - Instant::now(), Duration::from_secs(used));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_live_token_outlasts_outages_and_one_refusal_but_not_three() {
        let tokens = tokens();
        assert!(tokens.0.settle(got(3_600), Fingerprint::default()).is_ok());
        for _ in 0..5 {
            assert!(tokens.0.settle(failed(KmsErrorClass::Unreachable), Fingerprint::default()).is_err());
            assert!(tokens.token(Instant::now()).await.is_ok());
        }
        for count in 1..=REFUSALS {
            assert!(
                tokens.0.settle(failed(KmsErrorClass::CredentialInvalid), Fingerprint::default()).is_err()
            );
            assert_eq!(tokens.token(Instant::now()).await.is_ok(), count < REFUSALS);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_credential_waits_twice_as_long_each_time_another_not() {
        let tokens = tokens();
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(
                tokens.0.settle(failed(KmsErrorClass::CredentialInvalid), Fingerprint::default()).is_err()
            );
            let refusal = tokens.0.state().refusal.as_ref().map(|refusal| refusal.until - Instant::now());
            assert_eq!(refusal, Some(Duration::from_secs(seconds)));
        }
        assert!(tokens.0.settle(failed(KmsErrorClass::CredentialInvalid), [1; 32]).is_err());
        let pause = tokens.0.state().refusal.as_ref().map(|refusal| refusal.pause);
        assert_eq!(pause, Some(PAUSES.0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_brand_new_token_is_not_replaced_because_the_vault_refuses_it() {
        let tokens = tokens();
        let token = tokens.0.settle(got(3_600), Fingerprint::default()).unwrap();
        assert!(!tokens.refused(&token));
        tokio::time::advance(BRAND_NEW).await;
        assert!(tokens.refused(&token));
        assert!(tokens.0.state().held.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn outages_between_refusals_do_not_make_them_forgotten() {
        let tokens = tokens();
        assert!(tokens.0.settle(got(3_600), Fingerprint::default()).is_ok());
        for (count, outage) in [KmsErrorClass::Unreachable, KmsErrorClass::Throttled, KmsErrorClass::Timeout]
            .into_iter()
            .enumerate()
        {
            assert!(
                tokens.0.settle(failed(KmsErrorClass::CredentialInvalid), Fingerprint::default()).is_err()
            );
            assert_eq!(tokens.0.state().held.is_some(), count < 2);
            assert!(tokens.0.settle(failed(outage), Fingerprint::default()).is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_authority_that_asks_for_a_day_is_left_a_minute() {
        for asked in [Duration::from_secs(86_400), Duration::MAX] {
            let tokens = tokens();
            let error = KmsError::answered(KmsErrorClass::Throttled, 429, None);
            assert!(
                tokens.0.settle(Err(Failed { error, wait: Some(asked) }), Fingerprint::default()).is_err()
            );
            let until = tokens.0.state().refusal.as_ref().map(|refusal| refusal.until - Instant::now());
            assert_eq!(until, Some(PAUSES.1));
        }
    }
}
