//! Our identity at AWS: the base credentials, and the role that we take with them.
//!
//! We call STS ourselves and not inside the SDK's client, which does not distinguish a refused
//! AssumeRole from a network fault. Every session that we ask for lasts [`LIFE`], the shortest that
//! AWS permits, because a session stays valid when the trust policy that allowed it changes. The
//! SDK's own chain is used only for the credentials of a profile, a container or a machine.
//!
//! `kms::renewal` renews credentials after a third of their life, so that we notice that a role may
//! no longer be taken while its last session is still valid. Credentials that are not used in the
//! meantime are dropped.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::{Credentials, Region};
use aws_sdk_kms::error::SdkError;
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use tokio::time::Instant;

use crate::config::{AwsCredentials, AwsRole, AwsSettings, read_text};
use crate::crypto::random;
use crate::kms::call::Failed;
use crate::kms::pacing::Fingerprint;
use crate::kms::renewal::{Granted, Life, Meaning, Renewer, Rules, Source};
use crate::kms::{KmsError, KmsErrorClass, Verdict};

use super::client::Clients;
use super::errors;
use super::session::Slot;

/// The life of a session of ours.
const LIFE: Duration = Duration::from_secs(900);

/// The time before their end at which credentials are not used for a new request.
const MARGIN: Duration = Duration::from_secs(5);

/// Our identity, with its current sessions.
pub(super) struct Identity {
    base: Arc<Renewer<Base>>,
    role: Option<Arc<Renewer<Role>>>,
    can_renew: bool,
}

/// The base credentials.
enum Base {
    Keys,
    WebIdentity { token_file: PathBuf, role_arn: String, sts: aws_sdk_sts::Client, name: String },
    Chain(Chain),
}

/// The SDK's own chain of sources.
struct Chain {
    clients: Clients,
    region: String,
    fips: bool,
    /// Whether it has returned credentials before.
    has_given: AtomicBool,
}

/// A role that we take with the base credentials.
struct Role {
    role: AwsRole,
    base: Arc<Renewer<Base>>,
    base_can_renew: bool,
    sts: aws_sdk_sts::Client,
    name: String,
}

impl Identity {
    pub(super) fn new(settings: &AwsSettings, clients: Clients) -> Self {
        let rules = Rules { timeout: settings.timeout, refusals: 1, renews_unused: false };
        // The name in the customer's CloudTrail: eight digits tell processes apart.
        let name = format!("byok-{:08x}", u32::from_be_bytes(random()));
        let base = match &settings.credentials {
            AwsCredentials::Keys { access_key_id, secret_access_key, session_token } => {
                let secret = secret_access_key.expose().to_owned();
                let token = session_token.as_ref().map(|token| token.expose().to_owned());
                let credentials = Credentials::new(access_key_id.as_str(), secret, token, None, "byok");
                Renewer::fixed(Base::Keys, rules, credentials)
            }
            AwsCredentials::WebIdentity { token_file, role_arn } => {
                let (token_file, role_arn, name) = (token_file.clone(), role_arn.clone(), name.clone());
                // The pod's token proves our identity, so the request is not signed.
                let sts = clients.sts(settings, Slot::empty());
                Renewer::start(Base::WebIdentity { token_file, role_arn, sts, name }, rules)
            }
            AwsCredentials::Chain => {
                let (region, fips) = (settings.key.region.clone(), settings.fips);
                let clients = clients.clone();
                let chain = Chain { clients, region, fips, has_given: AtomicBool::new(false) };
                Renewer::start(Base::Chain(chain), rules)
            }
        };
        let base = Arc::new(base);
        let base_can_renew = !matches!(settings.credentials, AwsCredentials::Keys { .. });
        let role = settings.role.clone().map(|role| {
            let sts = clients.sts(settings, Slot::of(&base));
            Arc::new(Renewer::start(Role { role, base: Arc::clone(&base), base_can_renew, sts, name }, rules))
        });
        Self { can_renew: base_can_renew || role.is_some(), base, role }
    }

    /// The credentials that calls to KMS are signed with, once [`Self::ready`] has answered.
    pub(super) fn slot(&self) -> Slot {
        self.role.as_ref().map_or_else(|| Slot::of(&self.base), Slot::of)
    }

    /// Returns valid credentials, after fetching them if there are none.
    pub(super) async fn ready(&self, deadline: Instant) -> Result<Arc<Credentials>, KmsError> {
        match &self.role {
            Some(role) => role.get(Instant::now(), deadline).await,
            None => self.base.get(Instant::now(), deadline).await,
        }
    }

    /// Replaces these credentials, which KMS refused. Returns whether there are others, so that
    /// another attempt makes sense.
    pub(super) async fn replace(
        &self,
        refused: &Arc<Credentials>,
        deadline: Instant,
    ) -> Result<bool, KmsError> {
        if !self.can_renew {
            return Ok(false);
        }
        let other = match &self.role {
            Some(role) => role.another(refused, deadline).await?,
            None => self.base.another(refused, deadline).await?,
        };
        Ok(other.is_some())
    }
}

impl Source for Base {
    type Credential = Credentials;
    type Evidence = ();

    fn evidence(&self) -> Result<((), Fingerprint), KmsError> {
        Ok(((), Fingerprint::default()))
    }

    async fn fetch(&self, (): (), _: Instant) -> Result<Granted<Credentials>, Failed> {
        let outcome = match self {
            // These are fixed, and never fetched.
            Self::Keys => Err(KmsError::local(KmsErrorClass::CredentialInvalid)),
            Self::WebIdentity { token_file, role_arn, sts, name } => {
                Box::pin(web_identity(token_file, role_arn, sts, name)).await
            }
            Self::Chain(chain) => Box::pin(chain.ask()).await,
        };
        Ok(outcome?)
    }

    fn meaning(&self, failed: &Failed) -> Meaning {
        meaning(failed.error.class)
    }

    fn note(&self, error: &KmsError) {
        note(error);
    }
}

impl Source for Role {
    type Credential = Credentials;
    type Evidence = ();

    fn evidence(&self) -> Result<((), Fingerprint), KmsError> {
        Ok(((), Fingerprint::default()))
    }

    /// Takes the role with the base credentials, or with their successors if they have expired
    /// meanwhile.
    async fn fetch(&self, (): (), deadline: Instant) -> Result<Granted<Credentials>, Failed> {
        let base = self.base.get(Instant::now(), deadline).await?;
        let mut outcome = Box::pin(self.assume()).await;
        if let Err(error) = &outcome
            && error.class == KmsErrorClass::CredentialInvalid
            && self.base_can_renew
            && self.base.another(&base, deadline).await?.is_some()
        {
            outcome = Box::pin(self.assume()).await;
        }
        Ok(outcome?)
    }

    fn meaning(&self, failed: &Failed) -> Meaning {
        meaning(failed.error.class)
    }

    fn note(&self, error: &KmsError) {
        note(error);
    }
}

impl Role {
    async fn assume(&self) -> Result<Granted<Credentials>, KmsError> {
        let began = Instant::now();
        let call = self.sts.assume_role().role_arn(&self.role.arn).role_session_name(&self.name);
        let call = call.set_external_id(self.role.external_id.clone()).duration_seconds(seconds(LIFE));
        let answer = call.send().await.map_err(|error| errors::of(&error))?;
        granted(answer.credentials, began)
    }
}

impl Chain {
    async fn ask(&self) -> Result<Granted<Credentials>, KmsError> {
        let answer = self.chain().await.provide_credentials().await;
        let granted = of_chain(answer, self.has_given.load(Ordering::Relaxed))?;
        self.has_given.store(true, Ordering::Relaxed);
        Ok(granted)
    }

    /// A new chain each time. A chain that is kept reads a profile only once, and returns its last
    /// credentials, expired or not, when the metadata service fails: KMS would refuse them, and an
    /// outage would pass for a refusal.
    async fn chain(&self) -> DefaultCredentialsChain {
        let region = Region::new(self.region.clone());
        let config = ProviderConfig::without_region()
            .with_region(Some(region.clone()))
            .with_http_client(self.clients.http())
            .with_use_fips(self.fips.then_some(true))
            .with_retry_config(RetryConfig::disabled());
        DefaultCredentialsChain::builder().configure(config).region(region).build().await
    }
}

async fn web_identity(
    token_file: &Path,
    role_arn: &str,
    sts: &aws_sdk_sts::Client,
    name: &str,
) -> Result<Granted<Credentials>, KmsError> {
    let token = read_text(token_file).map_err(|_| KmsError::local(KmsErrorClass::Misconfigured))?;
    let began = Instant::now();
    let call = sts.assume_role_with_web_identity().role_arn(role_arn).role_session_name(name);
    let call = call.web_identity_token(token.trim()).duration_seconds(seconds(LIFE));
    let answer = call.send().await.map_err(|error| errors::of(&error))?;
    granted(answer.credentials, began)
}

fn note(error: &KmsError) {
    tracing::warn!(class = ?error.class, http_status = error.http_status, "AWS credentials could not be obtained");
}

/// The meaning of a failure: a role that may not be taken is a refusal; a misconfiguration leaves
/// the held credentials as they are.
fn meaning(class: KmsErrorClass) -> Meaning {
    match class.verdict() {
        Verdict::Revoked => Meaning::Refused,
        _ if matches!(class, KmsErrorClass::Timeout) || class.retryable() => Meaning::Outage,
        _ => Meaning::Deferred(None),
    }
}

fn life(until: Option<Instant>) -> Life {
    let rest = until.map(|end| end.saturating_duration_since(Instant::now()));
    Life {
        granted: rest,
        usable: rest.map(|rest| rest.saturating_sub(MARGIN)),
        // A session of a role that is taken with them adds as much time again.
        renew_after: rest.map(|rest| rest.min(LIFE) / 3),
    }
}

fn granted(
    answer: Option<aws_sdk_sts::types::Credentials>,
    began: Instant,
) -> Result<Granted<Credentials>, KmsError> {
    let given = answer.ok_or_else(|| KmsError::local(KmsErrorClass::Internal))?;
    let credentials = Credentials::new(
        given.access_key_id,
        given.secret_access_key,
        Some(given.session_token),
        None,
        "byok",
    );
    Ok(Granted { credential: credentials, life: life(Some(began + LIFE)) })
}

fn seconds(life: Duration) -> i32 {
    i32::try_from(life.as_secs()).unwrap_or(i32::MAX)
}

/// The credentials in the answer of the chain. If there were some before (`has_given`), none now is
/// an outage of their source, not a misconfiguration.
fn of_chain(
    answer: Result<Credentials, CredentialsError>,
    has_given: bool,
) -> Result<Granted<Credentials>, KmsError> {
    let credentials = answer.map_err(|error| {
        error_of_sts(&error).unwrap_or_else(|| {
            KmsError::local(match &error {
                // Nothing is configured; a metadata service that is out of reach looks the same.
                CredentialsError::CredentialsNotLoaded(_) if has_given => KmsErrorClass::Unreachable,
                CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_) => {
                    KmsErrorClass::Misconfigured
                }
                CredentialsError::ProviderTimedOut(_) => KmsErrorClass::Timeout,
                _ => KmsErrorClass::Unreachable,
            })
        })
    })?;
    #[expect(clippy::disallowed_methods, reason = "the expiry is given by the other side's wall clock")]
    let now = SystemTime::now();
    let rest = credentials.expiry().map(|end| end.duration_since(now).unwrap_or_default());
    Ok(Granted { credential: credentials, life: life(rest.map(|rest| Instant::now() + rest)) })
}

/// The error of STS among the causes: a profile can name a role, which the SDK then takes by
/// itself.
fn error_of_sts(error: &CredentialsError) -> Option<KmsError> {
    errors::chain(error).find_map(|error| {
        let assumed = error.downcast_ref::<SdkError<AssumeRoleError>>().map(errors::of);
        assumed.or_else(|| error.downcast_ref::<SdkError<AssumeRoleWithWebIdentityError>>().map(errors::of))
    })
}
