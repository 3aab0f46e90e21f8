//! Everything that is logged on this thread, at every level and for every target.

use std::io::Write;
use std::sync::{Arc, Mutex};

use tracing::subscriber::DefaultGuard;

/// A capture of log lines, which ends when it is dropped.
pub(crate) struct Log {
    lines: Lines,
    _guard: DefaultGuard,
    _second: tracing::Dispatch,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Starts to capture. For tests on one thread, such as those of `#[tokio::test]`.
    pub(crate) fn capture() -> Self {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        // With a single subscriber, tracing asks the thread that first reaches a log statement
        // whether anyone listens, and another test's thread would answer no for all. With two, it
        // asks the subscribers.
        let second = tracing::Dispatch::new(tracing_subscriber::registry());
        Self { lines, _guard: tracing::subscriber::set_default(subscriber), _second: second }
    }

    /// The text logged so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.lines.0.lock().expect("a lock")).into_owned()
    }

    /// The text logged so far by our crate and not by a library, which is what a server would
    /// write.
    pub(crate) fn ours(&self) -> String {
        self.text().lines().filter(|line| line.contains(" byok::")).collect::<Vec<_>>().join("\n")
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("a lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
