//! Keys from `jwk_url`: fetched at start, again when the previous answer expires, as by Hasura, and
//! earlier if a token names an unknown key.
//!
//! A failed fetch leaves the keys unchanged and is retried each second. Of an answer, only the ids
//! of unused keys are logged.

use std::fmt;
use std::time::Duration;

use http::HeaderMap;
use http::header::{CACHE_CONTROL, EXPIRES};
use tokio_util::sync::CancellationToken;

use super::keys::{JwkSetError, KeySet, Unused};
use super::verifier::Verifier;
use crate::crypto;
use crate::model::{Clock, Timestamp};

/// The interval between retries, and the shortest between fetches.
const TICK: Duration = Duration::from_secs(1);
/// How long one fetch may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// The largest answer that is read.
const MAX_BODY_BYTES: usize = 1024 * 1024;
/// The most unused keys that are named.
const MAX_NAMED: usize = 10;

/// The result of one fetch of the keys of a `jwk_url`.
pub struct KeysFound {
    /// The host.
    pub host: String,
    /// The number of usable keys, with the ids of unusable ones and the reasons; or why the fetch
    /// failed.
    pub keys: Result<(usize, Vec<String>), String>,
}

/// Why a fetch failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FetchError {
    Unreachable,
    Timeout,
    Status(u16),
    OtherOrigin,
    TooLarge,
    Keys(JwkSetError),
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => f.write_str("it cannot be reached"),
            Self::Timeout => write!(f, "no complete answer within {} s", DEADLINE.as_secs()),
            Self::Status(status) => write!(f, "the answer has the status {status}"),
            Self::OtherOrigin => f.write_str("it redirects to another scheme, host or port"),
            Self::TooLarge => write!(f, "the answer has more than {MAX_BODY_BYTES} bytes"),
            Self::Keys(JwkSetError::Malformed) => f.write_str("the answer is not a JWK set"),
            Self::Keys(JwkSetError::TooManyKeys) => f.write_str("the answer holds too many keys"),
        }
    }
}

impl From<reqwest::Error> for FetchError {
    fn from(error: reqwest::Error) -> Self {
        if error.is_timeout() { Self::Timeout } else { Self::Unreachable }
    }
}

/// Keeps the keys of `verifier` up to date until `stop`. An answer without a lifetime is kept until
/// a token names an unknown key.
pub(super) async fn keep_fresh(
    verifier: &Verifier,
    url: &reqwest::Url,
    client: &reqwest::Client,
    clock: &dyn Clock,
    stop: &CancellationToken,
) {
    let host = url.host_str().unwrap_or_default();
    let mut last_body = None;
    let mut failing = false;
    let refetch = verifier.refetch();
    loop {
        refetch.begin();
        let fetched = tokio::select! {
            fetched = fetch(client, url) => fetched,
            () = stop.cancelled() => return,
        };
        let failed = fetched.is_err();
        let wait = match fetched {
            Ok(answer) => {
                let body = crypto::sha256(&answer.body);
                // If the keys are unchanged, the tokens that they have verified stay cached.
                if last_body != Some(body) {
                    tracing::info!(host, keys = answer.keys.len(), "new keys of jwk_url are in use");
                    for key in described(answer.keys.unused()) {
                        tracing::warn!(host, key, "a key of jwk_url cannot be used");
                    }
                    verifier.replace_keys(answer.keys);
                    last_body = Some(body);
                } else if failing {
                    tracing::info!(host, "the keys of jwk_url can be fetched again");
                }
                failing = false;
                lifetime(&answer.headers, clock.now()).map(|time| time.max(TICK))
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(host, %error, "the keys of jwk_url cannot be fetched; trying again each second");
                    failing = true;
                }
                Some(TICK)
            }
        };
        refetch.end(failed);
        let due = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = refetch.requested() => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Fetches the keys once, and stores nothing.
pub(super) async fn try_once(client: &reqwest::Client, url: &reqwest::Url) -> KeysFound {
    let keys = match fetch(client, url).await {
        Ok(answer) => Ok((answer.keys.len(), described(answer.keys.unused()).collect())),
        Err(error) => Err(error.to_string()),
    };
    KeysFound { host: url.host_str().unwrap_or_default().to_owned(), keys }
}

/// Descriptions of unused keys: the id and the reason for up to [`MAX_NAMED`], then the number of
/// the others.
fn described(unused: &[Unused]) -> impl Iterator<Item = String> {
    let more = unused.len().saturating_sub(MAX_NAMED);
    let one = |key: &Unused| match &key.id {
        // Quoted, since the provider chooses the id: it must not look like another log line.
        Some(id) => format!("{id:?}: {}", key.why),
        None => format!("one without `kid`: {}", key.why),
    };
    let more = (more > 0).then(|| format!("{more} more"));
    unused.iter().take(MAX_NAMED).map(one).chain(more)
}

struct Answer {
    keys: KeySet,
    body: Vec<u8>,
    headers: HeaderMap,
}

async fn fetch(client: &reqwest::Client, url: &reqwest::Url) -> Result<Answer, FetchError> {
    let mut response = client.get(url.clone()).timeout(DEADLINE).send().await?;
    if response.url().origin() != url.origin() {
        return Err(FetchError::OtherOrigin);
    }
    if !response.status().is_success() {
        return Err(FetchError::Status(response.status().as_u16()));
    }
    let headers = std::mem::take(response.headers_mut());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    let keys = KeySet::parse(&body).map_err(FetchError::Keys)?;
    Ok(Answer { keys, body, headers })
}

/// The lifetime of an answer by its headers (RFC 9111); `None` if they give none. `Cache-Control`
/// comes before `Expires`: `must-revalidate` means its age, or zero without one; `no-cache` and
/// `no-store` mean zero; then the first of `max-age` and `s-maxage` counts.
fn lifetime(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text =
        |name| headers.get_all(name).iter().filter_map(|value: &http::HeaderValue| value.to_str().ok());
    let directives: Vec<String> = text(CACHE_CONTROL)
        .flat_map(|line| line.split(','))
        .map(|part| part.trim().to_ascii_lowercase())
        .collect();
    let has = |name: &str| directives.iter().any(|directive| directive == name);
    let age = directives.iter().find_map(|directive| {
        let (name, value) = directive.split_once('=')?;
        let seconds = || value.trim_matches('"').parse().ok().map(Duration::from_secs);
        if matches!(name, "max-age" | "s-maxage") { seconds() } else { None }
    });
    if has("must-revalidate") {
        return Some(age.unwrap_or_default());
    }
    if has("no-cache") || has("no-store") {
        return Some(Duration::ZERO);
    }
    age.or_else(|| {
        let expires = httpdate::parse_http_date(text(EXPIRES).next()?).ok()?;
        Some(Timestamp::from(time::OffsetDateTime::from(expires)).since(now))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::http::StatusCode;
    use axum::response::{IntoResponse as _, Response};
    use axum::routing::get;
    use serde_json::json;

    use super::*;
    use crate::auth::jwt::testkit::{Signer, TestClock, claims, client, jwk_of, verifier_of, wait_until};
    use crate::model::ErrorCode;

    #[test]
    fn how_long_keys_last_follows_the_headers() {
        let now = Timestamp::parse("2026-11-23T10:00:00Z").unwrap();
        let seconds = Duration::from_secs;
        for (cache_control, expires, lasts_for) in [
            ("max-age=600", "", Some(seconds(600))),
            ("public, s-maxage=30", "", Some(seconds(30))),
            ("max-age=10, s-maxage=30", "", Some(seconds(10))),
            ("Max-Age=\"7\"", "", Some(seconds(7))),
            ("must-revalidate", "", Some(Duration::ZERO)),
            ("max-age=60, must-revalidate", "", Some(seconds(60))),
            ("no-cache", "", Some(Duration::ZERO)),
            ("no-store, max-age=60", "", Some(Duration::ZERO)),
            ("max-age=5", "Mon, 23 Nov 2026 10:01:00 GMT", Some(seconds(5))),
            ("", "Mon, 23 Nov 2026 10:01:00 GMT", Some(seconds(60))),
            ("public", "Mon, 23 Nov 2026 10:01:00 GMT", Some(seconds(60))),
            ("", "Mon, 23 Nov 2026 09:00:00 GMT", Some(Duration::ZERO)),
            ("max-age=soon", "0", None),
            ("max-age=-1", "", None),
            ("public", "", None),
            ("", "", None),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(CACHE_CONTROL, cache_control), (EXPIRES, expires)] {
                if !value.is_empty() {
                    headers.insert(name, value.parse().unwrap());
                }
            }
            assert_eq!(lifetime(&headers, now), lasts_for, "{cache_control:?} {expires:?}");
        }
    }

    /// A JWK server on loopback: `answer` gets the number of the request, from 0.
    async fn serve(
        answer: impl Fn(usize) -> Response + Clone + Send + Sync + 'static,
    ) -> (reqwest::Url, Arc<AtomicUsize>) {
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        let handler = move || {
            let number = counter.fetch_add(1, Ordering::SeqCst);
            std::future::ready(answer(number))
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/jwks", get(handler))).await });
        (url, requests)
    }

    fn keys(names: &[&str], cache_control: &'static str) -> Response {
        let keys: Vec<_> = names.iter().map(|name| jwk_of(name)).collect();
        ([(CACHE_CONTROL, cache_control)], json!({ "keys": keys }).to_string()).into_response()
    }

    /// A verifier whose keys come from there, being kept fresh until the guard drops.
    fn refreshed(url: &reqwest::Url) -> (Arc<Verifier>, tokio_util::sync::DropGuard) {
        let verifier = Arc::new(verifier_of(&json!({ "jwk_url": url.as_str() })));
        let stop = CancellationToken::new();
        let (shared, url, child) = (Arc::clone(&verifier), url.clone(), stop.clone());
        tokio::spawn(
            async move { keep_fresh(&shared, &url, &client(), &TestClock::default(), &child).await },
        );
        (verifier, stop.drop_guard())
    }

    fn accepts(verifier: &Verifier, name: &str) -> bool {
        verifier.verify(&Signer::new(name).token(&claims()), TestClock::default().now()).is_ok()
    }

    #[tokio::test]
    async fn before_the_first_fetch_tokens_are_refused_and_serving_continues() {
        // Nothing listens there.
        let (verifier, _stop) = refreshed(&"http://127.0.0.1:9/jwks".parse().unwrap());
        let refusal =
            verifier.verify(&Signer::new("p256").token(&claims()), TestClock::default().now()).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::Unavailable, "it may be as good as any");
        assert!(refusal.message.starts_with("Could not verify JWT: JWKNotFound"), "{}", refusal.message);
    }

    #[tokio::test]
    async fn fetched_keys_verify_and_without_caching_headers_are_never_fetched_again() {
        let (url, requests) = serve(|_| json!({"keys": [jwk_of("p256")]}).to_string().into_response()).await;
        let (verifier, _stop) = refreshed(&url);
        wait_until(|| accepts(&verifier, "p256")).await;
        tokio::time::sleep(2 * TICK).await;
        assert_eq!(requests.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn when_keys_change_remembered_tokens_of_the_old_key_are_refused() {
        let (url, _) =
            serve(|request| keys(&[if request == 0 { "p256" } else { "ed25519" }], "no-cache")).await;
        let (verifier, _stop) = refreshed(&url);
        wait_until(|| accepts(&verifier, "p256")).await;
        wait_until(|| accepts(&verifier, "ed25519")).await;
        assert!(!accepts(&verifier, "p256"));
    }

    #[tokio::test]
    async fn a_failed_refresh_keeps_the_keys_and_is_retried_each_second() {
        let (url, requests) = serve(|request| match request {
            0 => keys(&["p256"], "max-age=1"),
            1 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            2 => "not a key set".into_response(),
            _ => keys(&["p384"], "max-age=3600"),
        })
        .await;
        let (verifier, _stop) = refreshed(&url);
        wait_until(|| requests.load(Ordering::SeqCst) == 3).await;
        assert!(accepts(&verifier, "p256"));
        wait_until(|| accepts(&verifier, "p384")).await;
        assert_eq!(requests.load(Ordering::SeqCst), 4);
    }

    #[tokio::test]
    async fn an_answer_that_is_not_a_key_set_is_an_error() {
        for (body, error) in [
            ((StatusCode::NOT_FOUND, "{}".to_owned()), FetchError::Status(404)),
            ((StatusCode::OK, "{}".to_owned()), FetchError::Keys(JwkSetError::Malformed)),
            ((StatusCode::OK, " ".repeat(MAX_BODY_BYTES + 1)), FetchError::TooLarge),
        ] {
            let (url, _) = serve(move |_| body.clone().into_response()).await;
            assert_eq!(fetch(&client(), &url).await.err(), Some(error));
        }
    }

    #[tokio::test]
    async fn keys_from_another_origin_are_not_taken() {
        let (elsewhere, _) = serve(|_| keys(&["p256"], "no-cache")).await;
        let (url, _) = serve(move |_| {
            (StatusCode::FOUND, [("location", elsewhere.as_str().to_owned())]).into_response()
        })
        .await;
        assert_eq!(fetch(&client(), &url).await.err(), Some(FetchError::OtherOrigin));
    }

    /// A token whose header names this key.
    fn naming(name: &str, id: &str) -> String {
        let algorithm = if name == "p256" { "ES256" } else { "EdDSA" };
        Signer::new(name).token_with(&json!({ "alg": algorithm, "kid": id }), &claims())
    }

    #[tokio::test]
    async fn an_unknown_key_is_fetched_before_its_time_once_for_all() {
        let (url, requests) = serve(|request| {
            let mut key = jwk_of(if request == 0 { "p256" } else { "ed25519" });
            key["kid"] = json!(format!("key-{request}"));
            ([(CACHE_CONTROL, "max-age=3600")], json!({ "keys": [key] }).to_string()).into_response()
        })
        .await;
        let (verifier, _stop) = refreshed(&url);
        wait_until(|| verifier.knows_keys()).await;
        let token = naming("ed25519", "key-1");
        let looks = (0..20).map(|_| verifier.look_for_key(&token));
        assert!(futures_util::future::join_all(looks).await.into_iter().all(|found| found == Ok(true)));
        assert!(verifier.verify(&token, TestClock::default().now()).is_ok());
        assert_eq!(requests.load(Ordering::SeqCst), 2);
        assert_eq!(verifier.look_for_key(&naming("p256", "a stranger's")).await, Ok(false));
        assert_eq!(requests.load(Ordering::SeqCst), 2, "one was made a moment ago");
    }

    #[tokio::test]
    async fn an_unknown_key_is_no_bad_token_during_an_outage() {
        let (url, _) = serve(|request| match request {
            0 => keys(&["p256"], "max-age=3600"),
            _ => StatusCode::BAD_GATEWAY.into_response(),
        })
        .await;
        let (verifier, _stop) = refreshed(&url);
        wait_until(|| verifier.knows_keys()).await;
        let refusal = verifier.look_for_key(&naming("ed25519", "new")).await.unwrap_err();
        assert_eq!(refusal.code, ErrorCode::Unavailable);
        assert!(accepts(&verifier, "p256"), "what is known stays good");
    }

    #[test]
    fn unused_keys_are_named_with_the_reason_and_in_bounded_number() {
        let mut keys = vec![json!({ "kid": "one\nline", "kty": "oct" }), json!({ "kty": "AKP" })];
        keys.extend((0..20).map(|number| json!({ "kid": number.to_string(), "kty": "oct" })));
        let set = KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).ok().unwrap();
        let named: Vec<String> = described(set.unused()).collect();
        assert_eq!(named.len(), MAX_NAMED + 1);
        assert!(named[0].starts_with(r#""one\nline": it is a shared secret"#), "{}", named[0]);
        assert!(named[1].starts_with("one without `kid`: its `kty`"), "{}", named[1]);
        assert_eq!(named[MAX_NAMED], "12 more");
    }
}
