//! How much the server takes on at once: requests that are worked on, and bytes of bodies that are held. What would be
//! over is refused; nothing waits for room.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::app::Room;
use crate::config;

use super::shares::{Share, Shares};

/// What is held of an answer in any case: so much of it is in the connection's buffers, or nearly.
const SMALL: usize = 64 << 10;

/// An amount that is never exceeded, but by what was promised before.
pub(super) struct Bound {
    most: usize,
    held: AtomicUsize,
}

impl Bound {
    pub(super) fn new(most: usize) -> Self {
        Self { most, held: AtomicUsize::new(0) }
    }

    /// How much is held now.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether so much more would do now. Takes nothing.
    fn has_room_for(&self, amount: usize) -> bool {
        self.held().checked_add(amount).is_some_and(|sum| sum <= self.most)
    }

    /// Takes so much, or nothing where that would be too much.
    pub(super) fn take(&self, amount: usize) -> bool {
        let more = |held: usize| held.checked_add(amount).filter(|sum| *sum <= self.most);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn take_anyway(&self, amount: usize) {
        self.held.fetch_add(amount, Ordering::Relaxed);
    }

    /// Gives so much back.
    pub(super) fn give(&self, amount: usize) {
        self.held.fetch_sub(amount, Ordering::Relaxed);
    }
}

/// What is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// As many requests are worked on as may be.
    Places,
    /// As many bytes of bodies are held as may be.
    Bytes,
    /// What one user, or one connection, may hold of the bytes.
    Share,
    /// What is left to callers who are not recognised, or to one address of theirs.
    Strangers,
}

impl Full {
    /// Its name in the metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Places => "places",
            Self::Bytes => "bytes",
            Self::Share => "share",
            Self::Strangers => "strangers",
        }
    }
}

/// Why a request is given up while it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// There is no room for it.
    Full(Full),
    /// Its client sends nothing for too long.
    Slow,
}

/// The bounds of one server, or of a part of it.
pub(super) struct Bounds {
    /// Requests that are worked on: whole, and not answered.
    pub(super) places: Bound,
    /// Bytes of bodies: of requests as they arrive and are worked on, and of answers until they are taken.
    pub(super) bytes: Bound,
    /// The most that is read of one body.
    pub(super) body_bytes: usize,
    /// Who holds how much of the bytes; of a part of the bounds nobody has a share.
    pub(super) shares: Shares,
    /// What they are a part of.
    whole: Option<Arc<Bounds>>,
}

impl Bounds {
    /// As configured; `body_bytes` is the most that is read of one body.
    pub(super) fn new(settings: &config::Server, body_bytes: usize) -> Self {
        let bytes = settings.bytes_in_flight;
        Self { shares: Shares::of(bytes), ..Self::of(settings.in_flight, bytes, body_bytes) }
    }

    /// Of so many places and bytes.
    pub(super) fn of(places: usize, bytes: usize, body_bytes: usize) -> Self {
        Self {
            places: Bound::new(places),
            bytes: Bound::new(bytes),
            body_bytes,
            shares: Shares::none(),
            whole: None,
        }
    }

    /// The same as a part of others: what is taken here is taken there as well.
    pub(super) fn within(self, whole: Arc<Bounds>) -> Self {
        Self { whole: Some(whole), ..self }
    }

    /// Whether a request that announces so many bytes could be taken on now: what is hopeless is refused by its head.
    pub(super) fn look(&self, announced: usize) -> Result<(), Full> {
        let announced = announced.min(self.body_bytes);
        match (self.places.has_room_for(1), self.bytes.has_room_for(announced), &self.whole) {
            (false, ..) => Err(self.full(Full::Places)),
            (true, false, _) => Err(self.full(Full::Bytes)),
            (true, true, Some(whole)) => whole.look(announced).map_err(|_| Full::Strangers),
            (true, true, None) => Ok(()),
        }
    }

    fn full(&self, what: Full) -> Full {
        if self.whole.is_some() { Full::Strangers } else { what }
    }

    fn take_place(&self) -> Result<(), Full> {
        if !self.places.take(1) {
            return Err(self.full(Full::Places));
        }
        if let Some(whole) = &self.whole
            && whole.take_place().is_err()
        {
            self.places.give(1);
            return Err(Full::Strangers);
        }
        Ok(())
    }

    fn give_place(&self) {
        self.places.give(1);
        self.whole.iter().for_each(|whole| whole.give_place());
    }

    fn take_bytes(&self, bytes: usize) -> Result<(), Full> {
        if !self.bytes.take(bytes) {
            return Err(self.full(Full::Bytes));
        }
        if let Some(whole) = &self.whole
            && whole.take_bytes(bytes).is_err()
        {
            self.bytes.give(bytes);
            return Err(Full::Strangers);
        }
        Ok(())
    }

    fn take_bytes_anyway(&self, bytes: usize) {
        self.bytes.take_anyway(bytes);
        self.whole.iter().for_each(|whole| whole.take_bytes_anyway(bytes));
    }

    fn give_bytes(&self, bytes: usize) {
        self.bytes.give(bytes);
        self.whole.iter().for_each(|whole| whole.give_bytes(bytes));
    }
}

/// What one request holds. Whatever becomes of the request, its drop gives everything back.
pub(super) struct Claim {
    pub(super) bounds: Arc<Bounds>,
    place: AtomicBool,
    bytes: AtomicUsize,
    /// Whose shares the bytes count for.
    held_by: Vec<Share>,
    stop: OnceLock<Stop>,
}

impl Claim {
    /// That holds nothing yet, and counts for nobody's share.
    #[cfg(test)]
    pub(super) fn new(bounds: Arc<Bounds>) -> Self {
        Self::of(bounds, Vec::new())
    }

    /// That holds nothing yet. Its bytes will count for these shares.
    pub(super) fn of(bounds: Arc<Bounds>, held_by: Vec<Share>) -> Self {
        let (place, bytes) = (AtomicBool::new(false), AtomicUsize::new(0));
        Self { bounds, place, bytes, held_by, stop: OnceLock::new() }
    }

    /// Takes the request's place.
    pub(super) fn enter(&self) -> Result<(), Full> {
        if self.has_place() {
            return Ok(());
        }
        self.bounds.take_place()?;
        self.place.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether it has its place.
    pub(super) fn has_place(&self) -> bool {
        self.place.load(Ordering::Relaxed)
    }

    /// Gives the place back.
    pub(super) fn leave(&self) {
        if self.place.swap(false, Ordering::Relaxed) {
            self.bounds.give_place();
        }
    }

    /// How many bytes it holds.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Holds so many bytes in all from now on.
    pub(super) fn hold(&self, bytes: usize) -> Result<(), Full> {
        let held = self.bytes();
        match bytes.checked_sub(held) {
            Some(more) => {
                self.bounds.take_bytes(more)?;
                let all_held = self.bounds.bytes.held();
                if !self.bounds.shares.take(&self.held_by, more, all_held) {
                    self.bounds.give_bytes(more);
                    return Err(Full::Share);
                }
            }
            None => self.give_bytes(held - bytes),
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn give_bytes(&self, bytes: usize) {
        self.bounds.give_bytes(bytes);
        self.bounds.shares.give(&self.held_by, bytes);
    }

    /// Holds the whole answer's bytes in place of the request's. What was written within [`Room`] is held already; a small
    /// answer is held in any case, since the work is done.
    pub(super) fn hold_answer(&self, bytes: usize) {
        let held = self.bytes.swap(bytes, Ordering::Relaxed);
        match bytes.checked_sub(held) {
            Some(more) => {
                self.bounds.take_bytes_anyway(more);
                self.bounds.shares.take_anyway(&self.held_by, more);
            }
            None => self.give_bytes(held - bytes),
        }
    }

    /// Gives the request up; the first reason stands.
    pub(super) fn stop(&self, why: Stop) {
        let _ = self.stop.set(why);
    }

    /// Whether it was given up.
    pub(super) fn stopped(&self) -> Option<Stop> {
        self.stop.get().copied()
    }
}

impl Room for Claim {
    fn hold(&self, bytes: usize) -> bool {
        Self::hold(self, bytes).is_ok()
    }

    fn hold_at_least(&self, bytes: usize) -> bool {
        bytes <= SMALL.max(self.bytes()) || Self::hold(self, bytes).is_ok()
    }

    fn largest_answer(&self) -> usize {
        self.bounds.bytes.most / 2
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.leave();
        self.give_bytes(self.bytes());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn bounds(places: usize, bytes: usize) -> Arc<Bounds> {
        Arc::new(Bounds::of(places, bytes, bytes))
    }

    #[test]
    fn a_claim_gives_back_what_it_held() {
        let bounds = bounds(2, 100);
        let claim = Claim::new(bounds.clone());
        claim.enter().unwrap();
        claim.enter().unwrap();
        claim.hold(40).unwrap();
        claim.hold(70).unwrap();
        claim.hold(60).unwrap();
        assert_eq!((bounds.places.held(), bounds.bytes.held()), (1, 60));
        drop(claim);
        assert_eq!((bounds.places.held(), bounds.bytes.held()), (0, 0));
    }

    #[test]
    fn what_would_be_over_is_refused_and_takes_nothing() {
        let bounds = bounds(1, 100);
        let (one, two) = (Claim::new(bounds.clone()), Claim::new(bounds.clone()));
        one.enter().unwrap();
        one.hold(80).unwrap();
        assert_eq!(two.enter(), Err(Full::Places));
        assert_eq!(two.hold(21), Err(Full::Bytes));
        assert_eq!(two.hold(usize::MAX), Err(Full::Bytes));
        assert_eq!((bounds.places.held(), bounds.bytes.held()), (1, 80));
        one.leave();
        assert_eq!(two.enter(), Ok(()));
        assert_eq!(two.hold(20), Ok(()));
    }

    #[test]
    fn a_head_is_refused_by_what_it_announces() {
        let bounds = bounds(1, 100);
        let claim = Claim::new(bounds.clone());
        claim.hold(50).unwrap();
        assert_eq!(bounds.look(50), Ok(()));
        assert_eq!(bounds.look(51), Err(Full::Bytes));
        claim.enter().unwrap();
        assert_eq!(bounds.look(0), Err(Full::Places));
        claim.leave();
        claim.hold(0).unwrap();
        assert_eq!(bounds.look(usize::MAX), Ok(()), "no more than the largest body is read of it");
    }

    #[test]
    fn an_answer_is_held_in_place_of_its_request() {
        let bounds = bounds(1, 100);
        let claim = Claim::new(bounds.clone());
        claim.hold(90).unwrap();
        claim.hold_answer(130);
        assert_eq!(bounds.bytes.held(), 130);
        assert_eq!(bounds.look(1), Err(Full::Bytes));
        drop(claim);
        assert_eq!(bounds.bytes.held(), 0);
    }
}
