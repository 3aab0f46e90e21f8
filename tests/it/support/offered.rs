//! Calls to a server at a fixed rate, whether it answers or not. That is how a crowd behaves,
//! unlike a client that waits for its answers. Plain sockets and one prepared request keep the
//! generator's own cost low.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The longest reuse of an idle connection: the server closes one after ten seconds without a
/// request.
const IDLE: Duration = Duration::from_secs(4);
/// The time after which an answer counts as a hang.
const HANG: Duration = Duration::from_secs(60);

/// One request, and the connections over which it is sent again and again.
pub(crate) struct Offered {
    address: String,
    request: Vec<u8>,
    idle: Mutex<Vec<(Instant, TcpStream)>>,
    /// The number of answers of each kind: `200`, `503`, or a description of the failure.
    pub(crate) answers: Mutex<BTreeMap<String, usize>>,
    waiting: AtomicUsize,
}

impl Offered {
    /// A `POST` of this JSON.
    pub(crate) fn post(base: &str, path: &str, token: &str, body: &str) -> Arc<Self> {
        let address = base.strip_prefix("http://").expect("plain HTTP").to_owned();
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: byok\r\nauthorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let (idle, answers, waiting) = Default::default();
        Arc::new(Self { address, request: request.into_bytes(), idle, answers, waiting })
    }

    /// Runs this many callers, each waiting for its answer, for this long. Returns the calls
    /// answered with 200 in a second.
    pub(crate) async fn in_turn(self: &Arc<Self>, callers: usize, time: Duration) -> f64 {
        let (began, before) = (Instant::now(), self.answered("200"));
        let one = |offered: Arc<Self>| async move {
            while began.elapsed() < time {
                offered.clone().call().await;
            }
        };
        futures_util::future::join_all((0..callers).map(|_| tokio::spawn(one(self.clone())))).await;
        (self.answered("200") - before) as f64 / began.elapsed().as_secs_f64()
    }

    /// Sends this many calls a second for this long, whatever their outcome. Returns without
    /// waiting for the last answers.
    pub(crate) async fn at_rate(self: &Arc<Self>, per_second: f64, time: Duration) {
        let began = Instant::now();
        let mut sent = 0.0;
        while began.elapsed() < time {
            // Sends everything that was due since the last tick, so that a generator that got no
            // core catches up.
            while sent < began.elapsed().as_secs_f64() * per_second {
                tokio::spawn(self.clone().call());
                sent += 1.0;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until every call has ended.
    pub(crate) async fn quiet(&self) {
        while self.waiting.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The number of answers of this kind.
    pub(crate) fn answered(&self, what: &str) -> usize {
        self.answers.lock().expect("a lock").get(what).copied().unwrap_or_default()
    }

    async fn call(self: Arc<Self>) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let what = match tokio::time::timeout(HANG, self.exchange()).await {
            Ok(Ok(what)) => what,
            Ok(Err(error)) => format!("broken: {error}"),
            Err(_) => "no answer".to_owned(),
        };
        *self.answers.lock().expect("a lock").entry(what).or_default() += 1;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    async fn exchange(&self) -> std::io::Result<String> {
        let mut stream = match self.idle_one() {
            Some(stream) => stream,
            None => TcpStream::connect(&self.address).await?,
        };
        stream.write_all(&self.request).await?;
        let (mut answer, mut whole) = (Vec::with_capacity(1 << 10), None);
        while whole.is_none_or(|whole| answer.len() < whole) {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            whole = whole.or_else(|| {
                let head = answer.windows(4).position(|end| end == b"\r\n\r\n")?;
                let length = header(&answer[..head], "content-length").expect("every answer has a length");
                Some(head + 4 + length.parse::<usize>().expect("a number"))
            });
        }
        let status = String::from_utf8_lossy(&answer[9..12]).into_owned();
        let what = match (status.as_str(), header(&answer, "retry-after")) {
            ("503", None) => format!("503 without Retry-After: {}", String::from_utf8_lossy(&answer)),
            ("200" | "503", _) => status,
            _ => String::from_utf8_lossy(&answer).into_owned(),
        };
        if header(&answer, "connection").is_none_or(|connection| connection != "close") {
            self.idle.lock().expect("a lock").push((Instant::now(), stream));
        }
        Ok(what)
    }

    fn idle_one(&self) -> Option<TcpStream> {
        let mut idle = self.idle.lock().expect("a lock");
        idle.retain(|(since, _)| since.elapsed() < IDLE);
        idle.pop().map(|(_, stream)| stream)
    }
}

/// A header of an answer, by its name in lower case.
fn header(answer: &[u8], name: &str) -> Option<String> {
    let head = answer.split(|byte| *byte == b'{').next()?;
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    head.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
}

/// A figure of the kernel's about a process, in KiB: `VmRSS`, `VmHWM` …
pub(crate) fn memory(pid: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(what)).expect("the kernel reports it");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}
