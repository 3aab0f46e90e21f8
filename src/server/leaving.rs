//! An answer as its client takes it: bit by bit, so that what is not taken shows, and within a time. HTTP/2 has windows of
//! its own, by stream: an answer can stand still there while the connection flows. An answer that stands on keys is asked
//! before each piece whether it may still leave. If not, its body ends in an error: HTTP/1.1 then drops the connection, and
//! HTTP/2 resets the stream (RST_STREAM).

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::http::{Response, Version};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use crate::app::Release;

use super::bounds::Claim;
use super::piece::Piece;
use super::unsent::Unsent;

/// How much is handed out at a time; what is no longer than this goes out by HTTP/1.1 as it is.
pub(super) const PIECE: usize = 64 << 10;

/// The answers of one connection that its client has not taken whole.
#[derive(Clone, Default)]
pub(super) struct Untaken(Arc<Inner>);

#[derive(Default)]
struct Inner {
    next: AtomicU64,
    since: Mutex<BTreeSet<(Instant, u64)>>,
}

impl Untaken {
    /// When the oldest of them began.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.0.since.lock().unwrap_or_else(PoisonError::into_inner).first().map(|(since, _)| *since)
    }
}

/// What the answers of one connection share.
#[derive(Clone, Default)]
pub(super) struct Outlet {
    /// The answers that its client has not taken whole.
    pub(super) untaken: Untaken,
    /// The answers that may be buffered above the socket.
    pub(super) unsent: Unsent,
}

/// Whether the time is limited in which the client must take this answer. A short one over HTTP/1.1 is in the connection's
/// buffers at once, and those have a limit of their own.
pub(super) fn is_watched(version: Version, body: &Body) -> bool {
    let short = body.size_hint().upper().is_some_and(|bytes| bytes <= PIECE as u64);
    version >= Version::HTTP_2 || !short
}

/// A body that is being taken.
pub(super) struct Leaving {
    body: Body,
    rest: Bytes,
    is_http2: bool,
    watched: Option<Watched>,
    release: Option<Arc<Release>>,
    unsent: Unsent,
    ended: bool,
}

struct Watched {
    untaken: Untaken,
    mark: (Instant, u64),
    /// Its bytes are held until it is gone.
    _claim: Option<Arc<Claim>>,
}

impl Leaving {
    /// An answer that leaves over the connection of `outlet`. Takes the [`Release`] and the [`Claim`] from its extensions.
    pub(super) fn by(outlet: &Outlet, version: Version, mut answer: Response<Body>) -> Response<Self> {
        let release = answer.extensions_mut().remove::<Arc<Release>>();
        let claim = answer.extensions_mut().remove::<Arc<Claim>>();
        answer.map(|body| {
            if let Some(release) = &release
                && body.size_hint().lower() > PIECE as u64
            {
                release.watch_on();
            }
            let watched = is_watched(version, &body).then(|| Watched::new(outlet.untaken.clone(), claim));
            let (is_http2, unsent) = (version >= Version::HTTP_2, outlet.unsent.clone());
            Self { body, rest: Bytes::new(), is_http2, watched, release, unsent, ended: false }
        })
    }

    /// The last byte of a piece goes alone: HTTP/2 takes a whole piece where its client has room for one byte, and asks
    /// for the next only once that one has gone out. So this body stands until all but a byte has.
    fn piece(&mut self) -> Piece {
        let long = match self.rest.len() {
            all if self.watched.is_none() => all,
            short @ (0 | 1) => short,
            long => (long - 1).min(PIECE),
        };
        let bytes = self.rest.split_to(long);
        match &self.release {
            None => Piece::of(bytes),
            Some(release) if self.is_http2 => Piece::released(bytes, release.clone(), self.unsent.clone()),
            Some(release) => {
                release.begin();
                self.unsent.add(release);
                Piece::of(bytes)
            }
        }
    }
}

impl Watched {
    fn new(untaken: Untaken, claim: Option<Arc<Claim>>) -> Self {
        let mark = (Instant::now(), untaken.0.next.fetch_add(1, Ordering::Relaxed));
        untaken.0.since.lock().unwrap_or_else(PoisonError::into_inner).insert(mark);
        Self { untaken, mark, _claim: claim }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.untaken.0.since.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.mark);
    }
}

impl HttpBody for Leaving {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        if let Some(release) = &self.release
            && !release.may_leave()
        {
            release.break_off();
            let late = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            return Poll::Ready(Some(Err(axum::Error::new(late))));
        }
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.rest = bytes,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers.map_data(Piece::of)))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    self.ended = true;
                    if let Some(release) = &self.release {
                        release.hand_over();
                    }
                    return Poll::Ready(None);
                }
            }
        }
        let piece = self.piece();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    /// An HTTP/2 answer that stands on keys ends only when it is asked once more after its last byte, so that it can be
    /// broken off while bytes of it wait for the client's window.
    fn is_end_stream(&self) -> bool {
        let asked_once_more = self.ended || !self.is_http2 || self.release.is_none();
        self.rest.is_empty() && self.body.is_end_stream() && asked_once_more
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, hint) = (self.rest.len() as u64, self.body.size_hint());
        let mut all = SizeHint::new();
        all.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            all.set_upper(upper + rest);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use hyper::body::Buf as _;

    use super::super::bounds::tests::bounds;
    use super::*;

    #[tokio::test]
    async fn an_answer_comes_whole_and_counts_until_it_is_gone() {
        let (bounds, outlet) = (bounds(1, 10), Outlet::default());
        let claim = Arc::new(Claim::new(bounds.clone()));
        let text: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        claim.hold_answer(text.len());
        let mut answer = Response::new(Body::from(text.clone()));
        answer.extensions_mut().insert(claim);
        let mut body = Leaving::by(&outlet, Version::HTTP_11, answer).into_body();
        assert_eq!(body.size_hint().exact(), Some(200_000));
        let first = body.frame().await.unwrap().unwrap().into_data().ok().unwrap();
        assert_eq!(body.size_hint().exact(), Some(200_000 - first.remaining() as u64));
        assert!(outlet.untaken.oldest().is_some());
        let mut all = first.chunk().to_vec();
        while let Some(frame) = body.frame().await {
            let piece = frame.unwrap().into_data().ok().unwrap();
            assert!((1..=PIECE).contains(&piece.remaining()));
            all.extend_from_slice(piece.chunk());
        }
        assert_eq!(all, text);
        assert!(body.is_end_stream());
        assert_eq!(bounds.bytes.held(), 200_000);
        drop(body);
        assert_eq!((bounds.bytes.held(), outlet.untaken.oldest()), (0, None));
    }
}
