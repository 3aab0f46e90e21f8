//! Limits on what the server works on at once: requests in progress, and bytes of bodies held in
//! memory. A request that would exceed a limit is refused; nothing queues.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::app::Room;
use crate::config;

use super::shares::{Share, Shares};

/// Answers up to this size are always accepted: the connection buffers about as much anyway.
const SMALL_ANSWER: usize = 64 << 10;

/// A counter with a maximum. Only [`Bound::acquire_anyway`] can exceed it.
pub(super) struct Bound {
    max: usize,
    held: AtomicUsize,
}

impl Bound {
    pub(super) fn new(max: usize) -> Self {
        Self { max, held: AtomicUsize::new(0) }
    }

    /// The amount held now.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether the amount would fit now. Acquires nothing.
    fn has_room_for(&self, amount: usize) -> bool {
        self.held().checked_add(amount).is_some_and(|sum| sum <= self.max)
    }

    /// Acquires the whole amount, or nothing if it does not fit.
    pub(super) fn try_acquire(&self, amount: usize) -> bool {
        let more = |held: usize| held.checked_add(amount).filter(|sum| *sum <= self.max);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn acquire_anyway(&self, amount: usize) {
        self.held.fetch_add(amount, Ordering::Relaxed);
    }

    /// Releases an amount acquired earlier.
    pub(super) fn release(&self, amount: usize) {
        self.held.fetch_sub(amount, Ordering::Relaxed);
    }
}

/// The limit that a request would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitReached {
    /// The number of requests in progress.
    Requests,
    /// The bytes of all bodies.
    Bytes,
    /// The bytes of one user or of one connection.
    Share,
    /// The limits on callers without identity, all together or of one address.
    Anonymous,
}

impl LimitReached {
    /// The name in the metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "places",
            Self::Bytes => "bytes",
            Self::Share => "share",
            Self::Anonymous => "strangers",
        }
    }
}

/// Why a request is aborted while its body arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abort {
    /// A limit is reached.
    LimitReached(LimitReached),
    /// The client sends too slowly, or nothing.
    Slow,
}

/// The limits of one server, or of a group of its callers.
pub(super) struct Bounds {
    /// Requests in progress: the body has arrived, the answer is not complete.
    pub(super) requests: Bound,
    /// Bytes of bodies: of requests from arrival until they end, of answers until they are
    /// delivered.
    pub(super) bytes: Bound,
    /// The most bytes that are read of one body.
    pub(super) body_bytes: usize,
    /// The bytes by user and connection; the limits of a group have no shares.
    pub(super) shares: Shares,
    /// The limits that these count against as well.
    parent: Option<Arc<Bounds>>,
}

impl Bounds {
    /// The configured limits of the server; `body_bytes` is the most that is read of one body.
    pub(super) fn new(settings: &config::Server, body_bytes: usize) -> Self {
        let bytes = settings.bytes_in_flight;
        Self { shares: Shares::of(bytes), ..Self::of(settings.in_flight, bytes, body_bytes) }
    }

    /// Limits of this many requests and bytes, without shares.
    pub(super) fn of(requests: usize, bytes: usize, body_bytes: usize) -> Self {
        Self {
            requests: Bound::new(requests),
            bytes: Bound::new(bytes),
            body_bytes,
            shares: Shares::none(),
            parent: None,
        }
    }

    /// These limits as part of others: what is acquired here is acquired there as well.
    pub(super) fn within(self, parent: Arc<Bounds>) -> Self {
        Self { parent: Some(parent), ..self }
    }

    /// Whether a request with this `Content-Length` could be accepted now. Acquires nothing: it
    /// lets a request be refused by its head alone.
    pub(super) fn check(&self, announced: usize) -> Result<(), LimitReached> {
        let announced = announced.min(self.body_bytes);
        if !self.requests.has_room_for(1) {
            return Err(self.reached(LimitReached::Requests));
        }
        if !self.bytes.has_room_for(announced) {
            return Err(self.reached(LimitReached::Bytes));
        }
        match &self.parent {
            Some(parent) => parent.check(announced).map_err(|_| LimitReached::Anonymous),
            None => Ok(()),
        }
    }

    fn reached(&self, limit: LimitReached) -> LimitReached {
        if self.parent.is_some() { LimitReached::Anonymous } else { limit }
    }

    fn acquire_request(&self) -> Result<(), LimitReached> {
        if !self.requests.try_acquire(1) {
            return Err(self.reached(LimitReached::Requests));
        }
        if let Some(parent) = &self.parent
            && parent.acquire_request().is_err()
        {
            self.requests.release(1);
            return Err(LimitReached::Anonymous);
        }
        Ok(())
    }

    fn release_request(&self) {
        self.requests.release(1);
        self.parent.iter().for_each(|parent| parent.release_request());
    }

    fn acquire_bytes(&self, bytes: usize) -> Result<(), LimitReached> {
        if !self.bytes.try_acquire(bytes) {
            return Err(self.reached(LimitReached::Bytes));
        }
        if let Some(parent) = &self.parent
            && parent.acquire_bytes(bytes).is_err()
        {
            self.bytes.release(bytes);
            return Err(LimitReached::Anonymous);
        }
        Ok(())
    }

    fn acquire_bytes_anyway(&self, bytes: usize) {
        self.bytes.acquire_anyway(bytes);
        self.parent.iter().for_each(|parent| parent.acquire_bytes_anyway(bytes));
    }

    fn release_bytes(&self, bytes: usize) {
        self.bytes.release(bytes);
        self.parent.iter().for_each(|parent| parent.release_bytes(bytes));
    }
}

/// What one request has acquired of the limits. Dropping it releases everything.
pub(super) struct Claim {
    pub(super) bounds: Arc<Bounds>,
    has_permit: AtomicBool,
    bytes: AtomicUsize,
    /// The shares that the bytes count against.
    shares: Vec<Share>,
    abort: OnceLock<Abort>,
}

impl Claim {
    /// An empty claim that counts against no share.
    #[cfg(test)]
    pub(super) fn new(bounds: Arc<Bounds>) -> Self {
        Self::of(bounds, Vec::new())
    }

    /// An empty claim whose bytes will count against these shares.
    pub(super) fn of(bounds: Arc<Bounds>, shares: Vec<Share>) -> Self {
        let (has_permit, bytes) = (AtomicBool::new(false), AtomicUsize::new(0));
        Self { bounds, has_permit, bytes, shares, abort: OnceLock::new() }
    }

    /// Acquires the permit to run the request, unless the claim has it already.
    pub(super) fn acquire_permit(&self) -> Result<(), LimitReached> {
        if self.has_permit() {
            return Ok(());
        }
        self.bounds.acquire_request()?;
        self.has_permit.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the claim has the permit to run the request.
    pub(super) fn has_permit(&self) -> bool {
        self.has_permit.load(Ordering::Relaxed)
    }

    /// Releases the permit.
    pub(super) fn release_permit(&self) {
        if self.has_permit.swap(false, Ordering::Relaxed) {
            self.bounds.release_request();
        }
    }

    /// The number of bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Changes the number of bytes held to `bytes`.
    pub(super) fn hold(&self, bytes: usize) -> Result<(), LimitReached> {
        let held = self.bytes();
        match bytes.checked_sub(held) {
            Some(more) => {
                self.bounds.acquire_bytes(more)?;
                let all_held = self.bounds.bytes.held();
                if !self.bounds.shares.try_acquire(&self.shares, more, all_held) {
                    self.bounds.release_bytes(more);
                    return Err(LimitReached::Share);
                }
            }
            None => self.release_bytes(held - bytes),
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn release_bytes(&self, bytes: usize) {
        self.bounds.release_bytes(bytes);
        self.bounds.shares.release(&self.shares, bytes);
    }

    /// Holds the answer's bytes instead of the request's. An answer written within [`Room`] is held
    /// already; a small one is held even beyond the limits, since the work is done.
    pub(super) fn hold_answer(&self, bytes: usize) {
        let held = self.bytes.swap(bytes, Ordering::Relaxed);
        match bytes.checked_sub(held) {
            Some(more) => {
                self.bounds.acquire_bytes_anyway(more);
                self.bounds.shares.acquire_anyway(&self.shares, more);
            }
            None => self.release_bytes(held - bytes),
        }
    }

    /// Aborts the request; the first reason is kept.
    pub(super) fn abort(&self, why: Abort) {
        let _ = self.abort.set(why);
    }

    /// Why the request was aborted, if it was.
    pub(super) fn aborted(&self) -> Option<Abort> {
        self.abort.get().copied()
    }
}

impl Room for Claim {
    fn hold(&self, bytes: usize) -> bool {
        Self::hold(self, bytes).is_ok()
    }

    fn hold_at_least(&self, bytes: usize) -> bool {
        bytes <= SMALL_ANSWER.max(self.bytes()) || Self::hold(self, bytes).is_ok()
    }

    fn largest_answer(&self) -> usize {
        self.bounds.bytes.max / 2
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.release_permit();
        self.release_bytes(self.bytes());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn bounds(requests: usize, bytes: usize) -> Arc<Bounds> {
        Arc::new(Bounds::of(requests, bytes, bytes))
    }

    #[test]
    fn a_claim_gives_back_what_it_held() {
        let bounds = bounds(2, 100);
        let claim = Claim::new(bounds.clone());
        claim.acquire_permit().unwrap();
        claim.acquire_permit().unwrap();
        claim.hold(40).unwrap();
        claim.hold(70).unwrap();
        claim.hold(60).unwrap();
        assert_eq!((bounds.requests.held(), bounds.bytes.held()), (1, 60));
        drop(claim);
        assert_eq!((bounds.requests.held(), bounds.bytes.held()), (0, 0));
    }

    #[test]
    fn what_would_be_over_is_refused_and_takes_nothing() {
        let bounds = bounds(1, 100);
        let (one, two) = (Claim::new(bounds.clone()), Claim::new(bounds.clone()));
        one.acquire_permit().unwrap();
        one.hold(80).unwrap();
        assert_eq!(two.acquire_permit(), Err(LimitReached::Requests));
        assert_eq!(two.hold(21), Err(LimitReached::Bytes));
        assert_eq!(two.hold(usize::MAX), Err(LimitReached::Bytes));
        assert_eq!((bounds.requests.held(), bounds.bytes.held()), (1, 80));
        one.release_permit();
        assert_eq!(two.acquire_permit(), Ok(()));
        assert_eq!(two.hold(20), Ok(()));
    }

    #[test]
    fn a_head_is_refused_by_what_it_announces() {
        let bounds = bounds(1, 100);
        let claim = Claim::new(bounds.clone());
        claim.hold(50).unwrap();
        assert_eq!(bounds.check(50), Ok(()));
        assert_eq!(bounds.check(51), Err(LimitReached::Bytes));
        claim.acquire_permit().unwrap();
        assert_eq!(bounds.check(0), Err(LimitReached::Requests));
        claim.release_permit();
        claim.hold(0).unwrap();
        assert_eq!(bounds.check(usize::MAX), Ok(()), "no more than the largest body is read of it");
    }

    #[test]
    fn an_answer_is_held_in_place_of_its_request() {
        let bounds = bounds(1, 100);
        let claim = Claim::new(bounds.clone());
        claim.hold(90).unwrap();
        claim.hold_answer(130);
        assert_eq!(bounds.bytes.held(), 130);
        assert_eq!(bounds.check(1), Err(LimitReached::Bytes));
        drop(claim);
        assert_eq!(bounds.bytes.held(), 0);
    }
}
