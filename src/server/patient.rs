//! A connection that waits for its client, but not for ever: one that takes nothing of what is written to it for too
//! long breaks. HTTP/1.1 has no other word for that, and neither hyper nor the kernel ends it. It is also the last
//! code before the kernel: what may not leave any more is not written here.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::SLOW_CLIENT;
use super::unsent::Unsent;

/// A stream whose writes fail with [`io::ErrorKind::TimedOut`] when they move nothing for [`SLOW_CLIENT`], and with
/// [`io::ErrorKind::PermissionDenied`] when an answer that may be buffered above it may not leave any more.
pub(super) struct Patient<S> {
    stream: S,
    unsent: Unsent,
    blocked: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// `unsent` knows the answers that may be buffered above `stream`.
    pub(super) fn new(stream: S, unsent: Unsent) -> Self {
        Self { stream, unsent, blocked: None }
    }

    fn may_write(&self) -> io::Result<()> {
        match self.unsent.may_be_written() {
            true => Ok(()),
            false => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    fn within_patience<T>(
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

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.may_write()?;
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.within_patience(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.may_write()?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.within_patience(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Hyper, h2 and rustls write all that they have buffered before they flush what is below them.
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if let Poll::Ready(Ok(())) = flushed {
            self.unsent.clear();
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
    async fn a_client_that_takes_something_now_and_then_is_waited_for() {
        let (mut client, server) = tokio::io::duplex(16);
        let mut server = Patient::new(server, Unsent::default());
        let writing = tokio::spawn(async move { server.write_all(&[7; 64]).await });
        for _ in 0..4 {
            tokio::time::sleep(SLOW_CLIENT * 9 / 10).await;
            client.read_exact(&mut [0; 16]).await.unwrap();
        }
        writing.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (_client, server) = tokio::io::duplex(16);
        let mut server = Patient::new(server, Unsent::default());
        let written = tokio::time::timeout(SLOW_CLIENT * 2, server.write_all(&[7; 64])).await.unwrap();
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
