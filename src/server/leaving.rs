//! An answer as its client takes it: bit by bit, so that what is not taken shows, and within a time. HTTP/2 has windows of
//! its own, by stream: an answer can stand still there while the connection flows.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use super::bounds::Claim;

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

/// A body that is being taken.
pub(super) struct Leaving {
    body: Body,
    rest: Bytes,
    untaken: Untaken,
    mark: (Instant, u64),
    /// Its bytes are held until it is gone.
    _claim: Option<Arc<Claim>>,
}

impl Leaving {
    /// The body of an answer, on the connection with these.
    pub(super) fn new(body: Body, untaken: Untaken, claim: Option<Arc<Claim>>) -> Self {
        let mark = (Instant::now(), untaken.0.next.fetch_add(1, Ordering::Relaxed));
        untaken.0.since.lock().unwrap_or_else(PoisonError::into_inner).insert(mark);
        Self { body, rest: Bytes::new(), untaken, mark, _claim: claim }
    }

    /// The last byte of a piece goes alone: HTTP/2 takes a whole piece where its client has room for one byte, and asks
    /// for the next only once that one has gone out. So this body stands until all but a byte has.
    fn piece(&mut self) -> Bytes {
        let long = match self.rest.len() {
            short @ (0 | 1) => short,
            long => (long - 1).min(PIECE),
        };
        self.rest.split_to(long)
    }
}

impl HttpBody for Leaving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.rest = bytes,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = self.piece();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
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

impl Drop for Leaving {
    fn drop(&mut self) {
        self.untaken.0.since.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.mark);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::super::bounds::tests::bounds;
    use super::*;

    #[tokio::test]
    async fn an_answer_comes_whole_and_counts_until_it_is_gone() {
        let (bounds, untaken) = (bounds(1, 10), Untaken::default());
        let claim = Arc::new(Claim::new(bounds.clone()));
        let text: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        claim.hold_answer(text.len());
        let mut body = Leaving::new(Body::from(text.clone()), untaken.clone(), Some(claim));
        assert_eq!(body.size_hint().exact(), Some(200_000));
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(body.size_hint().exact(), Some(200_000 - first.len() as u64));
        assert!(untaken.oldest().is_some());
        let mut all = first.to_vec();
        while let Some(frame) = body.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            assert!((1..=PIECE).contains(&piece.len()));
            all.extend_from_slice(&piece);
        }
        assert_eq!(all, text);
        assert!(body.is_end_stream());
        assert_eq!(bounds.bytes.held(), 200_000);
        drop(body);
        assert_eq!((bounds.bytes.held(), untaken.oldest()), (0, None));
    }
}
