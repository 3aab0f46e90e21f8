//! The load generator: keep-alive HTTP/1.1 over bare sockets, with requests that are prepared
//! beforehand, because a client library would cost more than some of the servers. Every answer is
//! checked, and a wrong one ends the bench.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::processes::{cpu_seconds, family, resident_bytes};
use crate::scenarios::{Calls, Scenario};
use crate::servers::Pids;

/// The times for which a load runs before and during the measurement.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) warm_up: Duration,
    pub(crate) length: Duration,
}

/// A request, ready to be sent, and the answer that must come with status 200.
pub(crate) struct Call {
    pub(crate) request: Vec<u8>,
    pub(crate) expected: Expected,
}

/// The body that an answer must have.
pub(crate) enum Expected {
    /// These bytes.
    Exactly(Vec<u8>),
    /// These pieces, in this order, between others.
    InOrder(Vec<Vec<u8>>),
}

/// The measurements of one window.
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    pub(crate) requests: f64,
    pub(crate) records: f64,
    /// The latencies in microseconds, sorted.
    pub(crate) latencies: Vec<u32>,
    /// Processor seconds of the server under test, of PostgreSQL, and of this process.
    pub(crate) cpu: [f64; 3],
    /// The resident memory of the server under test, at the end.
    pub(crate) resident_bytes: u64,
}

/// The state that all connections share.
struct Shared {
    calls: Arc<Calls>,
    done: AtomicU64,
    measuring: AtomicBool,
    stop: AtomicBool,
}

/// Runs a scenario for a warm-up and a window.
///
/// # Errors
/// A connection broke or an answer was wrong; the message says what came instead.
pub(crate) async fn run(
    scenario: &Scenario,
    address: SocketAddr,
    window: Window,
    pids: &Pids,
) -> Result<Sample, String> {
    let shared = Arc::new(Shared {
        calls: scenario.calls.clone(),
        done: AtomicU64::new(0),
        measuring: AtomicBool::new(false),
        stop: AtomicBool::new(false),
    });
    let connections: Vec<_> = (0..scenario.connections)
        .map(|_| tokio::spawn(call_until_stopped(address, shared.clone())))
        .collect();
    tokio::time::sleep(window.warm_up).await;

    let postgres = family(pids.postgres);
    let cpu =
        || [cpu_seconds(&[pids.under_test]), cpu_seconds(&postgres), cpu_seconds(&[std::process::id()])];
    let (began, done_before, cpu_before) = (Instant::now(), shared.done.load(Relaxed), cpu());
    shared.measuring.store(true, Relaxed);
    tokio::time::sleep(window.length).await;
    shared.stop.store(true, Relaxed);
    let (seconds, done, cpu_after) = (began.elapsed().as_secs_f64(), shared.done.load(Relaxed), cpu());

    let mut latencies = Vec::new();
    for connection in connections {
        latencies.extend(connection.await.map_err(|error| error.to_string())??);
    }
    latencies.sort_unstable();
    let requests = (done - done_before) as f64;
    Ok(Sample {
        seconds,
        requests,
        records: requests * scenario.records_per_call as f64,
        latencies,
        cpu: std::array::from_fn(|process| cpu_after[process] - cpu_before[process]),
        resident_bytes: resident_bytes(pids.under_test),
    })
}

/// Makes one call after the other until the end, and gives the latencies within the window.
async fn call_until_stopped(address: SocketAddr, shared: Arc<Shared>) -> Result<Vec<u32>, String> {
    let mut connection =
        Connection::open(address).await.map_err(|error| format!("no connection: {error}"))?;
    let mut latencies = Vec::new();
    while !shared.stop.load(Relaxed) {
        let made;
        let call = match &*shared.calls {
            Calls::InTurn(calls, turn) => &calls[turn.fetch_add(1, Relaxed) % calls.len()],
            Calls::Fresh(make, turn) => {
                made = make(turn.fetch_add(1, Relaxed));
                &made
            }
        };
        let sent = Instant::now();
        let (status, body) = connection
            .exchange(&call.request)
            .await
            .map_err(|error| format!("the connection broke: {error}"))?;
        if status != 200 || !call.expected.holds(body) {
            let from = call.expected.differs_at(body).saturating_sub(40);
            let shown = String::from_utf8_lossy(&body[from..body.len().min(from + 400)]);
            return Err(format!("a wrong answer, status {status}, from byte {from}: {shown}"));
        }
        shared.done.fetch_add(1, Relaxed);
        if shared.measuring.load(Relaxed) {
            latencies.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
    }
    Ok(latencies)
}

impl Expected {
    /// The position of the first wrong byte, or 0 where the body is checked in pieces.
    fn differs_at(&self, body: &[u8]) -> usize {
        match self {
            Self::Exactly(expected) => {
                body.iter().zip(expected).take_while(|(is, should)| is == should).count()
            }
            Self::InOrder(_) => 0,
        }
    }

    fn holds(&self, body: &[u8]) -> bool {
        match self {
            Self::Exactly(expected) => body == expected,
            Self::InOrder(pieces) => {
                let mut rest = body;
                pieces.iter().all(|piece| match find(rest, piece) {
                    Some(at) => {
                        rest = &rest[at + piece.len()..];
                        true
                    }
                    None => false,
                })
            }
        }
    }
}

/// A connection that is kept alive.
pub(crate) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    joined: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::with_capacity(4_096), joined: Vec::new() })
    }

    /// Sends a request and gives the status and body of its answer (RFC 9112, sections 6 and 7.1).
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> io::Result<(u16, &[u8])> {
        self.stream.write_all(request).await?;
        self.received.clear();
        let head = self.until(b"\r\n\r\n", 0).await? + 4;
        let text = std::str::from_utf8(&self.received[..head]).map_err(|_| malformed())?;
        let status = text.get(9..12).and_then(|digits| digits.parse().ok()).ok_or_else(malformed)?;
        let length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            if name.eq_ignore_ascii_case("content-length") {
                value.trim().parse::<usize>().ok()
            } else {
                None
            }
        });
        // A 204 has neither a body nor a length.
        if let Some(length) = length.or((status == 204).then_some(0)) {
            self.fill(head + length).await?;
            return Ok((status, &self.received[head..head + length]));
        }
        // Vault sends its longer answers in chunks.
        self.joined.clear();
        let mut at = head;
        loop {
            let start = self.until(b"\r\n", at).await? + 2;
            let size = std::str::from_utf8(&self.received[at..start - 2]).map_err(|_| malformed())?;
            let size = usize::from_str_radix(size.trim(), 16).map_err(|_| malformed())?;
            self.fill(start + size + 2).await?;
            if size == 0 {
                return Ok((status, &self.joined));
            }
            self.joined.extend(&self.received[start..start + size]);
            at = start + size + 2;
        }
    }

    /// The first position of these bytes at or after `from`; reads until they have come.
    async fn until(&mut self, what: &[u8], from: usize) -> io::Result<usize> {
        loop {
            if let Some(at) = find(&self.received[from..], what) {
                return Ok(from + at);
            }
            self.fill(self.received.len() + 1).await?;
        }
    }

    /// Reads until this many bytes have come.
    async fn fill(&mut self, length: usize) -> io::Result<()> {
        self.received.reserve(length.saturating_sub(self.received.len()));
        while self.received.len() < length {
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not HTTP")
}

fn find(within: &[u8], what: &[u8]) -> Option<usize> {
    within.windows(what.len()).position(|window| window == what)
}
