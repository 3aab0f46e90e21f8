//! What callers who are not recognised may take of the server: little all together, and a part of that from one address. Who
//! is recognised counts here no more: Hasura, or a load balancer, brings all its users from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;

use crate::config::Network;

use super::bounds::{Bound, Bounds};

/// Requests that are worked on at once: of all, and of one address.
const PLACES: (usize, usize) = (64, 16);
/// Bytes of bodies and answers: of all, and of one address. An answer has at most 1 MiB; Hasura's introspection a tenth.
const BYTES: (usize, usize) = (8 << 20, 2 << 20);
/// How much is read of one body.
const BODY_BYTES: usize = 64 << 10;
/// Documents that are run in a second, and at once after a while without any: of all, and of one address. One takes some
/// milliseconds of a core at most.
const RATE: (u32, u32) = (40, 20);
const BURST: (u32, u32) = (200, 100);
/// Connections of one address on which nothing has authenticated.
const CONNECTIONS: usize = 2_048;
/// How many addresses are told apart; the ones that come then share what one may have.
const ADDRESSES: usize = 65_536;
/// How often those that are at rest are looked for then: the search costs milliseconds.
const SWEPT_EVERY: Duration = Duration::from_secs(1);

/// The callers of one server who are not recognised.
pub(super) struct Strangers {
    all: Arc<Bounds>,
    rate: Bucket,
    addresses: Mutex<Addresses>,
    trusted: Vec<Network>,
}

#[derive(Default)]
struct Addresses {
    known: HashMap<IpAddr, Arc<Address>>,
    swept: Option<Instant>,
}

/// What one address takes.
pub(super) struct Address {
    pub(super) bounds: Arc<Bounds>,
    rate: Bucket,
    connections: Bound,
}

/// A connection that counts for its address until a request on it has authenticated, or it ends.
pub(super) struct Guest {
    peer: IpAddr,
    counts: Option<Arc<Address>>,
    has_left: AtomicBool,
}

impl Strangers {
    /// Those behind these proxies are told apart by what the proxies say.
    pub(super) fn new(trusted: Vec<Network>) -> Self {
        Self {
            all: Arc::new(Bounds::of(PLACES.0, BYTES.0, BODY_BYTES)),
            rate: Bucket::new(RATE.0, BURST.0),
            addresses: Mutex::default(),
            trusted,
        }
    }

    /// Counts a connection; `None` where its address has too many already. Those of a trusted proxy are not counted.
    pub(super) fn connect(&self, peer: IpAddr) -> Option<Guest> {
        let peer = peer.to_canonical();
        let counts = match self.is_trusted(peer) {
            true => None,
            false => {
                let address = self.of(peer);
                address.connections.take(1).then_some(())?;
                Some(address)
            }
        };
        Some(Guest { peer, counts, has_left: AtomicBool::new(false) })
    }

    /// Whose share a request takes from that came over a connection of this guest's.
    pub(super) fn address(&self, guest: Option<&Guest>, headers: &HeaderMap) -> Arc<Address> {
        let peer = guest.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |guest| guest.peer);
        self.of(self.client(peer, headers))
    }

    /// Whether one more document may be run for this address now.
    pub(super) fn may_run(&self, address: &Address) -> bool {
        let now = Instant::now();
        address.rate.take(now) && self.rate.take(now)
    }

    /// The nearest address that is none of a trusted proxy's. Each proxy adds who it was called by at the end of
    /// `X-Forwarded-For`; what stands before that, the client may have made up.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer;
        let lines = headers.get_all("x-forwarded-for").into_iter();
        // By bytes: what a client made up may be no text, and what proxies added stands on the same line.
        let said: Vec<&[u8]> = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).collect();
        let mut said = said.into_iter().rev();
        while self.is_trusted(client) {
            match said.next().and_then(address_in) {
                Some(before) => client = before,
                None => break,
            }
        }
        client
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
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
                bounds: Arc::new(Bounds::of(PLACES.1, BYTES.1, BODY_BYTES).within(self.all.clone())),
                rate: Bucket::new(RATE.1, BURST.1),
                connections: Bound::new(CONNECTIONS),
            })
        };
        addresses.known.entry(key).or_insert_with(new).clone()
    }
}

impl Addresses {
    /// Forgets those that are at rest, which is no gain to them: who comes back has what they had.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_none_or(|swept| swept + SWEPT_EVERY <= now) {
            self.swept = Some(now);
            self.known.retain(|_, address| !address.is_at_rest(now));
        }
    }
}

impl Address {
    /// Whether nothing of it is taken: no connection, no request, and nothing of its rate.
    fn is_at_rest(self: &Arc<Self>, now: Instant) -> bool {
        // A connection holds the address, a request its bounds alone.
        Arc::strong_count(self) == 1 && Arc::strong_count(&self.bounds) == 1 && self.rate.is_full(now)
    }
}

impl Guest {
    /// A request on the connection has authenticated: it counts for its address no more.
    pub(super) fn leave(&self) {
        // Read first: this is once a request.
        if let Some(address) = &self.counts
            && !self.has_left.load(Ordering::Relaxed)
            && !self.has_left.swap(true, Ordering::Relaxed)
        {
            address.connections.give(1);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.leave();
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

/// What is told apart: an IPv6 host has 2^64 addresses to choose from.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// So many a second, and more at once after a while without any (GCRA).
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

    fn take(&self, now: Instant) -> bool {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let then = full_at.map_or(now, |full_at| full_at.max(now)) + self.each;
        let may = then.duration_since(now) <= self.burst;
        if may {
            *full_at = Some(then);
        }
        may
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full_at.lock().unwrap_or_else(PoisonError::into_inner).is_none_or(|full_at| full_at <= now)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::super::bounds::{Claim, Full};
    use super::*;

    fn strangers(trusted: &[&str]) -> Strangers {
        Strangers::new(trusted.iter().map(|network| network.parse().unwrap()).collect())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn client(strangers: &Strangers, peer: &str, forwarded: &[impl AsRef<[u8]>]) -> IpAddr {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append("x-forwarded-for", HeaderValue::from_bytes(line.as_ref()).unwrap());
        }
        strangers.client(ip(peer), &headers)
    }

    #[test]
    fn only_a_trusted_proxy_says_who_its_client_is() {
        let behind = strangers(&["10.0.0.0/8", "fd00::/8"]);
        assert_eq!(client(&behind, "192.0.2.1", &["198.51.100.1"]), ip("192.0.2.1"));
        assert_eq!(client(&behind, "10.0.0.1", &["198.51.100.1"]), ip("198.51.100.1"));
        assert_eq!(client(&behind, "10.0.0.1", &["203.0.113.9, 198.51.100.1"]), ip("198.51.100.1"));
        assert_eq!(client(&behind, "10.0.0.1", &["203.0.113.9, 198.51.100.1, 10.0.0.2"]), ip("198.51.100.1"));
        assert_eq!(client(&behind, "10.0.0.1", &["203.0.113.9", "198.51.100.1:5000"]), ip("198.51.100.1"));
        assert_eq!(client(&behind, "fd00::1", &["[2001:db8::1]:443"]), ip("2001:db8::1"));
        // Bytes that are no text spoil their own element, and none that stands nearer.
        assert_eq!(client(&behind, "10.0.0.1", &[b"\xff\xfe, 198.51.100.1"]), ip("198.51.100.1"));
        assert_eq!(client(&behind, "10.0.0.1", &[b"203.0.113.9, \xe4, 10.0.0.2"]), ip("10.0.0.2"));
        for made_up in [&[][..], &["unknown"], &["203.0.113.9, _hidden"], &[""]] {
            assert_eq!(client(&behind, "10.0.0.1", made_up), ip("10.0.0.1"), "{made_up:?}");
        }
    }

    #[test]
    fn a_connection_counts_for_its_address_until_something_authenticates_on_it() {
        let strangers = strangers(&["10.0.0.0/8"]);
        let mut guests: Vec<_> =
            (0..CONNECTIONS).map(|_| strangers.connect(ip("192.0.2.1")).unwrap()).collect();
        assert!(strangers.connect(ip("192.0.2.1")).is_none());
        assert!(strangers.connect(ip("::ffff:192.0.2.1")).is_none(), "it is the same address");
        assert!(strangers.connect(ip("192.0.2.2")).is_some());
        guests[0].leave();
        guests[0].leave();
        let another = strangers.connect(ip("192.0.2.1")).unwrap();
        assert!(strangers.connect(ip("192.0.2.1")).is_none());
        drop(another);
        guests.truncate(1);
        assert_eq!(strangers.of(ip("192.0.2.1")).connections.held(), 0);
        let proxied: Vec<_> = (0..=CONNECTIONS).map(|_| strangers.connect(ip("10.0.0.1")).unwrap()).collect();
        assert_eq!(proxied.len(), CONNECTIONS + 1);
    }

    #[test]
    fn an_address_is_bound_by_its_part_and_all_by_the_whole() {
        let strangers = strangers(&[]);
        let fill = |address: &str| {
            let of = strangers.of(ip(address));
            let claims: Vec<_> = (0..PLACES.1).map(|_| Claim::new(of.bounds.clone())).collect();
            let entered = claims.iter().filter(|claim| claim.enter().is_ok()).count();
            assert_eq!(Claim::new(of.bounds.clone()).enter(), Err(Full::Strangers));
            (claims, entered)
        };
        let full: Vec<_> = (1..=4).map(|n| fill(&format!("192.0.2.{n}"))).collect();
        assert!(full.iter().all(|(_, entered)| *entered == PLACES.1));
        assert_eq!(fill("192.0.2.5").1, 0, "there is none left");
        drop(full);
        assert_eq!(fill("192.0.2.5").1, PLACES.1);
        let claim = Claim::new(strangers.of(ip("2001:db8::1")).bounds.clone());
        assert_eq!((claim.hold(BYTES.1), claim.hold(BYTES.1 + 1)), (Ok(()), Err(Full::Strangers)));
        let neighbour = Claim::new(strangers.of(ip("2001:db8::2")).bounds.clone());
        assert_eq!(neighbour.hold(1), Err(Full::Strangers), "one host may have both addresses");
    }

    #[test]
    fn an_address_whose_request_runs_is_not_forgotten_however_many_others_come() {
        let strangers = strangers(&["10.0.0.0/8"]);
        // It came through a proxy, whose connections count for nobody.
        let running = Claim::new(strangers.of(ip("192.0.2.1")).bounds.clone());
        running.enter().unwrap();
        for n in 0..=ADDRESSES as u32 {
            strangers.of(Ipv4Addr::from_bits(0xC633_0000 + n).into());
        }
        let has_forgotten = strangers.addresses.lock().unwrap().known.len() < ADDRESSES;
        assert!(has_forgotten, "those at rest make room");
        let more: Vec<_> =
            (0..PLACES.1).map(|_| Claim::new(strangers.of(ip("192.0.2.1")).bounds.clone())).collect();
        assert_eq!(more.iter().filter(|claim| claim.enter().is_ok()).count(), PLACES.1 - 1);
    }

    #[test]
    fn a_burst_passes_and_then_so_many_a_second() {
        let (bucket, began) = (Bucket::new(20, 100), Instant::now());
        let passed = |after: u64| {
            let now = began + Duration::from_millis(after);
            (0..1_000).filter(|_| bucket.take(now)).count()
        };
        assert_eq!((passed(0), passed(49), passed(50), passed(1_050)), (100, 0, 1, 20));
        assert!(!bucket.is_full(began + Duration::from_secs(5)));
        assert!(bucket.is_full(began + Duration::from_secs(7)));
    }
}
