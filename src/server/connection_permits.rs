//! Permits for open connections, and what their number means for idle ones: when many are open,
//! those of callers without identity are closed first.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// The most connections at once, if the limit of open files allows it.
const MAX_CONNECTIONS: usize = 16_384;
/// The least number of files kept for other uses than connections of clients: the database, the
/// KMS, logs. A quarter of all files is kept if that is more.
const OTHER_FILES: u64 = 64;
/// The most connections for monitoring, if it has a listener of its own.
const MAX_MONITORING: usize = 64;
/// At high occupancy, how long a connection without identity may be idle, and how long a request on
/// it may take: time for a handshake and a first request.
const ANONYMOUS_IDLE: Duration = Duration::from_secs(2);
/// How long any other connection may be idle when hardly any permit is left.
const SHORT_IDLE: Duration = Duration::from_secs(10);

/// How many of the permits are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occupancy {
    /// Up to three quarters.
    Normal,
    /// More than three quarters.
    High,
    /// Nearly all.
    Full,
}

impl Occupancy {
    /// How long a connection may wait that may wait for `usual` at normal occupancy.
    pub(super) fn idle_limit(self, usual: Duration, is_authenticated: bool) -> Duration {
        match (self, is_authenticated) {
            (Self::Normal, _) | (Self::High, true) => usual,
            (Self::Full, true) => usual.min(SHORT_IDLE),
            (Self::High | Self::Full, false) => usual.min(ANONYMOUS_IDLE),
        }
    }

    /// How long a request, with body and answer, may be on a connection; `None` means without
    /// limit.
    pub(super) fn request_limit(self, is_authenticated: bool) -> Option<Duration> {
        (self != Self::Normal && !is_authenticated).then_some(ANONYMOUS_IDLE)
    }

    /// The occupancy with this many connections open. Rising takes more connections than staying,
    /// since each change wakes every connection.
    fn after(self, open: usize, max: usize) -> Self {
        let above = |parts: usize| open * 16 > max * parts;
        match self {
            Self::Full if above(14) => Self::Full,
            _ if above(15) => Self::Full,
            Self::High | Self::Full if above(10) => Self::High,
            _ if above(12) => Self::High,
            _ => Self::Normal,
        }
    }
}

/// The permits for connections of one listener.
pub(super) struct ConnectionPermits {
    max: usize,
    in_use: AtomicUsize,
    occupancy: watch::Sender<Occupancy>,
}

impl ConnectionPermits {
    /// As many permits as the process's limit of open files allows.
    pub(super) fn within_file_limit() -> Arc<Self> {
        Self::new(max_within(file_limit()))
    }

    /// The permits for two listeners, for callers and for monitoring. Neither can use up the
    /// other's.
    pub(super) fn split_within_file_limit() -> (Arc<Self>, Arc<Self>) {
        let (callers, monitoring) = split(max_within(file_limit()));
        (Self::new(callers), Self::new(monitoring))
    }

    fn new(max: usize) -> Arc<Self> {
        let occupancy = watch::Sender::new(Occupancy::Normal);
        Arc::new(Self { max, in_use: AtomicUsize::new(0), occupancy })
    }

    /// The number of permits, in use or not.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// The occupancy now.
    pub(super) fn occupancy(&self) -> Occupancy {
        *self.occupancy.borrow()
    }

    /// A receiver of each change of the occupancy.
    pub(super) fn occupancy_changes(&self) -> watch::Receiver<Occupancy> {
        self.occupancy.subscribe()
    }

    /// A permit for one more connection; `None` if all are in use.
    pub(super) fn try_acquire(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let one_more = |in_use: usize| (in_use < self.max).then_some(in_use + 1);
        self.in_use.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        let permit = ConnectionPermit(self.clone());
        self.update_occupancy();
        Some(permit)
    }

    fn update_occupancy(&self) {
        self.occupancy.send_if_modified(|occupancy| {
            let now = occupancy.after(self.in_use.load(Ordering::Relaxed), self.max);
            std::mem::replace(occupancy, now) != now
        });
    }
}

/// The permit of one connection, released when it is dropped.
pub(super) struct ConnectionPermit(Arc<ConnectionPermits>);

impl ConnectionPermit {
    /// The permits that this is one of.
    pub(super) fn permits(&self) -> &Arc<ConnectionPermits> {
        &self.0
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.in_use.fetch_sub(1, Ordering::Relaxed);
        self.0.update_occupancy();
    }
}

fn file_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// The number of connections for callers, and for monitoring.
fn split(max: usize) -> (usize, usize) {
    let monitoring = (max / 8).clamp(1, MAX_MONITORING);
    (max.saturating_sub(monitoring).max(1), monitoring)
}

fn max_within(files: Option<u64>) -> usize {
    let connections = |files: u64| files.saturating_sub(OTHER_FILES.max(files / 4)).max(1);
    files.map_or(MAX_CONNECTIONS, |files| {
        usize::try_from(connections(files)).unwrap_or(MAX_CONNECTIONS).min(MAX_CONNECTIONS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_kept_for_other_uses_than_connections() {
        for (files, connections) in
            [(0, 1), (64, 1), (128, 64), (512, 384), (1_024, 768), (1 << 20, MAX_CONNECTIONS)]
        {
            assert_eq!(max_within(Some(files)), connections, "{files}");
        }
        assert_eq!(max_within(None), MAX_CONNECTIONS);
    }

    #[test]
    fn two_listeners_together_take_no_more_files_than_one() {
        for max in [2, 64, 384, 768, MAX_CONNECTIONS] {
            let (callers, monitoring) = split(max);
            assert_eq!(callers + monitoring, max);
            assert!(monitoring >= 1 && callers >= monitoring, "{max}");
        }
        assert_eq!((split(768), split(MAX_CONNECTIONS)), ((704, 64), (MAX_CONNECTIONS - 64, 64)));
    }

    #[test]
    fn permits_are_bounded_and_returned() {
        let permits = ConnectionPermits::new(16);
        let mut held: Vec<_> = (0..16).map(|_| permits.try_acquire().unwrap()).collect();
        assert!(permits.try_acquire().is_none());
        assert_eq!(permits.occupancy(), Occupancy::Full);
        let mut now = |open: usize| {
            held.truncate(open);
            held.extend((held.len()..open).map(|_| permits.try_acquire().unwrap()));
            permits.occupancy()
        };
        assert_eq!([15, 14, 13].map(&mut now), [Occupancy::Full, Occupancy::High, Occupancy::High]);
        assert_eq!([11, 10, 12].map(&mut now), [Occupancy::High, Occupancy::Normal, Occupancy::Normal]);
        assert_eq!([13, 15, 16].map(&mut now), [Occupancy::High, Occupancy::High, Occupancy::Full]);
        assert_eq!(now(1), Occupancy::Normal);
    }

    #[test]
    fn anonymous_connections_are_closed_first() {
        let usual = Duration::from_secs(75);
        let limit = |is_known| {
            [Occupancy::Normal, Occupancy::High, Occupancy::Full]
                .map(|occupancy| occupancy.idle_limit(usual, is_known).as_secs())
        };
        assert_eq!((limit(false), limit(true)), ([75, 2, 2], [75, 75, 10]));
        assert_eq!(Occupancy::Full.idle_limit(Duration::from_secs(1), true), Duration::from_secs(1));
    }
}
