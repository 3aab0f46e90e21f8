//! How many connections are open, how many may be, and what that means for those that are idle: where there are many,
//! strangers' go first.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// How many connections are open at once, where as many files may be.
const MOST: usize = 16_384;
/// How many files are kept for what is no connection of a client's: the database, the KMS, logs. At least so many, and a
/// quarter of all.
const OTHER_FILES: u64 = 64;
/// How many of the connections are for whoever watches the server, at most, where those have a listener of their own.
const WATCHERS: usize = 64;
/// How long a stranger's connection may be idle where there are many, and how long a request may be on it: time for a handshake
/// and a first request.
const STRANGER_IDLE: Duration = Duration::from_secs(2);
/// How long any may be where there are hardly places left.
const SHORT_IDLE: Duration = Duration::from_secs(10);

/// How full it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crowd {
    /// There are places.
    Few,
    /// More than three quarters of the places are taken.
    Many,
    /// Hardly any is left.
    Full,
}

impl Crowd {
    /// How long a connection may wait that may wait so long where there are places.
    pub(super) fn patience(self, usually: Duration, is_known: bool) -> Duration {
        match (self, is_known) {
            (Self::Few, _) | (Self::Many, true) => usually,
            (Self::Full, true) => usually.min(SHORT_IDLE),
            (Self::Many | Self::Full, false) => usually.min(STRANGER_IDLE),
        }
    }

    /// How long a request may be on a connection, where that is bounded: a stranger's, body and answer, where there are many.
    pub(super) fn patience_with_request(self, is_known: bool) -> Option<Duration> {
        (self != Self::Few && !is_known).then_some(STRANGER_IDLE)
    }

    /// How full it is with so many open. It takes more to become fuller than to stay so: each change wakes every
    /// connection.
    fn after(self, open: usize, most: usize) -> Self {
        let above = |parts: usize| open * 16 > most * parts;
        match self {
            Self::Full if above(14) => Self::Full,
            _ if above(15) => Self::Full,
            Self::Many | Self::Full if above(10) => Self::Many,
            _ if above(12) => Self::Many,
            _ => Self::Few,
        }
    }
}

/// The connections of one listener.
pub(super) struct Places {
    most: usize,
    taken: AtomicUsize,
    crowd: watch::Sender<Crowd>,
}

impl Places {
    /// As many as the process's limit of open files allows.
    pub(super) fn within_file_limit() -> Arc<Self> {
        Self::new(most_within(file_limit()))
    }

    /// The same in two parts, for two listeners: for callers, and for whoever watches the server. Neither takes from the
    /// other.
    pub(super) fn parted_within_file_limit() -> (Arc<Self>, Arc<Self>) {
        let (callers, watchers) = parted(most_within(file_limit()));
        (Self::new(callers), Self::new(watchers))
    }

    fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: AtomicUsize::new(0), crowd: watch::Sender::new(Crowd::Few) })
    }

    /// How many there are.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// How full it is now.
    pub(super) fn crowd(&self) -> Crowd {
        *self.crowd.borrow()
    }

    /// The same, whenever it changes.
    pub(super) fn crowds(&self) -> watch::Receiver<Crowd> {
        self.crowd.subscribe()
    }

    /// A place for one more connection; `None` where all are taken.
    pub(super) fn take(self: &Arc<Self>) -> Option<Place> {
        let one_more = |taken: usize| (taken < self.most).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        let place = Place(self.clone());
        self.look();
        Some(place)
    }

    fn look(&self) {
        self.crowd.send_if_modified(|crowd| {
            let now = crowd.after(self.taken.load(Ordering::Relaxed), self.most);
            std::mem::replace(crowd, now) != now
        });
    }
}

/// The place of one connection, until it is dropped.
pub(super) struct Place(Arc<Places>);

impl Place {
    /// What it is one of.
    pub(super) fn places(&self) -> &Arc<Places> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
        self.0.look();
    }
}

fn file_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// How many connections are for callers, and how many for whoever watches.
fn parted(most: usize) -> (usize, usize) {
    let watchers = (most / 8).clamp(1, WATCHERS);
    (most.saturating_sub(watchers).max(1), watchers)
}

fn most_within(files: Option<u64>) -> usize {
    let connections = |files: u64| files.saturating_sub(OTHER_FILES.max(files / 4)).max(1);
    files.map_or(MOST, |files| usize::try_from(connections(files)).unwrap_or(MOST).min(MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_left_for_what_is_no_connection() {
        for (files, connections) in [(0, 1), (64, 1), (128, 64), (512, 384), (1_024, 768), (1 << 20, MOST)] {
            assert_eq!(most_within(Some(files)), connections, "{files}");
        }
        assert_eq!(most_within(None), MOST);
    }

    #[test]
    fn two_listeners_together_take_no_more_files_than_one() {
        for most in [2, 64, 384, 768, MOST] {
            let (callers, watchers) = parted(most);
            assert_eq!(callers + watchers, most);
            assert!(watchers >= 1 && callers >= watchers, "{most}");
        }
        assert_eq!((parted(768), parted(MOST)), ((704, 64), (MOST - 64, 64)));
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let places = Places::new(16);
        let mut taken: Vec<_> = (0..16).map(|_| places.take().unwrap()).collect();
        assert!(places.take().is_none());
        assert_eq!(places.crowd(), Crowd::Full);
        let mut now = |open: usize| {
            taken.truncate(open);
            taken.extend((taken.len()..open).map(|_| places.take().unwrap()));
            places.crowd()
        };
        assert_eq!([15, 14, 13].map(&mut now), [Crowd::Full, Crowd::Many, Crowd::Many]);
        assert_eq!([11, 10, 12].map(&mut now), [Crowd::Many, Crowd::Few, Crowd::Few]);
        assert_eq!([13, 15, 16].map(&mut now), [Crowd::Many, Crowd::Many, Crowd::Full]);
        assert_eq!(now(1), Crowd::Few);
    }

    #[test]
    fn strangers_go_first() {
        let usually = Duration::from_secs(75);
        let patience = |is_known| {
            [Crowd::Few, Crowd::Many, Crowd::Full].map(|crowd| crowd.patience(usually, is_known).as_secs())
        };
        assert_eq!((patience(false), patience(true)), ([75, 2, 2], [75, 75, 10]));
        assert_eq!(Crowd::Full.patience(Duration::from_secs(1), true), Duration::from_secs(1));
    }
}
