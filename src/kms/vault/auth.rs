//! The Vault token that every request carries: its source, and how it is kept valid.
//!
//! | source | when the token is refused | kept valid by |
//! |---|---|---|
//! | token | the call fails | `renew-self` |
//! | token file | the file is read again; another token is tried once | `renew-self`, and the process that writes the file |
//! | AppRole, Kubernetes | a new login, whose token is tried once | `renew-self`, a new login when that fails or nears the maximum, and at the latest when `kms::renewal` asks for one |
//!
//! A lease is renewed when two thirds of it are over. A login that Vault refuses is not retried at
//! once: `kms::pacing` decides when. Only a 400 may count towards the lockout of an AppRole. A 403
//! does not: the role is locked out, the mount is missing, or the service account is refused.
//!
//! Tokens are never logged. The log says that a renewal or login failed, with the class of the
//! error and the time of the next login.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http::Method;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use crate::config::{SecretSource, VaultLogin, read_text};
use crate::crypto::{SecretText, sha256};
use crate::kms::call::Failed;
use crate::kms::http::Reply;
use crate::kms::pacing::Fingerprint;
use crate::kms::renewal::{Granted, Life, Meaning, Renewer, Rules, Source};
use crate::kms::{KmsError, KmsErrorClass};
use crate::model::{Clock as _, SystemClock};

use super::errors;
use super::transport::Transport;

/// The age below which a token is not replaced when a policy denies a call: a new one would be
/// denied as well. An older one is replaced, because a role's new policies apply only to new
/// logins.
const POLICY_PATIENCE: Duration = Duration::from_secs(10);
/// The longest lease that is believed: Vault's own limit is 32 days unless it is raised.
const LONGEST_LEASE: Duration = Duration::from_secs(366 * 24 * 3600);
/// The pause after a failed renewal of a token that was given to us, at least and at most.
const RENEWAL_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The longest sleep of the task that renews such a token: another one may have come meanwhile.
const LEASE_WATCH: Duration = Duration::from_secs(1);

/// The token in use, and its renewal.
pub(super) enum Auth {
    Given(GivenToken),
    Login(Renewer<Login>),
}

impl Auth {
    /// A source of tokens. Until one is asked for, only the renewal of a configured token is sent,
    /// in the background.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub(super) fn new(way: VaultLogin, transport: Arc<Transport>, timeout: Duration) -> Self {
        let given = |way| Self::Given(GivenToken::new(way, Arc::clone(&transport), timeout));
        let way = match way {
            VaultLogin::Token(token) => return given(Way::Text(token)),
            VaultLogin::TokenFile(path) => return given(Way::File(path)),
            VaultLogin::AppRole { mount, role_id, secret_id } => {
                LoginWay::AppRole { mount, role_id, secret_id }
            }
            VaultLogin::Kubernetes { mount, role, jwt_file } => {
                LoginWay::Kubernetes { mount, role, jwt_file }
            }
        };
        // Refusals count towards a lockout, and no part of Vault lags behind, so the first one is
        // enough.
        let rules = Rules { timeout, refusals: 1, renews_unused: true };
        Self::Login(Renewer::start(Login { way, transport }, rules))
    }

    /// The token to send.
    pub(super) async fn token(&self, deadline: Instant) -> Result<Arc<Token>, KmsError> {
        match self {
            Self::Given(given) => given.token().map_err(KmsError::of_credential),
            Self::Login(renewer) => renewer.get(Instant::now(), deadline).await,
        }
    }

    /// Gets another token in place of this one, which Vault refused with this class. Returns
    /// whether there is one, so that another attempt makes sense.
    pub(super) async fn replace(
        &self,
        refused: &Arc<Token>,
        class: KmsErrorClass,
        deadline: Instant,
    ) -> Result<bool, KmsError> {
        match self {
            Self::Given(given) => Ok(given.has_another(refused)),
            Self::Login(renewer) => {
                let is_new = renewer.age(refused).is_some_and(|age| age < POLICY_PATIENCE);
                if class == KmsErrorClass::AccessDenied && is_new {
                    return Ok(false);
                }
                Ok(renewer.another(refused, deadline).await?.is_some())
            }
        }
    }
}

/// A token, and whether Vault extends its lease.
pub(super) struct Token {
    pub(super) text: SecretText,
    renewable: bool,
}

/// The lease of a login's or renewal's answer; `None` is one that never ends.
type Lease = Option<Duration>;

/// A login, with its credential.
pub(super) struct Login {
    way: LoginWay,
    transport: Arc<Transport>,
}

enum LoginWay {
    AppRole { mount: String, role_id: SecretText, secret_id: Option<SecretSource> },
    Kubernetes { mount: String, role: String, jwt_file: PathBuf },
}

/// The body of a login.
type Body = Zeroizing<Vec<u8>>;

impl Source for Login {
    type Credential = Token;
    type Evidence = Body;

    fn evidence(&self) -> Result<(Body, Fingerprint), KmsError> {
        #[derive(Serialize)]
        struct AppRole<'a> {
            role_id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            secret_id: Option<&'a str>,
        }
        #[derive(Serialize)]
        struct Kubernetes<'a> {
            role: &'a str,
            jwt: &'a str,
        }

        // Larger than any credential, so that it does not grow and leave a copy behind.
        let mut body = Zeroizing::new(Vec::with_capacity(16 << 10));
        let written = match &self.way {
            LoginWay::AppRole { role_id, secret_id, .. } => {
                let from_file;
                let secret_id = match secret_id {
                    Some(SecretSource::Text(text)) => Some(text.expose()),
                    Some(SecretSource::File(path)) => {
                        from_file = read_secret(path)?;
                        Some(from_file.expose())
                    }
                    None => None,
                };
                serde_json::to_writer(&mut *body, &AppRole { role_id: role_id.expose(), secret_id })
            }
            LoginWay::Kubernetes { role, jwt_file, .. } => {
                let jwt = read_secret(jwt_file)?;
                serde_json::to_writer(&mut *body, &Kubernetes { role, jwt: jwt.expose() })
            }
        };
        written.map_err(|_| KmsError::local(KmsErrorClass::Misconfigured))?;
        let fingerprint = sha256(&body);
        Ok((body, fingerprint))
    }

    async fn fetch(&self, body: Body, deadline: Instant) -> Result<Granted<Token>, Failed> {
        let (LoginWay::AppRole { mount, .. } | LoginWay::Kubernetes { mount, .. }) = &self.way;
        let path = format!("auth/{mount}/login");
        let reply = self.transport.send(Method::POST, &path, None, Bytes::from_owner(body), deadline).await;
        let (lease, credential) = reply.and_then(|reply| granted(&reply, errors::of_login))?;
        Ok(Granted { credential, life: life(lease) })
    }

    async fn extend(&self, token: &Token, before: Lease, deadline: Instant) -> Option<Life> {
        if !token.renewable {
            return None;
        }
        let (lease, renewed) = renew(&self.transport, &token.text, deadline).await.ok()??;
        // A token near its maximum is replaced.
        (renewed.renewable && !is_short_beside(lease, before)).then(|| life(lease))
    }

    fn meaning(&self, Failed { error, .. }: &Failed) -> Meaning {
        let may_lock_out = matches!(self.way, LoginWay::AppRole { .. });
        match (error.class, error.http_status) {
            (KmsErrorClass::CredentialInvalid, Some(400)) if may_lock_out => Meaning::Counted,
            (KmsErrorClass::CredentialInvalid, _) => Meaning::Refused,
            (_, None) if may_lock_out => Meaning::Unanswered,
            _ => Meaning::Outage,
        }
    }

    fn note(&self, error: &KmsError) {
        match error.retry_after {
            Some(pause) => tracing::warn!(
                class = ?error.class,
                http_status = error.http_status,
                next_login = %SystemClock.now().plus(pause),
                "Vault refuses our credential: no login before then, unless another credential takes its place"
            ),
            None => {
                tracing::warn!(class = ?error.class, http_status = error.http_status, "the login at Vault failed");
            }
        }
    }
}

/// A token from the configuration or from a file. The operator replaces it; we renew its lease.
pub(super) struct GivenToken {
    holder: Arc<Holder>,
    /// The task that renews the lease; it ends with us.
    task: JoinHandle<()>,
}

struct Holder {
    way: Way,
    transport: Arc<Transport>,
    held: Mutex<Option<Held>>,
}

enum Way {
    Text(SecretText),
    File(PathBuf),
}

/// The modification time and the length of a file.
type Stamp = (SystemTime, u64);

struct Held {
    token: Arc<Token>,
    /// The stamp of a token file when it was read.
    stamp: Option<Stamp>,
    /// The time of the next renewal, and the end of the lease if it is known. `None` if the lease
    /// cannot be extended.
    renewal: Option<(Instant, Option<Instant>)>,
}

impl GivenToken {
    fn new(way: Way, transport: Arc<Transport>, timeout: Duration) -> Self {
        let holder = Arc::new(Holder { way, transport, held: Mutex::default() });
        let kept = Arc::clone(&holder);
        let task = tokio::spawn(async move {
            loop {
                let due = kept.renew_what_is_due(timeout).await;
                sleep(due.min(LEASE_WATCH)).await;
            }
        });
        Self { holder, task }
    }

    fn token(&self) -> Result<Arc<Token>, KmsError> {
        self.holder.token()
    }

    /// Whether there is another token now.
    fn has_another(&self, refused: &Arc<Token>) -> bool {
        match &self.holder.way {
            Way::Text(_) => false,
            // Two writes within one tick of the file system's clock have the same stamp, so the
            // texts are compared.
            Way::File(path) => {
                self.holder.read(path).is_ok_and(|now| now.text.expose() != refused.text.expose())
            }
        }
    }
}

impl Drop for GivenToken {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Holder {
    fn token(&self) -> Result<Arc<Token>, KmsError> {
        let held = self.held().as_ref().map(|held| (Arc::clone(&held.token), held.stamp));
        match (&self.way, held) {
            (Way::Text(_), Some((token, _))) => Ok(token),
            (Way::Text(text), None) => Ok(self.hold(text.expose(), None)),
            (Way::File(path), Some((token, then))) if stamp(path).is_none_or(|now| then == Some(now)) => {
                Ok(token)
            }
            (Way::File(path), _) => self.read(path),
        }
    }

    fn read(&self, path: &Path) -> Result<Arc<Token>, KmsError> {
        // The stamp is read before the text: if the file changes in between, the next comparison of
        // stamps notices it.
        let stamp = stamp(path);
        let text = read_secret(path)?;
        if let Some(held) = self.held().as_mut().filter(|held| held.token.text.expose() == text.expose()) {
            held.stamp = stamp;
            return Ok(Arc::clone(&held.token));
        }
        Ok(self.hold(text.expose(), stamp))
    }

    fn hold(&self, text: &str, stamp: Option<Stamp>) -> Arc<Token> {
        let token = Arc::new(Token { text: SecretText::new(text.to_owned()), renewable: true });
        // The first renewal shows how long it lives.
        let renewal = Some((Instant::now(), None));
        *self.held() = Some(Held { token: Arc::clone(&token), stamp, renewal });
        token
    }

    /// Renews the lease if that is due, and returns the time until the next check. This keeps the
    /// token valid without traffic; a configured token may have to be renewed before it is first
    /// used.
    async fn renew_what_is_due(&self, timeout: Duration) -> Duration {
        let Ok(token) = self.token() else { return LEASE_WATCH };
        let renewal = self.held().as_ref().and_then(|held| held.renewal);
        let Some((renew_at, end)) = renewal else { return LEASE_WATCH };
        let now = Instant::now();
        if now < renew_at {
            return renew_at - now;
        }
        let next = match renew(&self.transport, &token.text, now + timeout).await {
            Ok(Some((Some(lease), Token { renewable: true, .. }))) => {
                let now = Instant::now();
                Some((now + lease * 2 / 3, Some(now + lease)))
            }
            // It never ends, or nothing can lengthen it and nothing else can be had.
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(class = ?error.class, http_status = error.http_status, "the Vault token could not be renewed");
                let now = Instant::now();
                // Where no end is known it is tried again as if that were far.
                let rest = end.map_or(RENEWAL_PAUSES.1 * 3, |end| end.saturating_duration_since(now));
                Some((now + (rest / 3).clamp(RENEWAL_PAUSES.0, RENEWAL_PAUSES.1), end))
            }
        };
        if let Some(held) = self.held().as_mut().filter(|held| Arc::ptr_eq(&held.token, &token)) {
            held.renewal = next;
        }
        next.map_or(LEASE_WATCH, |(renew_at, _)| renew_at.saturating_duration_since(Instant::now()))
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Renews the lease of a token; `None` where Vault says that it has none that can be renewed.
async fn renew(
    transport: &Transport,
    token: &SecretText,
    deadline: Instant,
) -> Result<Option<(Lease, Token)>, KmsError> {
    let (path, body) = ("auth/token/renew-self", Bytes::from_static(b"{}"));
    let reply = transport.send(Method::POST, path, Some(token), body, deadline).await?;
    match reply.status {
        // `lease is not renewable`: a root token, or one made so.
        400 => Ok(None),
        _ => granted(&reply, errors::of_reply).map(Some),
    }
}

fn lease(seconds: u64) -> Lease {
    (seconds > 0).then(|| Duration::from_secs(seconds).min(LONGEST_LEASE))
}

fn life(lease: Lease) -> Life {
    // A token that never ends is replaced like a long one.
    let renew_after = Some(lease.unwrap_or(LONGEST_LEASE) * 2 / 3);
    Life { granted: lease, usable: lease, renew_after }
}

/// Whether Vault granted less than half of what it granted before: the token nears its maximum.
fn is_short_beside(lease: Lease, before: Lease) -> bool {
    lease.zip(before).is_some_and(|(now, before)| now < before / 2)
}

/// The `auth` part of a login's or renewal's answer
/// (<https://developer.hashicorp.com/vault/api-docs/auth/token#renew-a-token-self>).
fn granted(reply: &Reply, error: fn(&Reply) -> KmsError) -> Result<(Lease, Token), KmsError> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        auth: Granted<'a>,
    }
    #[derive(Deserialize)]
    struct Granted<'a> {
        client_token: &'a str,
        lease_duration: u64,
        renewable: bool,
    }

    if reply.status != 200 {
        return Err(error(reply));
    }
    match serde_json::from_slice::<Answer<'_>>(&reply.body) {
        // A login that waits for a second factor gives an empty token.
        Ok(Answer { auth }) if !auth.client_token.is_empty() => {
            let text = SecretText::new(auth.client_token.to_owned());
            Ok((lease(auth.lease_duration), Token { text, renewable: auth.renewable }))
        }
        _ => Err(KmsError::answered(KmsErrorClass::Internal, reply.status, None)),
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read_secret(path: &Path) -> Result<SecretText, KmsError> {
    let misconfigured = KmsError::local(KmsErrorClass::Misconfigured);
    let text = read_text(path).map_err(|_| misconfigured.clone())?;
    match text.trim() {
        "" => Err(misconfigured),
        text => Ok(SecretText::new(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{KeyVersionStrategy, VaultSettings};

    #[test]
    fn a_lease_is_renewed_when_two_thirds_are_over() {
        let life = life(lease(90));
        assert_eq!(
            life.usable.zip(life.renew_after),
            Some((Duration::from_secs(90), Duration::from_secs(60)))
        );
    }

    #[test]
    fn a_lease_of_any_length_has_an_end() {
        assert_eq!(lease(u64::MAX), Some(LONGEST_LEASE));
    }

    #[test]
    fn a_lease_of_zero_never_ends_and_its_token_is_replaced() {
        let life = life(lease(0));
        assert!(life.usable.is_none() && life.renew_after.is_some());
    }

    #[test]
    fn a_grant_cut_short_by_the_maximum_is_seen() {
        assert!(is_short_beside(lease(10), lease(60)));
        assert!(!is_short_beside(lease(60), lease(60)));
    }

    #[tokio::test]
    async fn a_token_file_that_changed_is_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one\n").unwrap();
        let login = VaultLogin::TokenFile(file.path().to_owned());
        let settings = VaultSettings {
            address: "http://127.0.0.1:9".parse().unwrap(),
            namespace: None,
            mount: "transit".to_owned(),
            key: "byok".to_owned(),
            version: KeyVersionStrategy::Latest,
            login: VaultLogin::TokenFile(file.path().to_owned()),
            ca_file: None,
            client: None,
            timeout: Duration::from_secs(1),
            calls_per_minute: None,
        };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let transport = Arc::new(Transport::new(&settings).unwrap());
        let Auth::Given(given) = Auth::new(login, transport, settings.timeout) else { panic!("it is given") };
        let one = given.token().unwrap();
        assert!(!given.has_another(&one));
        std::fs::write(file.path(), "two\n").unwrap();
        assert!(given.has_another(&one));
        assert_eq!(given.token().unwrap().text.expose(), "two");
    }
}
