//! Our identity at AWS: the credentials that we begin with, and the role that we take with them.
//!
//! STS is called by us and not inside the SDK's client: there a refused AssumeRole cannot be told
//! from a network fault. Every session that we ask for is of [`LIFE`], the shortest that there is,
//! because a session that was issued outlives the trust policy that allowed it. The SDK's own chain
//! is asked for a profile's, container's or machine's credentials only.

use std::path::{Path, PathBuf};
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
use crate::kms::{KmsError, KmsErrorClass};

use super::client::Clients;
use super::errors;
use super::session::{Generation, Granted, Session, Slot};

/// The life of a session of ours.
const LIFE: Duration = Duration::from_secs(900);

/// Who we are, with the sessions that we hold.
pub(super) struct Identity {
    base: Base,
    session: Session,
    role: Option<(AwsRole, Session)>,
    sts: aws_sdk_sts::Client,
    /// Names us in the customer's CloudTrail: `byok-` and eight digits that are this process's own.
    name: String,
    region: String,
    fips: bool,
    clients: Clients,
}

enum Base {
    Keys,
    WebIdentity { token_file: PathBuf, role_arn: String },
    Chain,
}

impl Identity {
    pub(super) fn new(settings: &AwsSettings, clients: Clients) -> Self {
        let (base, session) = match &settings.credentials {
            AwsCredentials::Keys { access_key_id, secret_access_key, session_token } => {
                let secret = secret_access_key.expose().to_owned();
                let token = session_token.as_ref().map(|token| token.expose().to_owned());
                let credentials = Credentials::new(access_key_id.as_str(), secret, token, None, "byok");
                (Base::Keys, Session::fixed(credentials))
            }
            AwsCredentials::WebIdentity { token_file, role_arn } => {
                let (token_file, role_arn) = (token_file.clone(), role_arn.clone());
                (Base::WebIdentity { token_file, role_arn }, Session::new())
            }
            AwsCredentials::Chain => (Base::Chain, Session::new()),
        };
        let sts = clients.sts(settings, session.slot());
        let role = settings.role.clone().map(|role| (role, Session::new()));
        let name = format!("byok-{:08x}", u32::from_be_bytes(random()));
        let (region, fips) = (settings.key.region.clone(), settings.fips);
        Self { base, session, role, sts, name, region, fips, clients }
    }

    /// What calls to KMS are signed with, once [`Self::ready`] has answered.
    pub(super) fn slot(&self) -> Slot {
        self.role.as_ref().map_or(&self.session, |(_, session)| session).slot()
    }

    /// Sees to it that there are live credentials, `instead_of` some that KMS refused.
    pub(super) async fn ready(
        &self,
        instead_of: Option<Generation>,
        deadline: Instant,
    ) -> Result<Generation, KmsError> {
        match &self.role {
            Some((role, session)) => {
                session.ready(instead_of, deadline, Box::pin(self.taking(role, deadline))).await
            }
            None => self.session.ready(instead_of, deadline, Box::pin(self.beginning())).await,
        }
    }

    /// Whether there can be others than those that KMS refused.
    pub(super) fn can_renew(&self) -> bool {
        self.role.is_some() || !matches!(self.base, Base::Keys)
    }

    /// Renews what is due. Called again and again in the background.
    pub(super) async fn keep(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        if let Some(held) = self.session.is_due() {
            self.session.renew(held, deadline, self.beginning()).await;
        }
        if let Some((role, session)) = &self.role
            && let Some(held) = session.is_due()
        {
            session.renew(held, deadline, self.taking(role, deadline)).await;
        }
    }

    async fn beginning(&self) -> Result<Granted, KmsError> {
        match &self.base {
            // Held since the beginning.
            Base::Keys => Err(KmsError::local(KmsErrorClass::CredentialInvalid)),
            Base::WebIdentity { token_file, role_arn } => self.web_identity(token_file, role_arn).await,
            Base::Chain => of_chain(self.chain().await.provide_credentials().await, self.session.has_begun()),
        }
    }

    /// AssumeRole, with what we begin with; where that has ended meanwhile, with other such.
    async fn taking(&self, role: &AwsRole, deadline: Instant) -> Result<Granted, KmsError> {
        let begun = self.session.ready(None, deadline, self.beginning()).await?;
        match self.assume(role).await {
            Err(error)
                if error.class == KmsErrorClass::CredentialInvalid && !matches!(self.base, Base::Keys) =>
            {
                match self.session.ready(Some(begun), deadline, self.beginning()).await? {
                    same if same == begun => Err(error),
                    _ => self.assume(role).await,
                }
            }
            outcome => outcome,
        }
    }

    async fn assume(&self, role: &AwsRole) -> Result<Granted, KmsError> {
        let began = Instant::now();
        let call = self.sts.assume_role().role_arn(&role.arn).role_session_name(&self.name);
        let call = call.set_external_id(role.external_id.clone()).duration_seconds(seconds(LIFE));
        let answer = call.send().await.map_err(|error| errors::of(&error))?;
        granted(answer.credentials, began)
    }

    async fn web_identity(&self, token_file: &Path, role_arn: &str) -> Result<Granted, KmsError> {
        let misconfigured = || KmsError::local(KmsErrorClass::Misconfigured);
        let token = read_text(token_file).map_err(|_| misconfigured())?;
        let began = Instant::now();
        let call = self.sts.assume_role_with_web_identity().role_arn(role_arn).role_session_name(&self.name);
        let call = call.web_identity_token(token.trim()).duration_seconds(seconds(LIFE));
        let answer = call.send().await.map_err(|error| errors::of(&error))?;
        granted(answer.credentials, began)
    }

    /// A new chain each time. One that is kept reads a profile once and never again, and in place
    /// of an error of the metadata service gives what that said before, ended or not: KMS would
    /// refuse it, and an outage would pass for a refusal.
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

fn granted(answer: Option<aws_sdk_sts::types::Credentials>, began: Instant) -> Result<Granted, KmsError> {
    let given = answer.ok_or_else(|| KmsError::local(KmsErrorClass::Internal))?;
    let credentials = Credentials::new(
        given.access_key_id,
        given.secret_access_key,
        Some(given.session_token),
        None,
        "byok",
    );
    Ok(Granted { credentials, until: Some(began + LIFE) })
}

fn seconds(life: Duration) -> i32 {
    i32::try_from(life.as_secs()).unwrap_or(i32::MAX)
}

/// The answer of the chain. If there were credentials before (`begun`), none now is an outage of
/// their origin, and no misconfiguration.
fn of_chain(answer: Result<Credentials, CredentialsError>, begun: bool) -> Result<Granted, KmsError> {
    let credentials = answer.map_err(|error| {
        said_by_sts(&error).unwrap_or_else(|| {
            KmsError::local(match &error {
                // Nothing is configured anywhere; a metadata service that is away looks the same.
                CredentialsError::CredentialsNotLoaded(_) if begun => KmsErrorClass::Unreachable,
                CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_) => {
                    KmsErrorClass::Misconfigured
                }
                CredentialsError::ProviderTimedOut(_) => KmsErrorClass::Timeout,
                _ => KmsErrorClass::Unreachable,
            })
        })
    })?;
    #[expect(clippy::disallowed_methods, reason = "the end is given by the other side's wall clock")]
    let now = SystemTime::now();
    let rest = credentials.expiry().map(|end| end.duration_since(now).unwrap_or_default());
    Ok(Granted { credentials, until: rest.map(|rest| Instant::now() + rest) })
}

/// The error of STS among the causes: a profile can name a role, which the SDK then takes by
/// itself.
fn said_by_sts(error: &CredentialsError) -> Option<KmsError> {
    errors::chain(error).find_map(|error| {
        let assumed = error.downcast_ref::<SdkError<AssumeRoleError>>().map(errors::of);
        assumed.or_else(|| error.downcast_ref::<SdkError<AssumeRoleWithWebIdentityError>>().map(errors::of))
    })
}
