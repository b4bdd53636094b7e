//! A socket that tells when it closes and that is read to its end, which ttrpc does by itself neither.
//!
//! ttrpc closes its sockets without telling anybody. And it gives a connection up at the first write that fails, so
//! that what the peer sent before it closed stays unread. Here a write that fails for that reason waits until the end
//! of the input has been read, which ends the connection; once we have closed the connection ourselves nobody reads any
//! more, and the write fails at once.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A stream that holds a guard for as long as it is open; the guard acts when it is dropped.
pub(crate) struct GuardedSocket<G> {
    stream: UnixStream,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    _guard: G,
}

impl<G> GuardedSocket<G> {
    /// Binds a guard to a stream. `closing` says that we close the connection ourselves.
    pub(crate) fn new(stream: UnixStream, closing: CancellationToken, guard: G) -> Self {
        Self { stream, closing: Box::pin(closing.cancelled_owned()), _guard: guard }
    }
}

impl<G: Unpin> AsyncRead for GuardedSocket<G> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<G: Unpin> AsyncWrite for GuardedSocket<G> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, buffer);
        match written {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closing.as_mut().poll(context).map(|()| Err(error))
            }
            written @ (Poll::Ready(_) | Poll::Pending) => written,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
