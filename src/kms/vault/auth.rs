//! The Vault token that every request carries: where it comes from, and how it stays alive.
//!
//! | way | when it is refused | kept alive by |
//! |---|---|---|
//! | token | nothing else to try | `renew-self` |
//! | token file | read again; another token is tried once | `renew-self`, and whoever writes the file |
//! | AppRole, Kubernetes | a new login, then tried once | `renew-self`, a new login when that fails or nears the maximum |
//!
//! A lease is renewed when two thirds of it are over. A login that Vault refuses is not tried again
//! at once: `kms::pacing` says when. What may count towards the lockout of an AppRole is a 400; a
//! role that is locked out, a mount that is missing and a service account that is refused (403) are
//! not counted.
//!
//! Tokens are never shown; what is logged is that a renewal or login failed, its class, and when
//! the next login is tried.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http::Method;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use crate::config::{SecretSource, VaultLogin, read_text};
use crate::crypto::{SecretText, sha256};
use crate::kms::http::Reply;
use crate::kms::pacing::{Fingerprint, Pacing};
use crate::kms::{KmsError, KmsErrorClass};
use crate::model::{Clock as _, SystemClock};

use super::errors;
use super::transport::Transport;

/// The age below which a token is not replaced because a policy denies something: a new one would
/// be denied the same. An older one is replaced, since a role's new policies come with a new login
/// only.
const POLICY_PATIENCE: Duration = Duration::from_secs(10);
/// The longest lease that is counted: Vault's own limit is 32 days unless it is raised.
const LONGEST_LEASE: Duration = Duration::from_secs(366 * 24 * 3600);
/// How long after a failed renewal the next one is tried, at least and at most.
const RENEWAL_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The token in use and the way to another one.
pub(super) struct Auth {
    way: VaultLogin,
    transport: Arc<Transport>,
    timeout: Duration,
    held: Arc<Mutex<Option<Held>>>,
    /// One login at a time.
    gate: Arc<tokio::sync::Mutex<Gate>>,
}

/// What logins leave to the next one.
#[derive(Default)]
struct Gate {
    /// The last one that failed, for those who waited for it.
    failed: Option<(Instant, KmsError)>,
    pacing: Pacing,
}

#[derive(Clone)]
struct Held {
    token: Arc<SecretText>,
    since: Instant,
    lease: Lease,
    /// Of a token file: its time and length when it was read.
    stamp: Option<(SystemTime, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lease {
    /// Of a token that was given to us: the first renewal tells.
    Unknown,
    /// Never ends, or ends whatever we do.
    Settled,
    /// Ends.
    Until { end: Instant, renew_at: Instant, renewable: bool, granted: Duration },
}

impl Auth {
    pub(super) fn new(way: VaultLogin, transport: Arc<Transport>, timeout: Duration) -> Self {
        Self { way, transport, timeout, held: Arc::default(), gate: Arc::default() }
    }

    /// The token to send.
    pub(super) async fn token(&self, deadline: Instant) -> Result<Arc<SecretText>, KmsError> {
        let held = self.held().clone();
        match &self.way {
            VaultLogin::Token(token) => {
                Ok(held.map_or_else(|| self.hold(token.expose(), Lease::Unknown, None), |held| held.token))
            }
            VaultLogin::TokenFile(path) => match held {
                Some(held) if stamp(path).is_none_or(|now| held.stamp == Some(now)) => Ok(held.token),
                _ => self.read_token(path),
            },
            VaultLogin::AppRole { .. } | VaultLogin::Kubernetes { .. } => match held {
                Some(held) if held.lease.lives() => Ok(held.token),
                _ => self.login(None, deadline).await,
            },
        }
    }

    /// Vault refused a token with this class. Whether there may be another one now, so that trying
    /// once more makes sense.
    pub(super) fn refused(&self, token: &Arc<SecretText>, class: KmsErrorClass) -> bool {
        match &self.way {
            VaultLogin::Token(_) => false,
            // Two writes within one tick of the file system's clock have one stamp: look at the
            // text.
            VaultLogin::TokenFile(path) => {
                self.read_token(path).is_ok_and(|now| now.expose() != token.expose())
            }
            VaultLogin::AppRole { .. } | VaultLogin::Kubernetes { .. } => {
                let mut held = self.held();
                let Some(current) = held.as_ref().filter(|held| Arc::ptr_eq(&held.token, token)) else {
                    return true;
                };
                if class == KmsErrorClass::AccessDenied && current.since.elapsed() < POLICY_PATIENCE {
                    return false;
                }
                *held = None;
                true
            }
        }
    }

    /// Renews what is due, and says when something is due next, if that is known. Called again and
    /// again in the background, so that a server without traffic keeps its token.
    pub(super) async fn keep(&self, deadline: Instant) -> Option<Duration> {
        self.keep_now(deadline).await;
        let held = self.held().clone()?;
        match held.lease {
            Lease::Unknown => Some(Duration::ZERO),
            Lease::Settled => None,
            Lease::Until { renew_at, .. } => Some(renew_at.saturating_duration_since(Instant::now())),
        }
    }

    async fn keep_now(&self, deadline: Instant) {
        let Some(held) = self.held().clone() else {
            // A token that was given to us may have to be renewed before it is first used.
            if matches!(self.way, VaultLogin::Token(_) | VaultLogin::TokenFile(_)) {
                let _ = self.token(Instant::now()).await;
            }
            return;
        };
        let outcome = match held.lease {
            Lease::Settled => return,
            Lease::Until { renew_at, .. } if Instant::now() < renew_at => return,
            Lease::Until { renewable: false, .. } => self.login(Some(&held.token), deadline).await.map(drop),
            Lease::Unknown | Lease::Until { .. } => self.renew(&held, deadline).await,
        };
        let Err(error) = outcome else { return };
        tracing::warn!(class = ?error.class, http_status = error.http_status, "the Vault token could not be renewed");
        let now = Instant::now();
        let again = now
            + held.lease.rest(now).unwrap_or_default().div_f32(3.0).clamp(RENEWAL_PAUSES.0, RENEWAL_PAUSES.1);
        self.set_lease(
            &held.token,
            match held.lease {
                Lease::Until { end, renewable, granted, .. } => {
                    Lease::Until { end, renew_at: again, renewable, granted }
                }
                // No end is known: as if it were far, so that it is tried again.
                Lease::Unknown | Lease::Settled => {
                    let far = Duration::from_secs(30 * 24 * 3600);
                    Lease::Until {
                        end: now + far,
                        renew_at: now + RENEWAL_PAUSES.1,
                        renewable: true,
                        granted: far,
                    }
                }
            },
        );
    }

    async fn renew(&self, held: &Held, deadline: Instant) -> Result<(), KmsError> {
        let by_login = matches!(self.way, VaultLogin::AppRole { .. } | VaultLogin::Kubernetes { .. });
        let body = Bytes::from_static(b"{}");
        let outcome = self
            .transport
            .send(Method::POST, "auth/token/renew-self", Some(&held.token), body, deadline)
            .await
            .and_then(|reply| match reply.status {
                // `lease is not renewable`: a root token, or one made so.
                400 => Ok(None),
                _ => granted(&reply, errors::of_reply).map(|(lease, _)| Some(lease)),
            });
        match outcome {
            // Nothing can lengthen it, and nothing else can be had.
            Ok(None | Some(Lease::Until { renewable: false, .. })) if !by_login => {
                self.set_lease(&held.token, Lease::Settled);
            }
            Ok(Some(lease)) if !by_login || !lease.is_short_beside(held.lease) => {
                self.set_lease(&held.token, lease);
            }
            // Near its maximum, not renewable after all, or refused.
            Ok(_) => drop(self.login(Some(&held.token), deadline).await?),
            Err(_) if by_login => drop(self.login(Some(&held.token), deadline).await?),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// A token that is not `instead_of`: that of a login that ended just now, or that of a new one.
    async fn login(
        &self,
        instead_of: Option<&Arc<SecretText>>,
        deadline: Instant,
    ) -> Result<Arc<SecretText>, KmsError> {
        let began = Instant::now();
        let Ok(gate) = timeout_at(deadline, Arc::clone(&self.gate).lock_owned()).await else {
            return Err(KmsError::local(KmsErrorClass::Timeout));
        };
        let live = self.held().clone().filter(|held| held.lease.lives());
        if let Some(held) =
            live.filter(|held| instead_of.is_none_or(|token| !Arc::ptr_eq(token, &held.token)))
        {
            return Ok(held.token);
        }
        // Of one whose time was up, not ours, nothing is learned.
        if let Some((at, error)) = &gate.failed
            && *at >= began
            && error.class != KmsErrorClass::Timeout
        {
            return Err(error.clone());
        }
        let request = self.request()?;
        gate.pacing.may_show(&request.credential)?;
        // In a task and a time of its own: a caller that hangs up, or whose time is up, must not
        // leave a refusal unnoticed.
        let login = tokio::spawn(log_in(
            Arc::clone(&self.transport),
            request,
            Arc::clone(&self.held),
            gate,
            Instant::now() + self.timeout,
        ));
        match timeout_at(deadline, login).await {
            Ok(outcome) => outcome.unwrap_or_else(|_| Err(KmsError::local(KmsErrorClass::Internal))),
            Err(_) => Err(KmsError::local(KmsErrorClass::Timeout)),
        }
    }

    fn request(&self) -> Result<Request, KmsError> {
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
        let (mount, written) = match &self.way {
            VaultLogin::AppRole { mount, role_id, secret_id } => {
                let from_file;
                let secret_id = match secret_id {
                    Some(SecretSource::Text(text)) => Some(text.expose()),
                    Some(SecretSource::File(path)) => {
                        from_file = read_secret(path)?;
                        Some(from_file.expose())
                    }
                    None => None,
                };
                (mount, serde_json::to_writer(&mut *body, &AppRole { role_id: role_id.expose(), secret_id }))
            }
            VaultLogin::Kubernetes { mount, role, jwt_file } => {
                let jwt = read_secret(jwt_file)?;
                (mount, serde_json::to_writer(&mut *body, &Kubernetes { role, jwt: jwt.expose() }))
            }
            VaultLogin::Token(_) | VaultLogin::TokenFile(_) => {
                return Err(KmsError::local(KmsErrorClass::CredentialInvalid));
            }
        };
        written.map_err(|_| KmsError::local(KmsErrorClass::Misconfigured))?;
        let (path, credential) = (format!("auth/{mount}/login"), sha256(&body));
        let may_lock_out = matches!(self.way, VaultLogin::AppRole { .. });
        Ok(Request { path, body, credential, may_lock_out })
    }

    fn read_token(&self, path: &Path) -> Result<Arc<SecretText>, KmsError> {
        // Before the text: if the file changes in between, the next look at its stamp sees it.
        let stamp = stamp(path);
        let token = read_secret(path)?;
        let held = self.held().clone();
        match held {
            Some(held) if held.token.expose() == token.expose() => {
                if let Some(now) = self.held().as_mut() {
                    now.stamp = stamp;
                }
                Ok(held.token)
            }
            _ => Ok(self.hold(token.expose(), Lease::Unknown, stamp)),
        }
    }

    fn hold(&self, token: &str, lease: Lease, stamp: Option<(SystemTime, u64)>) -> Arc<SecretText> {
        hold(&self.held, token, lease, stamp)
    }

    fn set_lease(&self, of: &Arc<SecretText>, lease: Lease) {
        if let Some(held) = self.held().as_mut().filter(|held| Arc::ptr_eq(&held.token, of)) {
            held.lease = lease;
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A login, and which credential it shows.
struct Request {
    path: String,
    body: Zeroizing<Vec<u8>>,
    credential: Fingerprint,
    /// Whether Vault counts refusals of it towards a lockout.
    may_lock_out: bool,
}

/// Logs in, and leaves what came of it in `held` and `gate`.
async fn log_in(
    transport: Arc<Transport>,
    request: Request,
    held: Arc<Mutex<Option<Held>>>,
    mut gate: OwnedMutexGuard<Gate>,
    deadline: Instant,
) -> Result<Arc<SecretText>, KmsError> {
    let Request { path, body, credential, may_lock_out } = request;
    let outcome = transport
        .send(Method::POST, &path, None, Bytes::from_owner(body), deadline)
        .await
        .and_then(|reply| granted(&reply, errors::of_login));
    let error = match outcome {
        Ok((lease, token)) => {
            gate.failed = None;
            gate.pacing.succeeded();
            return Ok(hold(&held, token.expose(), lease, None));
        }
        Err(error) => error,
    };
    let retry_after = match (error.class, error.http_status) {
        (KmsErrorClass::CredentialInvalid, Some(400)) if may_lock_out => {
            Some(gate.pacing.refused_and_counted(credential, &error))
        }
        (KmsErrorClass::CredentialInvalid, _) => Some(gate.pacing.refused(credential, &error)),
        (_, None) if may_lock_out => {
            gate.pacing.unanswered(credential);
            None
        }
        _ => None,
    };
    match retry_after {
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
    let error = KmsError { retry_after, ..error };
    gate.failed = Some((Instant::now(), error.clone()));
    Err(error)
}

fn hold(
    held: &Mutex<Option<Held>>,
    token: &str,
    lease: Lease,
    stamp: Option<(SystemTime, u64)>,
) -> Arc<SecretText> {
    let token = Arc::new(SecretText::new(token.to_owned()));
    let now = Held { token: Arc::clone(&token), since: Instant::now(), lease, stamp };
    *held.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    token
}

impl Lease {
    fn granted(seconds: u64, renewable: bool) -> Self {
        if seconds == 0 {
            return Self::Settled;
        }
        let (now, granted) = (Instant::now(), Duration::from_secs(seconds).min(LONGEST_LEASE));
        Self::Until { end: now + granted, renew_at: now + granted * 2 / 3, renewable, granted }
    }

    fn lives(self) -> bool {
        match self {
            Self::Unknown | Self::Settled => true,
            Self::Until { end, .. } => Instant::now() < end,
        }
    }

    fn rest(self, now: Instant) -> Option<Duration> {
        match self {
            Self::Unknown | Self::Settled => None,
            Self::Until { end, .. } => Some(end.saturating_duration_since(now)),
        }
    }

    /// Whether Vault granted less than half of what it granted before: the token nears its maximum.
    fn is_short_beside(self, before: Self) -> bool {
        match (self, before) {
            (Self::Until { granted, .. }, Self::Until { granted: before, .. }) => granted < before / 2,
            _ => false,
        }
    }
}

/// The `auth` part of a login's or renewal's answer
/// (<https://developer.hashicorp.com/vault/api-docs/auth/token#renew-a-token-self>).
fn granted(reply: &Reply, error: fn(&Reply) -> KmsError) -> Result<(Lease, SecretText), KmsError> {
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
            let token = SecretText::new(auth.client_token.to_owned());
            Ok((Lease::granted(auth.lease_duration, auth.renewable), token))
        }
        _ => Err(KmsError::answered(KmsErrorClass::Internal, reply.status, None)),
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
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
        let Lease::Until { end, renew_at, .. } = Lease::granted(90, true) else { panic!("it ends") };
        assert_eq!(end - renew_at, Duration::from_secs(30));
    }

    #[test]
    fn a_lease_of_any_length_has_an_end() {
        assert!(Lease::granted(u64::MAX, true).lives());
    }

    #[test]
    fn a_lease_of_zero_never_ends() {
        assert_eq!(Lease::granted(0, false), Lease::Settled);
    }

    #[test]
    fn a_grant_cut_short_by_the_maximum_is_seen() {
        assert!(Lease::granted(10, true).is_short_beside(Lease::granted(60, true)));
        assert!(!Lease::granted(60, true).is_short_beside(Lease::granted(60, true)));
    }

    #[test]
    fn a_token_file_that_changed_is_read_again() {
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
        let auth = Auth::new(login, transport, settings.timeout);
        let one = auth.read_token(file.path()).unwrap();
        assert!(!auth.refused(&one, KmsErrorClass::CredentialInvalid));
        std::fs::write(file.path(), "two\n").unwrap();
        assert!(auth.refused(&one, KmsErrorClass::CredentialInvalid));
        assert_eq!(auth.held().as_ref().unwrap().token.expose(), "two");
    }
}
