//! The body of an answer while its client reads it: in chunks, so that a client that stops reading
//! is noticed, and within a time limit. (HTTP/2 has flow control by stream, so that one answer can
//! stall while the connection is busy.) Before each chunk of an answer that depends on a key, its
//! [`Release`] is asked whether the answer may still be sent. If not, the body ends in an error:
//! HTTP/1.1 then drops the connection, and HTTP/2 resets the stream (RST_STREAM).

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
use super::buffered::Buffered;
use super::chunk::Chunk;

/// The length of a chunk. A shorter body is sent over HTTP/1.1 as it is.
pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// The answers of one connection that its client has not read completely.
#[derive(Clone, Default)]
pub(super) struct Undelivered(Arc<Inner>);

#[derive(Default)]
struct Inner {
    next: AtomicU64,
    since: Mutex<BTreeSet<(Instant, u64)>>,
}

impl Undelivered {
    /// When the oldest of these answers began.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.0.since.lock().unwrap_or_else(PoisonError::into_inner).first().map(|(since, _)| *since)
    }
}

/// The state that the answers of one connection share.
#[derive(Clone, Default)]
pub(super) struct ConnectionOutput {
    /// The answers that the client has not read completely.
    pub(super) undelivered: Undelivered,
    /// The answers that may be buffered above the socket.
    pub(super) buffered: Buffered,
}

/// Whether the client must read this answer within a time limit. A short one over HTTP/1.1 is in
/// the connection's buffers at once, and writing those has a timeout of its own.
pub(super) fn is_delivery_watched(version: Version, body: &Body) -> bool {
    let short = body.size_hint().upper().is_some_and(|bytes| bytes <= CHUNK_BYTES as u64);
    version >= Version::HTTP_2 || !short
}

/// A body that is being sent.
pub(super) struct ResponseBody {
    body: Body,
    rest: Bytes,
    is_http2: bool,
    watch: Option<DeliveryWatch>,
    release: Option<Arc<Release>>,
    buffered: Buffered,
    ended: bool,
}

struct DeliveryWatch {
    undelivered: Undelivered,
    began: (Instant, u64),
    /// Holds the bytes until the body is dropped.
    _claim: Option<Arc<Claim>>,
}

impl ResponseBody {
    /// An answer to be sent over the connection of `output`. Takes the [`Release`] and the
    /// [`Claim`] from its extensions.
    pub(super) fn over(
        output: &ConnectionOutput,
        version: Version,
        mut answer: Response<Body>,
    ) -> Response<Self> {
        let release = answer.extensions_mut().remove::<Arc<Release>>();
        let claim = answer.extensions_mut().remove::<Arc<Claim>>();
        answer.map(|body| {
            if let Some(release) = &release
                && body.size_hint().lower() > CHUNK_BYTES as u64
            {
                release.keep_probing();
            }
            let watch = is_delivery_watched(version, &body)
                .then(|| DeliveryWatch::new(output.undelivered.clone(), claim));
            let (is_http2, buffered) = (version >= Version::HTTP_2, output.buffered.clone());
            Self { body, rest: Bytes::new(), is_http2, watch, release, buffered, ended: false }
        })
    }

    /// The next chunk. The last byte of the rest is a chunk of its own: HTTP/2 accepts a whole
    /// chunk as soon as its client has room for one byte, and polls for the next only once that
    /// chunk is sent. So this body ends only after all of it but one byte is sent.
    fn next_chunk(&mut self) -> Chunk {
        let length = match self.rest.len() {
            all if self.watch.is_none() => all,
            short @ (0 | 1) => short,
            more => (more - 1).min(CHUNK_BYTES),
        };
        let bytes = self.rest.split_to(length);
        match &self.release {
            None => Chunk::of(bytes),
            Some(release) if self.is_http2 => Chunk::released(bytes, release.clone(), self.buffered.clone()),
            Some(release) => {
                release.begin();
                self.buffered.add(release);
                Chunk::of(bytes)
            }
        }
    }
}

impl DeliveryWatch {
    fn new(undelivered: Undelivered, claim: Option<Arc<Claim>>) -> Self {
        let began = (Instant::now(), undelivered.0.next.fetch_add(1, Ordering::Relaxed));
        undelivered.0.since.lock().unwrap_or_else(PoisonError::into_inner).insert(began);
        Self { undelivered, began, _claim: claim }
    }
}

impl Drop for DeliveryWatch {
    fn drop(&mut self) {
        self.undelivered.0.since.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.began);
    }
}

impl HttpBody for ResponseBody {
    type Data = Chunk;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, axum::Error>>> {
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
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers.map_data(Chunk::of)))),
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
        Poll::Ready(Some(Ok(Frame::data(self.next_chunk()))))
    }

    /// An HTTP/2 answer that depends on a key ends only when it is polled once more after its last
    /// byte, so that it can be broken off while bytes of it wait for the client's window.
    fn is_end_stream(&self) -> bool {
        let is_polled_again = self.ended || !self.is_http2 || self.release.is_none();
        self.rest.is_empty() && self.body.is_end_stream() && is_polled_again
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
    async fn an_answer_is_sent_whole_and_counts_until_it_is_dropped() {
        let (bounds, output) = (bounds(1, 10), ConnectionOutput::default());
        let claim = Arc::new(Claim::new(bounds.clone()));
        let text: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        claim.hold_answer(text.len());
        let mut answer = Response::new(Body::from(text.clone()));
        answer.extensions_mut().insert(claim);
        let mut body = ResponseBody::over(&output, Version::HTTP_11, answer).into_body();
        assert_eq!(body.size_hint().exact(), Some(200_000));
        let first = body.frame().await.unwrap().unwrap().into_data().ok().unwrap();
        assert_eq!(body.size_hint().exact(), Some(200_000 - first.remaining() as u64));
        assert!(output.undelivered.oldest().is_some());
        let mut all = first.chunk().to_vec();
        while let Some(frame) = body.frame().await {
            let chunk = frame.unwrap().into_data().ok().unwrap();
            assert!((1..=CHUNK_BYTES).contains(&chunk.remaining()));
            all.extend_from_slice(chunk.chunk());
        }
        assert_eq!(all, text);
        assert!(body.is_end_stream());
        assert_eq!(bounds.bytes.held(), 200_000);
        drop(body);
        assert_eq!((bounds.bytes.held(), output.undelivered.oldest()), (0, None));
    }
}
