//! The activity of a connection: whether it carries a request, and if not, what it waits for and
//! since when. This distinguishes an idle connection from one that is slow to begin a request.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::Version;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, sleep};

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// The first request.
    FirstRequest,
    /// Another request, of which nothing has arrived.
    NextRequest,
    /// The rest of a request's head, over HTTP/1.1 alone: HTTP/2 has frames that begin no request.
    RestOfHead,
    /// The end of a request: the rest of its body, the work on it, and the delivery of its answer.
    RestOfRequest,
}

/// How often a connection without any limit is checked.
const UNLIMITED_CHECK: Duration = Duration::from_secs(75);

/// The activity of one connection.
pub(super) struct Activity(Mutex<State>);

struct State {
    /// The requests in progress, each until its body and its answer are dropped.
    requests: usize,
    waits_for: Wait,
    since: Instant,
    is_http1: bool,
}

impl Activity {
    /// The activity of a new connection.
    pub(super) fn new() -> Arc<Self> {
        let (waits_for, since) = (Wait::FirstRequest, Instant::now());
        Arc::new(Self(Mutex::new(State { requests: 0, waits_for, since, is_http1: false })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request whose head has arrived.
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> ActiveRequest {
        let mut state = self.state();
        if state.requests == 0 {
            state.waits_for = Wait::RestOfRequest;
            state.since = Instant::now();
        }
        state.requests += 1;
        state.is_http1 = version < Version::HTTP_2;
        ActiveRequest(self.clone())
    }

    /// Records that bytes have arrived.
    pub(super) fn record_read(&self) {
        let mut state = self.state();
        if state.requests == 0 && state.is_http1 && state.waits_for == Wait::NextRequest {
            state.waits_for = Wait::RestOfHead;
            state.since = Instant::now();
        }
    }

    /// Counts the current wait from now.
    pub(super) fn restart_wait(&self) {
        self.state().since = Instant::now();
    }

    fn waiting(&self) -> (Wait, Instant) {
        let state = self.state();
        (state.waits_for, state.since)
    }

    /// Waits until the connection has waited too long, and returns for what. `allowed` gives the
    /// limit of each wait, if it has one. Must be polled after the connection itself.
    pub(super) async fn overdue(&self, allowed: impl Fn(Wait) -> Option<Duration>) -> Wait {
        // A wait that begins meanwhile is at least this long again.
        let recheck = || allowed(Wait::NextRequest).unwrap_or(UNLIMITED_CHECK);
        let mut timer = std::pin::pin!(sleep(recheck()));
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
                    None => timer.as_mut().reset(now + recheck()),
                }
            }
        })
        .await
    }
}

/// A request in progress on a connection. Clones are held by its body, by the work on it and by its
/// answer; the connection waits for the next request once all of them are dropped.
pub(super) struct ActiveRequest(Arc<Activity>);

impl Clone for ActiveRequest {
    fn clone(&self) -> Self {
        self.0.state().requests += 1;
        Self(self.0.clone())
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.requests -= 1;
        if state.requests == 0 {
            state.waits_for = Wait::NextRequest;
            state.since = Instant::now();
        }
    }
}

/// A body of a request or an answer that keeps the request in progress until it is dropped.
pub(super) struct TrackedBody<B> {
    pub(super) body: B,
    pub(super) _request: ActiveRequest,
}

impl<B: HttpBody + Unpin> HttpBody for TrackedBody<B> {
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

    /// What the connection waited for too long, and how long from now it took.
    async fn overdue(activity: &Activity) -> (Wait, Duration) {
        let began = Instant::now();
        (activity.overdue(allowed).await, began.elapsed())
    }

    /// Asserts the wait and its duration, up to the granularity of the clock.
    fn assert_about(measured: (Wait, Duration), waits_for: Wait, after: Duration) {
        assert_eq!(measured.0, waits_for);
        assert!((after..after + Duration::from_millis(5)).contains(&measured.1), "{:?}", measured.1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_request_must_arrive_soon_and_the_next_may_wait() {
        let activity = Activity::new();
        assert_about(overdue(&activity).await, Wait::FirstRequest, HEAD);
        let request = activity.begin(Version::HTTP_11);
        drop(request);
        assert_about(overdue(&activity).await, Wait::NextRequest, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_has_begun_must_end_soon() {
        let activity = Activity::new();
        drop(activity.begin(Version::HTTP_11));
        let watched = activity.clone();
        let watching = tokio::spawn(async move {
            // Like the connection's own task, which is woken by each byte.
            let mut bytes = tokio::time::interval(Duration::from_secs(3));
            let mut overdue = std::pin::pin!(overdue(&watched));
            loop {
                tokio::select! {
                    biased;
                    _ = bytes.tick() => watched.record_read(),
                    overdue = &mut overdue => return overdue,
                }
            }
        });
        assert_about(watching.await.unwrap(), Wait::RestOfHead, HEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_must_end_within_its_limit_if_it_has_one() {
        let activity = Activity::new();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _request = activity.begin(Version::HTTP_2);
        let began = Instant::now();
        let allowed = |waits_for| match waits_for {
            Wait::RestOfRequest => Some(Duration::from_secs(2)),
            other => allowed(other),
        };
        let waits_for = activity.overdue(allowed).await;
        assert_about((waits_for, began.elapsed()), Wait::RestOfRequest, Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn frames_between_requests_over_http_2_begin_no_request() {
        let activity = Activity::new();
        drop(activity.begin(Version::HTTP_2));
        activity.record_read();
        assert_about(overdue(&activity).await, Wait::NextRequest, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_once_its_requests_parts_are_dropped() {
        let activity = Activity::new();
        let request = activity.begin(Version::HTTP_11);
        let answer = TrackedBody { body: axum::body::Body::empty(), _request: request.clone() };
        let ends = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(request);
            activity.record_read();
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(answer);
        };
        let (overdue, ()) = tokio::join!(overdue(&activity), ends);
        assert_about(overdue, Wait::NextRequest, Duration::from_secs(120) + IDLE);
    }
}
