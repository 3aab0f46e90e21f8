//! A timeout on writes to a client that does not read: neither HTTP/1.1, hyper nor the kernel ends
//! such a connection. This is also the last code before the kernel, so it refuses to write an
//! answer that may no longer be sent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::SLOW_CLIENT;
use super::buffered::Buffered;

/// A stream whose writes fail with [`io::ErrorKind::TimedOut`] when they make no progress for
/// [`SLOW_CLIENT`], and with [`io::ErrorKind::PermissionDenied`] when an answer that may be
/// buffered above it may no longer be sent.
pub(super) struct WriteTimeout<S> {
    stream: S,
    buffered: Buffered,
    blocked: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteTimeout<S> {
    /// Wraps `stream`; `buffered` has the answers that may be buffered above it.
    pub(super) fn new(stream: S, buffered: Buffered) -> Self {
        Self { stream, buffered, blocked: None }
    }

    fn may_write(&self) -> io::Result<()> {
        if self.buffered.may_be_written() { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }

    fn or_time_out<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.blocked = None;
            return written;
        }
        let blocked = self.blocked.get_or_insert_with(|| Box::pin(sleep(SLOW_CLIENT)));
        blocked.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.may_write()?;
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.or_time_out(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.may_write()?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.or_time_out(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper, h2 and rustls write everything that they have buffered before they flush this
        // stream.
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if let Poll::Ready(Ok(())) = flushed {
            self.buffered.clear();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_now_and_then_does_not_time_out() {
        let (mut client, server) = tokio::io::duplex(16);
        let mut server = WriteTimeout::new(server, Buffered::default());
        let writing = tokio::spawn(async move { server.write_all(&[7; 64]).await });
        for _ in 0..4 {
            tokio::time::sleep(SLOW_CLIENT * 9 / 10).await;
            client.read_exact(&mut [0; 16]).await.unwrap();
        }
        writing.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_times_out() {
        let (_client, server) = tokio::io::duplex(16);
        let mut server = WriteTimeout::new(server, Buffered::default());
        let written = tokio::time::timeout(SLOW_CLIENT * 2, server.write_all(&[7; 64])).await.unwrap();
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
