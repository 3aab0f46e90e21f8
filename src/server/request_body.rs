//! The body of a request while it arrives. Its bytes count against the server's limits, it must
//! keep arriving, and its end is passed on only once the request has its permit. So a slow sender
//! occupies no permit, and the fronts need to know nothing about this.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep};

use super::SLOW_CLIENT;
use super::bounds::{Abort, Claim, LimitReached};

/// The bytes reserved before anything has arrived, and the most that is read for a caller without
/// identity. A body this short may arrive as slowly as the request timeout allows.
const INITIAL_RESERVATION: usize = 64 << 10;
/// The bytes of a longer body that must arrive in each [`SLOW_CLIENT`]: 64 KiB a second.
const MIN_BYTES_PER_PERIOD: usize = 640 << 10;
/// The least that a frame counts, except the first: a body can arrive byte by byte.
const MIN_FRAME_COUNT: usize = 256;
/// Frames shorter than this, except the first, are copied: each would keep the whole buffer that it
/// was read into.
const COPY_BELOW: usize = 16 << 10;
/// How long the rest of a refused request is read.
const LINGER: Duration = Duration::from_secs(5);

/// A body that is still arriving. When the request is aborted, the body never ends;
/// [`Claim::aborted`] then says why.
pub(super) struct RequestBody {
    body: Body,
    claim: Arc<Claim>,
    /// The `Content-Length`.
    announced: Option<usize>,
    /// The bytes that have arrived.
    arrived: usize,
    /// The amount that these bytes count against the limits.
    counted: usize,
    silence: Option<Pin<Box<Sleep>>>,
    /// The end of the current [`SLOW_CLIENT`] period, and how many bytes must have arrived by then.
    pace: Option<(Pin<Box<Sleep>>, usize)>,
    /// Whether the rest of the body is read once the request is refused.
    drains_when_refused: bool,
}

impl RequestBody {
    /// The body of the request that `claim` belongs to. An empty body acquires the permit at once.
    ///
    /// # Errors
    /// No permit is free.
    pub(super) fn new(
        body: Body,
        claim: Arc<Claim>,
        drains_when_refused: bool,
    ) -> Result<Self, LimitReached> {
        if body.is_end_stream() {
            claim.acquire_permit()?;
        }
        let announced = body.size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        Ok(Self {
            body,
            claim,
            announced,
            arrived: 0,
            counted: 0,
            silence: None,
            pace: None,
            drains_when_refused,
        })
    }

    /// The bytes to reserve for what has arrived: little at first, then doubling. The announced
    /// length is not reserved at once, since it may never arrive.
    fn reservation(&self) -> usize {
        let enough = self.arrived.next_power_of_two().max(INITIAL_RESERVATION);
        let enough = enough.min(self.announced.unwrap_or(usize::MAX));
        enough.min(self.claim.bounds.body_bytes).max(self.counted)
    }

    /// Ready once a long body arrives too slowly. Polled only when no bytes are ready to be read:
    /// bytes that wait for this server are not late.
    fn poll_too_slow(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.arrived <= INITIAL_RESERVATION {
            return Poll::Pending;
        }
        let arrived = self.arrived;
        let (end, required) = self.pace.get_or_insert_with(|| {
            (Box::pin(sleep(SLOW_CLIENT)), arrived.saturating_add(MIN_BYTES_PER_PERIOD))
        });
        while end.as_mut().poll(context).is_ready() {
            if arrived < *required {
                return Poll::Ready(());
            }
            end.as_mut().reset(Instant::now() + SLOW_CLIENT);
            *required = arrived.saturating_add(MIN_BYTES_PER_PERIOD);
        }
        Poll::Pending
    }

    fn poll_within_bounds(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<FrameResult>, Abort>> {
        if self.arrived == 0 {
            self.claim.hold(self.reservation()).map_err(Abort::LimitReached)?;
        }
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            let silence = self.silence.get_or_insert_with(|| Box::pin(sleep(SLOW_CLIENT)));
            if silence.as_mut().poll(context).is_pending() {
                ready!(self.poll_too_slow(context));
            }
            return Poll::Ready(Err(Abort::Slow));
        };
        self.silence = None;
        Poll::Ready(Ok(match frame {
            Some(Ok(frame)) => Some(Ok(self.count(frame)?)),
            Some(Err(error)) => Some(Err(error)),
            None => {
                self.claim.hold(self.counted).map_err(Abort::LimitReached)?;
                self.claim.acquire_permit().map_err(Abort::LimitReached)?;
                None
            }
        }))
    }

    /// Counts a frame, and copies it if it would keep more memory alive than it counts.
    fn count(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, Abort> {
        let length = frame.data_ref().map_or(0, Bytes::len);
        let is_first = self.counted == 0;
        self.arrived += length;
        self.counted += if is_first { length } else { length.max(MIN_FRAME_COUNT) };
        if self.counted > self.claim.bytes() {
            self.claim.hold(self.reservation()).map_err(Abort::LimitReached)?;
        }
        if is_first || length >= COPY_BELOW {
            Ok(frame)
        } else {
            Ok(frame.map_data(|data| Bytes::copy_from_slice(&data)))
        }
    }
}

type FrameResult = Result<Frame<Bytes>, axum::Error>;

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<FrameResult>> {
        if self.claim.aborted().is_some() {
            return Poll::Pending;
        }
        match ready!(self.poll_within_bounds(context)) {
            Ok(frame) => Poll::Ready(frame),
            // The reading task is dropped instead of seeing an error, which a front would report as
            // a malformed body.
            Err(why) => {
                self.claim.abort(why);
                Poll::Pending
            }
        }
    }

    // `is_end_stream` stays false: the permit is acquired when the reader polls for the end.

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        // A front that refuses a request by its head does not read the body either.
        if self.drains_when_refused && self.claim.aborted() != Some(Abort::Slow) {
            discard(std::mem::take(&mut self.body), self.claim.bounds.body_bytes);
        }
    }
}

/// Reads and drops what a refused client still sends, up to `max` bytes and for [`LINGER`]. Closing
/// a connection over unread bytes resets it, and the answer is lost (RFC 9112, section 9.6); a
/// connection whose body was read can be used again.
pub(super) fn discard(body: Body, max: usize) {
    if body.is_end_stream() {
        return;
    }
    let mut body = Limited::new(body, max);
    let read = async move { while let Some(Ok(_)) = body.frame().await {} };
    // There is no runtime while the server shuts down.
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(async move { tokio::time::timeout(LINGER, read).await });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;

    use super::super::bounds::Bounds;
    use super::super::bounds::tests::bounds;
    use super::*;

    fn request_body(body: Body, bounds: &Arc<Bounds>) -> (RequestBody, Arc<Claim>) {
        let claim = Arc::new(Claim::new(bounds.clone()));
        (RequestBody::new(body, claim.clone(), true).unwrap(), claim)
    }

    /// A body of unknown length, and the sender of its chunks.
    fn chunked() -> (mpsc::UnboundedSender<Vec<u8>>, Body) {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Vec<u8>>();
        let frames = futures_util::stream::poll_fn(move |context| {
            receiver
                .poll_recv(context)
                .map(|chunk| chunk.map(|chunk| Ok::<_, axum::Error>(Frame::data(chunk.into()))))
        });
        (sender, Body::new(StreamBody::new(frames)))
    }

    #[tokio::test]
    async fn a_complete_body_has_a_permit_and_holds_its_bytes() {
        let bounds = bounds(1, 1_000_000);
        let (body, claim) = request_body(Body::from(vec![1; 200_000]), &bounds);
        assert_eq!(bounds.requests.held(), 0);
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 200_000);
        assert_eq!((bounds.requests.held(), bounds.bytes.held()), (1, 200_000));
        drop(claim);
        assert_eq!((bounds.requests.held(), bounds.bytes.held()), (0, 0));
    }

    #[tokio::test]
    async fn a_body_that_is_still_arriving_holds_bytes_and_no_permit() {
        let bounds = bounds(1, 1_000_000);
        let (sender, body) = chunked();
        let (mut body, claim) = request_body(body, &bounds);
        sender.send(vec![1; 100]).unwrap();
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!((bounds.requests.held(), bounds.bytes.held()), (0, INITIAL_RESERVATION));
        sender.send(vec![1; 100_000]).unwrap();
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!((bounds.requests.held(), bounds.bytes.held()), (0, 131_072));
        drop(sender);
        assert!(body.frame().await.is_none());
        assert_eq!((bounds.requests.held(), bounds.bytes.held()), (1, 100_100));
        drop((body, claim));
        assert_eq!((bounds.requests.held(), bounds.bytes.held()), (0, 0));
    }

    #[tokio::test]
    async fn a_body_arriving_byte_by_byte_counts_more_than_its_length() {
        let bounds = bounds(1, 100_000);
        let (sender, body) = chunked();
        let (mut body, claim) = request_body(body, &bounds);
        let mut taken = 0;
        for _ in 0..1_000 {
            sender.send(vec![1]).unwrap();
            tokio::task::yield_now().await;
            taken += usize::from(body.frame().now_or_never().is_some());
        }
        assert_eq!(taken, 1 + 99_999 / MIN_FRAME_COUNT);
        assert_eq!(claim.aborted(), Some(Abort::LimitReached(LimitReached::Bytes)));
    }

    #[tokio::test]
    async fn a_body_without_room_or_permit_never_ends() {
        let bounds = bounds(1, 100_000);
        let (mut body, claim) = request_body(Body::from(vec![1; 100_001]), &bounds);
        bounds.check(0).unwrap();
        let other = Claim::new(bounds.clone());
        other.hold(50_000).unwrap();
        assert!(body.frame().now_or_never().is_none());
        assert_eq!(claim.aborted(), Some(Abort::LimitReached(LimitReached::Bytes)));
        other.hold(0).unwrap();
        assert!(body.frame().now_or_never().is_none(), "an aborted body stays aborted");

        other.acquire_permit().unwrap();
        let (body, claim) = request_body(Body::from("x"), &bounds);
        assert!(body.collect().now_or_never().is_none());
        assert_eq!(claim.aborted(), Some(Abort::LimitReached(LimitReached::Requests)));
        let claim = Arc::new(Claim::new(bounds.clone()));
        assert_eq!(
            RequestBody::new(Body::empty(), claim, true).err(),
            Some(LimitReached::Requests),
            "an empty body needs a permit too"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_long_body_must_arrive_at_a_minimum_rate() {
        let bounds = bounds(1, 10_000_000);
        let arrives = async |first: usize, piece: usize, seconds: usize| {
            let (sender, body) = chunked();
            let (mut body, claim) = request_body(body, &bounds);
            sender.send(vec![1; first]).unwrap();
            assert!(body.frame().await.unwrap().is_ok());
            for _ in 0..seconds {
                assert!(tokio::time::timeout(Duration::from_secs(1), body.frame()).await.is_err());
                sender.send(vec![1; piece]).unwrap();
                if tokio::time::timeout(Duration::from_millis(1), body.frame()).await.is_err() {
                    break;
                }
            }
            claim.aborted()
        };
        assert_eq!(arrives(100, 1, 60).await, None);
        assert_eq!(arrives(INITIAL_RESERVATION + 1, 1, 60).await, Some(Abort::Slow));
        assert_eq!(arrives(5_000_000, 1, 60).await, Some(Abort::Slow), "earlier bytes are no credit");
        assert_eq!(arrives(INITIAL_RESERVATION + 1, 80 << 10, 60).await, None);
    }

    #[tokio::test]
    async fn the_announced_length_is_not_reserved_before_it_arrives() {
        let bounds = bounds(1, 100_000_000);
        let (sender, body) = chunked();
        let (mut body, claim) = request_body(body, &bounds);
        body.announced = Some(32 << 20);
        sender.send(vec![1; 66_000]).unwrap();
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!(claim.bytes(), 128 << 10);
        sender.send(vec![1; 2_000_000]).unwrap();
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!(claim.bytes(), 2 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_arriving_is_aborted() {
        let bounds = bounds(1, 1_000_000);
        let (sender, body) = chunked();
        let (mut body, claim) = request_body(body, &bounds);
        for _ in 0..5 {
            sender.send(vec![1]).unwrap();
            assert!(body.frame().await.unwrap().is_ok());
            assert!(tokio::time::timeout(SLOW_CLIENT * 9 / 10, body.frame()).await.is_err());
        }
        assert_eq!(claim.aborted(), None, "slow, but not silent");
        assert!(tokio::time::timeout(SLOW_CLIENT, body.frame()).await.is_err());
        assert_eq!(claim.aborted(), Some(Abort::Slow));
    }
}
