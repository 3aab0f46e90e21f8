//! What goes on on a connection: whether a request is on it, and if none is, what it waits for and since when. An idle
//! connection is told from one that is slow to begin a request.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::Version;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, sleep};

/// What a connection without a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Its first request.
    FirstRequest,
    /// Another request, of which nothing has come.
    NextRequest,
    /// The rest of a request's head, by HTTP/1.1. HTTP/2 has frames between requests that begin none.
    RestOfHead,
    /// The end of a request: the rest of its body, the work on it, and that its answer is taken.
    RestOfRequest,
}

/// How often a connection is looked at for which nothing is bounded.
const AT_REST: Duration = Duration::from_secs(75);

/// The activity of one connection.
pub(super) struct Activity(Mutex<State>);

struct State {
    /// Requests that are on it, until body and answer have gone.
    requests: usize,
    waits_for: Wait,
    since: Instant,
    is_http1: bool,
}

impl Activity {
    /// Of a connection that has just come.
    pub(super) fn new() -> Arc<Self> {
        let (waits_for, since) = (Wait::FirstRequest, Instant::now());
        Arc::new(Self(Mutex::new(State { requests: 0, waits_for, since, is_http1: false })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request whose head has come.
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> OnConnection {
        let mut state = self.state();
        if state.requests == 0 {
            state.waits_for = Wait::RestOfRequest;
            state.since = Instant::now();
        }
        state.requests += 1;
        state.is_http1 = version < Version::HTTP_2;
        OnConnection(self.clone())
    }

    /// Notes that bytes have come.
    pub(super) fn read(&self) {
        let mut state = self.state();
        if state.requests == 0 && state.is_http1 && state.waits_for == Wait::NextRequest {
            state.waits_for = Wait::RestOfHead;
            state.since = Instant::now();
        }
    }

    /// Counts what it waits for from now.
    pub(super) fn wait_anew(&self) {
        self.state().since = Instant::now();
    }

    fn waiting(&self) -> (Wait, Instant) {
        let state = self.state();
        (state.waits_for, state.since)
    }

    /// What it has waited for too long, once it has; `allowed` says how long it may, where that is bounded. Has to be polled
    /// after whatever polls the connection.
    pub(super) async fn overdue(&self, allowed: impl Fn(Wait) -> Option<Duration>) -> Wait {
        // What ends meanwhile waits at least as long again.
        let at_rest = || allowed(Wait::NextRequest).unwrap_or(AT_REST);
        let mut timer = std::pin::pin!(sleep(at_rest()));
        std::future::poll_fn(|context| {
            loop {
                let (waits_for, since) = self.waiting();
                let due = allowed(waits_for).map(|allowed| (waits_for, since + allowed));
                if let Some((_, due)) = due
                    && due < timer.deadline()
                {
                    timer.as_mut().reset(due);
                }
                ready!(timer.as_mut().poll(context));
                let now = Instant::now();
                match due {
                    Some((waits_for, due)) if due <= now => return Poll::Ready(waits_for),
                    Some((_, due)) => timer.as_mut().reset(due),
                    None => timer.as_mut().reset(now + at_rest()),
                }
            }
        })
        .await
    }
}

/// A request that is on a connection: its body, the work on it, its answer. The connection waits once all of them have gone.
pub(super) struct OnConnection(Arc<Activity>);

impl Clone for OnConnection {
    fn clone(&self) -> Self {
        self.0.state().requests += 1;
        Self(self.0.clone())
    }
}

impl Drop for OnConnection {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.requests -= 1;
        if state.requests == 0 {
            state.waits_for = Wait::NextRequest;
            state.since = Instant::now();
        }
    }
}

/// A body of a request or an answer, for as long as which the request is on its connection.
pub(super) struct Held<B> {
    pub(super) body: B,
    pub(super) _request: OnConnection,
}

impl<B: HttpBody + Unpin> HttpBody for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(75);
    const HEAD: Duration = Duration::from_secs(10);

    fn allowed(waits_for: Wait) -> Option<Duration> {
        match waits_for {
            Wait::FirstRequest | Wait::RestOfHead => Some(HEAD),
            Wait::NextRequest => Some(IDLE),
            Wait::RestOfRequest => None,
        }
    }

    /// What is overdue, and after how long from now.
    async fn overdue(activity: &Activity) -> (Wait, Duration) {
        let began = Instant::now();
        (activity.overdue(allowed).await, began.elapsed())
    }

    /// The clock's grain.
    fn about(measured: (Wait, Duration), waits_for: Wait, after: Duration) {
        assert_eq!(measured.0, waits_for);
        assert!((after..after + Duration::from_millis(5)).contains(&measured.1), "{:?}", measured.1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_request_must_come_soon_and_the_next_may_wait() {
        let activity = Activity::new();
        about(overdue(&activity).await, Wait::FirstRequest, HEAD);
        let request = activity.begin(Version::HTTP_11);
        drop(request);
        about(overdue(&activity).await, Wait::NextRequest, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_has_begun_must_end_soon_however_slow() {
        let activity = Activity::new();
        drop(activity.begin(Version::HTTP_11));
        let watched = activity.clone();
        let watching = tokio::spawn(async move {
            // As the connection's own task, which is woken by each byte.
            let mut bytes = tokio::time::interval(Duration::from_secs(3));
            let mut overdue = std::pin::pin!(overdue(&watched));
            loop {
                tokio::select! {
                    biased;
                    _ = bytes.tick() => watched.read(),
                    overdue = &mut overdue => return overdue,
                }
            }
        });
        about(watching.await.unwrap(), Wait::RestOfHead, HEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_to_end_where_that_is_bounded() {
        let activity = Activity::new();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _request = activity.begin(Version::HTTP_2);
        let began = Instant::now();
        let allowed = |waits_for| match waits_for {
            Wait::RestOfRequest => Some(Duration::from_secs(2)),
            other => allowed(other),
        };
        let waits_for = activity.overdue(allowed).await;
        about((waits_for, began.elapsed()), Wait::RestOfRequest, Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_between_requests_by_http_2_begins_none() {
        let activity = Activity::new();
        drop(activity.begin(Version::HTTP_2));
        activity.read();
        about(overdue(&activity).await, Wait::NextRequest, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_once_a_requests_last_byte_has_gone() {
        let activity = Activity::new();
        let request = activity.begin(Version::HTTP_11);
        let answer = Held { body: axum::body::Body::empty(), _request: request.clone() };
        let ends = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(request);
            activity.read();
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(answer);
        };
        let (overdue, ()) = tokio::join!(overdue(&activity), ends);
        about(overdue, Wait::NextRequest, Duration::from_secs(120) + IDLE);
    }
}
