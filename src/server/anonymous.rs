//! Limits on callers without a verified identity: small ones for all together, and a part of these
//! for each address. Callers who have authenticated do not count here: Hasura, or a load balancer,
//! connects from one address for all its users.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;

use crate::config::Network;

use super::bounds::{Bound, Bounds};

/// Requests in progress at once: of all, and of one address.
const REQUESTS: (usize, usize) = (64, 16);
/// Bytes of bodies and answers: of all, and of one address. An answer has at most 1 MiB, and that
/// to Hasura's introspection a tenth of it.
const BYTES: (usize, usize) = (8 << 20, 2 << 20);
/// The most bytes that are read of one body.
const BODY_BYTES: usize = 64 << 10;
/// GraphQL documents run per second, and at once after a pause: of all, and of one address. One
/// takes some milliseconds of a core at most.
const RATE: (u32, u32) = (40, 20);
const BURST: (u32, u32) = (200, 100);
/// Connections of one address on which no request has authenticated.
const CONNECTIONS: usize = 2_048;
/// The number of addresses that are tracked; all further ones share the limits of one.
const ADDRESSES: usize = 65_536;
/// How often, at that number, idle addresses are searched for: the search costs milliseconds.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The callers of one server who have no verified identity.
pub(super) struct AnonymousCallers {
    all: Arc<Bounds>,
    rate: Bucket,
    addresses: Mutex<Addresses>,
    trusted_proxies: Vec<Network>,
}

#[derive(Default)]
struct Addresses {
    known: HashMap<IpAddr, Arc<Address>>,
    swept: Option<Instant>,
}

/// The usage of one address.
pub(super) struct Address {
    pub(super) bounds: Arc<Bounds>,
    rate: Bucket,
    connections: Bound,
}

/// A connection. It counts against its address until a request on it has authenticated, or it ends.
pub(super) struct PeerConnection {
    peer: IpAddr,
    counted_for: Option<Arc<Address>>,
    has_authenticated: AtomicBool,
}

impl AnonymousCallers {
    /// Tracks callers by address. Those behind the trusted proxies are distinguished by
    /// `X-Forwarded-For`.
    pub(super) fn new(trusted_proxies: Vec<Network>) -> Self {
        Self {
            all: Arc::new(Bounds::of(REQUESTS.0, BYTES.0, BODY_BYTES)),
            rate: Bucket::new(RATE.0, BURST.0),
            addresses: Mutex::default(),
            trusted_proxies,
        }
    }

    /// Counts a connection; `None` if its address has too many already. Connections of a trusted
    /// proxy are not counted.
    pub(super) fn connect(&self, peer: IpAddr) -> Option<PeerConnection> {
        let peer = peer.to_canonical();
        let counted_for = if self.is_trusted(peer) {
            None
        } else {
            let address = self.of(peer);
            address.connections.try_acquire(1).then_some(())?;
            Some(address)
        };
        Some(PeerConnection { peer, counted_for, has_authenticated: AtomicBool::new(false) })
    }

    /// The address that a request counts against, given its connection and headers.
    pub(super) fn address(&self, connection: Option<&PeerConnection>, headers: &HeaderMap) -> Arc<Address> {
        let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let peer = connection.map_or(unknown, |connection| connection.peer);
        self.of(self.client(peer, headers))
    }

    /// Whether one more document may be run for this address now; counts it if so.
    pub(super) fn may_run(&self, address: &Address) -> bool {
        let now = Instant::now();
        address.rate.try_acquire(now) && self.rate.try_acquire(now)
    }

    /// The nearest address that does not belong to a trusted proxy. Each proxy appends the address
    /// of its caller to `X-Forwarded-For`; a client may have forged everything before that.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer;
        let lines = headers.get_all("x-forwarded-for").into_iter();
        // As bytes: what a client forged need not be text, and what proxies appended is on the same
        // line.
        let hops: Vec<&[u8]> = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).collect();
        let mut hops = hops.into_iter().rev();
        while self.is_trusted(client) {
            match hops.next().and_then(address_in) {
                Some(before) => client = before,
                None => break,
            }
        }
        client
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(address))
    }

    fn of(&self, address: IpAddr) -> Arc<Address> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = network_of(address);
        if addresses.known.len() >= ADDRESSES && !addresses.known.contains_key(&key) {
            addresses.sweep(Instant::now());
            if addresses.known.len() >= ADDRESSES {
                key = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            }
        }
        let new = || {
            Arc::new(Address {
                bounds: Arc::new(Bounds::of(REQUESTS.1, BYTES.1, BODY_BYTES).within(self.all.clone())),
                rate: Bucket::new(RATE.1, BURST.1),
                connections: Bound::new(CONNECTIONS),
            })
        };
        addresses.known.entry(key).or_insert_with(new).clone()
    }
}

impl Addresses {
    /// Forgets idle addresses. They gain nothing by it: an idle address has its full allowance
    /// anyway.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_none_or(|swept| swept + SWEEP_INTERVAL <= now) {
            self.swept = Some(now);
            self.known.retain(|_, address| !address.is_idle(now));
        }
    }
}

impl Address {
    /// Whether the address uses nothing: no connection, no request, and nothing of its rate.
    fn is_idle(self: &Arc<Self>, now: Instant) -> bool {
        // A connection holds the address, a request its bounds alone.
        Arc::strong_count(self) == 1 && Arc::strong_count(&self.bounds) == 1 && self.rate.is_full(now)
    }
}

impl PeerConnection {
    /// Records that a request on the connection has authenticated: from now on the connection does
    /// not count against its address.
    pub(super) fn set_authenticated(&self) {
        // A plain read first: this runs for every request.
        if let Some(address) = &self.counted_for
            && !self.has_authenticated.load(Ordering::Relaxed)
            && !self.has_authenticated.swap(true, Ordering::Relaxed)
        {
            address.connections.release(1);
        }
    }
}

impl Drop for PeerConnection {
    fn drop(&mut self) {
        self.set_authenticated();
    }
}

/// An address as proxies write it, with or without a port.
fn address_in(element: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(element).ok()?.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.split(']').next()).unwrap_or(text);
    let address =
        bare.parse().or_else(|_| text.parse().map(|with_port: std::net::SocketAddr| with_port.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

/// The network that is tracked for an address: the /64 of an IPv6 address, since one host can use
/// all of it.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// A rate limit with a burst (GCRA).
struct Bucket {
    each: Duration,
    burst: Duration,
    full_at: Mutex<Option<Instant>>,
}

impl Bucket {
    fn new(per_second: u32, burst: u32) -> Self {
        let each = Duration::from_secs(1) / per_second;
        Self { each, burst: each * burst, full_at: Mutex::default() }
    }

    fn try_acquire(&self, now: Instant) -> bool {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let then = full_at.map_or(now, |full_at| full_at.max(now)) + self.each;
        let is_within = then.duration_since(now) <= self.burst;
        if is_within {
            *full_at = Some(then);
        }
        is_within
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full_at.lock().unwrap_or_else(PoisonError::into_inner).is_none_or(|full_at| full_at <= now)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::super::bounds::{Claim, LimitReached};
    use super::*;

    fn callers(trusted: &[&str]) -> AnonymousCallers {
        AnonymousCallers::new(trusted.iter().map(|network| network.parse().unwrap()).collect())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn client(callers: &AnonymousCallers, peer: &str, forwarded: &[impl AsRef<[u8]>]) -> IpAddr {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append("x-forwarded-for", HeaderValue::from_bytes(line.as_ref()).unwrap());
        }
        callers.client(ip(peer), &headers)
    }

    #[test]
    fn only_a_trusted_proxy_says_who_its_client_is() {
        let behind = callers(&["10.0.0.0/8", "fd00::/8"]);
        assert_eq!(client(&behind, "192.0.2.1", &["198.51.100.1"]), ip("192.0.2.1"));
        assert_eq!(client(&behind, "10.0.0.1", &["198.51.100.1"]), ip("198.51.100.1"));
        assert_eq!(client(&behind, "10.0.0.1", &["203.0.113.9, 198.51.100.1"]), ip("198.51.100.1"));
        assert_eq!(client(&behind, "10.0.0.1", &["203.0.113.9, 198.51.100.1, 10.0.0.2"]), ip("198.51.100.1"));
        assert_eq!(client(&behind, "10.0.0.1", &["203.0.113.9", "198.51.100.1:5000"]), ip("198.51.100.1"));
        assert_eq!(client(&behind, "fd00::1", &["[2001:db8::1]:443"]), ip("2001:db8::1"));
        // Bytes that are not text invalidate their own element, and no nearer one.
        assert_eq!(client(&behind, "10.0.0.1", &[b"\xff\xfe, 198.51.100.1"]), ip("198.51.100.1"));
        assert_eq!(client(&behind, "10.0.0.1", &[b"203.0.113.9, \xe4, 10.0.0.2"]), ip("10.0.0.2"));
        for forged in [&[][..], &["unknown"], &["203.0.113.9, _hidden"], &[""]] {
            assert_eq!(client(&behind, "10.0.0.1", forged), ip("10.0.0.1"), "{forged:?}");
        }
    }

    #[test]
    fn a_connection_counts_for_its_address_until_something_authenticates_on_it() {
        let callers = callers(&["10.0.0.0/8"]);
        let mut connections: Vec<_> =
            (0..CONNECTIONS).map(|_| callers.connect(ip("192.0.2.1")).unwrap()).collect();
        assert!(callers.connect(ip("192.0.2.1")).is_none());
        assert!(callers.connect(ip("::ffff:192.0.2.1")).is_none(), "it is the same address");
        assert!(callers.connect(ip("192.0.2.2")).is_some());
        connections[0].set_authenticated();
        connections[0].set_authenticated();
        let another = callers.connect(ip("192.0.2.1")).unwrap();
        assert!(callers.connect(ip("192.0.2.1")).is_none());
        drop(another);
        connections.truncate(1);
        assert_eq!(callers.of(ip("192.0.2.1")).connections.held(), 0);
        let proxied: Vec<_> = (0..=CONNECTIONS).map(|_| callers.connect(ip("10.0.0.1")).unwrap()).collect();
        assert_eq!(proxied.len(), CONNECTIONS + 1);
    }

    #[test]
    fn an_address_is_limited_to_its_share_and_all_together() {
        let callers = callers(&[]);
        let fill = |address: &str| {
            let of = callers.of(ip(address));
            let claims: Vec<_> = (0..REQUESTS.1).map(|_| Claim::new(of.bounds.clone())).collect();
            let entered = claims.iter().filter(|claim| claim.acquire_permit().is_ok()).count();
            assert_eq!(Claim::new(of.bounds.clone()).acquire_permit(), Err(LimitReached::Anonymous));
            (claims, entered)
        };
        let full: Vec<_> = (1..=4).map(|n| fill(&format!("192.0.2.{n}"))).collect();
        assert!(full.iter().all(|(_, entered)| *entered == REQUESTS.1));
        assert_eq!(fill("192.0.2.5").1, 0, "there is none left");
        drop(full);
        assert_eq!(fill("192.0.2.5").1, REQUESTS.1);
        let claim = Claim::new(callers.of(ip("2001:db8::1")).bounds.clone());
        assert_eq!((claim.hold(BYTES.1), claim.hold(BYTES.1 + 1)), (Ok(()), Err(LimitReached::Anonymous)));
        let neighbour = Claim::new(callers.of(ip("2001:db8::2")).bounds.clone());
        assert_eq!(neighbour.hold(1), Err(LimitReached::Anonymous), "one host can use both addresses");
    }

    #[test]
    fn an_address_with_a_running_request_is_never_forgotten() {
        let callers = callers(&["10.0.0.0/8"]);
        // It came through a proxy, whose connections are not counted.
        let running = Claim::new(callers.of(ip("192.0.2.1")).bounds.clone());
        running.acquire_permit().unwrap();
        for n in 0..=ADDRESSES as u32 {
            callers.of(Ipv4Addr::from_bits(0xC633_0000 + n).into());
        }
        let has_forgotten = callers.addresses.lock().unwrap().known.len() < ADDRESSES;
        assert!(has_forgotten, "idle addresses make room");
        let more: Vec<_> =
            (0..REQUESTS.1).map(|_| Claim::new(callers.of(ip("192.0.2.1")).bounds.clone())).collect();
        assert_eq!(more.iter().filter(|claim| claim.acquire_permit().is_ok()).count(), REQUESTS.1 - 1);
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let (bucket, began) = (Bucket::new(20, 100), Instant::now());
        let passed = |after: u64| {
            let now = began + Duration::from_millis(after);
            (0..1_000).filter(|_| bucket.try_acquire(now)).count()
        };
        assert_eq!((passed(0), passed(49), passed(50), passed(1_050)), (100, 0, 1, 20));
        assert!(!bucket.is_full(began + Duration::from_secs(5)));
        assert!(bucket.is_full(began + Duration::from_secs(7)));
    }
}
