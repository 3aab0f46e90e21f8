//! A request's body as it arrives. It counts against the bytes that the server holds, must go on arriving, and shows its
//! end only once the request has a place: so a slow sender holds no place, and no front knows of any of this.

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
use super::bounds::{Claim, Full, Stop};

/// What is reserved before anything has come. A front reads no more than this for a stranger. Who sends no more may be as
/// slow as the request's time allows.
const FIRST: usize = 64 << 10;
/// How much of a longer body must come in each [`SLOW_CLIENT`] from then on: 64 KiB a second.
const LEAST_IN_TIME: usize = 640 << 10;
/// What a piece of a body counts at least, but for the first: a body can come byte by byte.
const LEAST: usize = 256;
/// Pieces below this, but for the first, are copied: each would keep the whole buffer that it was read into.
const COPIED: usize = 16 << 10;
/// How long a refused client is listened to.
const LINGER: Duration = Duration::from_secs(5);

/// A body that is still on its way. When the request is given up it never ends; [`Claim::stopped`] then says why.
pub(super) struct Arriving {
    body: Body,
    claim: Arc<Claim>,
    /// What the head announced.
    announced: Option<usize>,
    /// What has come, and what it counts.
    arrived: usize,
    counted: usize,
    silence: Option<Pin<Box<Sleep>>>,
    /// When as much as must come by then has to have come, and how much that is.
    pace: Option<(Pin<Box<Sleep>>, usize)>,
    /// Whether the client is listened to once it is refused.
    listens: bool,
}

impl Arriving {
    /// The body of a request that holds `claim`. One that is empty has its place at once. Where the request is refused, what
    /// still comes is listened to for a while only where `listens` says so.
    ///
    /// # Errors
    /// There is no place for it.
    pub(super) fn new(body: Body, claim: Arc<Claim>, listens: bool) -> Result<Self, Full> {
        if body.is_end_stream() {
            claim.enter()?;
        }
        let announced = body.size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        Ok(Self { body, claim, announced, arrived: 0, counted: 0, silence: None, pace: None, listens })
    }

    /// What must be reserved for what has come: at first little, then twice as much each time. What was announced may never
    /// come.
    fn reserve(&self) -> usize {
        let enough = self.arrived.next_power_of_two().max(FIRST).min(self.announced.unwrap_or(usize::MAX));
        enough.min(self.claim.bounds.body_bytes).max(self.counted)
    }

    /// Ready once a long body comes too slowly. Asked only where nothing is there to be read: what waits for us is not slow.
    fn poll_too_slow(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.arrived <= FIRST {
            return Poll::Pending;
        }
        let arrived = self.arrived;
        let (end, least) = self
            .pace
            .get_or_insert_with(|| (Box::pin(sleep(SLOW_CLIENT)), arrived.saturating_add(LEAST_IN_TIME)));
        while end.as_mut().poll(context).is_ready() {
            if arrived < *least {
                return Poll::Ready(());
            }
            end.as_mut().reset(Instant::now() + SLOW_CLIENT);
            *least = arrived.saturating_add(LEAST_IN_TIME);
        }
        Poll::Pending
    }

    fn poll_within_bounds(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Arrived>, Stop>> {
        if self.arrived == 0 {
            self.claim.hold(self.reserve()).map_err(Stop::Full)?;
        }
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            let silence = self.silence.get_or_insert_with(|| Box::pin(sleep(SLOW_CLIENT)));
            if silence.as_mut().poll(context).is_pending() {
                ready!(self.poll_too_slow(context));
            }
            return Poll::Ready(Err(Stop::Slow));
        };
        self.silence = None;
        Poll::Ready(Ok(match frame {
            Some(Ok(frame)) => Some(Ok(self.count(frame)?)),
            Some(Err(error)) => Some(Err(error)),
            None => {
                self.claim.hold(self.counted).map_err(Stop::Full)?;
                self.claim.enter().map_err(Stop::Full)?;
                None
            }
        }))
    }

    /// Counts a piece that has come, and makes sure that it holds no more memory than that.
    fn count(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, Stop> {
        let length = frame.data_ref().map_or(0, Bytes::len);
        let is_first = self.counted == 0;
        self.arrived += length;
        self.counted += if is_first { length } else { length.max(LEAST) };
        if self.counted > self.claim.bytes() {
            self.claim.hold(self.reserve()).map_err(Stop::Full)?;
        }
        match is_first || length >= COPIED {
            true => Ok(frame),
            false => Ok(frame.map_data(|data| Bytes::copy_from_slice(&data))),
        }
    }
}

type Arrived = Result<Frame<Bytes>, axum::Error>;

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Arrived>> {
        if self.claim.stopped().is_some() {
            return Poll::Pending;
        }
        match ready!(self.poll_within_bounds(context)) {
            Ok(frame) => Poll::Ready(frame),
            // Whoever polls is dropped without a word, so that no front takes this for a fault of the body's.
            Err(why) => {
                self.claim.stop(why);
                Poll::Pending
            }
        }
    }

    // `is_end_stream` stays false: the place is taken where the end is asked for.

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        // A front that refuses a request by its head reads nothing of the body either.
        if self.listens && self.claim.stopped() != Some(Stop::Slow) {
            discard(std::mem::take(&mut self.body), self.claim.bounds.body_bytes);
        }
    }
}

/// Reads what a refused client still sends, for a while, and keeps nothing of it. A connection that is closed over
/// unread bytes is reset, and the answer is lost with it (RFC 9112, section 9.6); one whose body was read can go on.
pub(super) fn discard(body: Body, most: usize) {
    if body.is_end_stream() {
        return;
    }
    let mut body = Limited::new(body, most);
    let read = async move { while let Some(Ok(_)) = body.frame().await {} };
    // There is none while the server ends.
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

    fn arriving(body: Body, bounds: &Arc<Bounds>) -> (Arriving, Arc<Claim>) {
        let claim = Arc::new(Claim::new(bounds.clone()));
        (Arriving::new(body, claim.clone(), true).unwrap(), claim)
    }

    /// A body of unknown length, and who sends it.
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
    async fn a_whole_body_has_a_place_and_holds_its_bytes() {
        let bounds = bounds(1, 1_000_000);
        let (body, claim) = arriving(Body::from(vec![1; 200_000]), &bounds);
        assert_eq!(bounds.places.held(), 0);
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 200_000);
        assert_eq!((bounds.places.held(), bounds.bytes.held()), (1, 200_000));
        drop(claim);
        assert_eq!((bounds.places.held(), bounds.bytes.held()), (0, 0));
    }

    #[tokio::test]
    async fn a_body_that_is_still_arriving_holds_bytes_and_no_place() {
        let bounds = bounds(1, 1_000_000);
        let (sender, body) = chunked();
        let (mut body, claim) = arriving(body, &bounds);
        sender.send(vec![1; 100]).unwrap();
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!((bounds.places.held(), bounds.bytes.held()), (0, FIRST));
        sender.send(vec![1; 100_000]).unwrap();
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!((bounds.places.held(), bounds.bytes.held()), (0, 131_072));
        drop(sender);
        assert!(body.frame().await.is_none());
        assert_eq!((bounds.places.held(), bounds.bytes.held()), (1, 100_100));
        drop((body, claim));
        assert_eq!((bounds.places.held(), bounds.bytes.held()), (0, 0));
    }

    #[tokio::test]
    async fn a_body_that_comes_byte_by_byte_counts_more_than_its_length() {
        let bounds = bounds(1, 100_000);
        let (sender, body) = chunked();
        let (mut body, claim) = arriving(body, &bounds);
        let mut taken = 0;
        for _ in 0..1_000 {
            sender.send(vec![1]).unwrap();
            tokio::task::yield_now().await;
            taken += usize::from(body.frame().now_or_never().is_some());
        }
        assert_eq!(taken, 1 + 99_999 / LEAST);
        assert_eq!(claim.stopped(), Some(Stop::Full(Full::Bytes)));
    }

    #[tokio::test]
    async fn a_body_without_room_or_place_never_ends() {
        let bounds = bounds(1, 100_000);
        let (mut body, claim) = arriving(Body::from(vec![1; 100_001]), &bounds);
        bounds.look(0).unwrap();
        let other = Claim::new(bounds.clone());
        other.hold(50_000).unwrap();
        assert!(body.frame().now_or_never().is_none());
        assert_eq!(claim.stopped(), Some(Stop::Full(Full::Bytes)));
        other.hold(0).unwrap();
        assert!(body.frame().now_or_never().is_none(), "what was given up stays so");

        other.enter().unwrap();
        let (body, claim) = arriving(Body::from("x"), &bounds);
        assert!(body.collect().now_or_never().is_none());
        assert_eq!(claim.stopped(), Some(Stop::Full(Full::Places)));
        let claim = Arc::new(Claim::new(bounds.clone()));
        assert_eq!(Arriving::new(Body::empty(), claim, true).err(), Some(Full::Places), "nothing is to come");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_body_must_keep_a_rate_and_a_short_one_not() {
        let bounds = bounds(1, 10_000_000);
        let comes = async |first: usize, piece: usize, seconds: usize| {
            let (sender, body) = chunked();
            let (mut body, claim) = arriving(body, &bounds);
            sender.send(vec![1; first]).unwrap();
            assert!(body.frame().await.unwrap().is_ok());
            for _ in 0..seconds {
                assert!(tokio::time::timeout(Duration::from_secs(1), body.frame()).await.is_err());
                sender.send(vec![1; piece]).unwrap();
                if tokio::time::timeout(Duration::from_millis(1), body.frame()).await.is_err() {
                    break;
                }
            }
            claim.stopped()
        };
        assert_eq!(comes(100, 1, 60).await, None);
        assert_eq!(comes(FIRST + 1, 1, 60).await, Some(Stop::Slow));
        assert_eq!(comes(5_000_000, 1, 60).await, Some(Stop::Slow), "what came before is no credit");
        assert_eq!(comes(FIRST + 1, 80 << 10, 60).await, None);
    }

    #[tokio::test]
    async fn what_is_announced_is_not_reserved_before_it_comes() {
        let bounds = bounds(1, 100_000_000);
        let (sender, body) = chunked();
        let (mut body, claim) = arriving(body, &bounds);
        body.announced = Some(32 << 20);
        sender.send(vec![1; 66_000]).unwrap();
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!(claim.bytes(), 128 << 10);
        sender.send(vec![1; 2_000_000]).unwrap();
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!(claim.bytes(), 2 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_arriving_is_given_up() {
        let bounds = bounds(1, 1_000_000);
        let (sender, body) = chunked();
        let (mut body, claim) = arriving(body, &bounds);
        for _ in 0..5 {
            sender.send(vec![1]).unwrap();
            assert!(body.frame().await.unwrap().is_ok());
            assert!(tokio::time::timeout(SLOW_CLIENT * 9 / 10, body.frame()).await.is_err());
        }
        assert_eq!(claim.stopped(), None, "slow is not silent");
        assert!(tokio::time::timeout(SLOW_CLIENT, body.frame()).await.is_err());
        assert_eq!(claim.stopped(), Some(Stop::Slow));
    }
}
