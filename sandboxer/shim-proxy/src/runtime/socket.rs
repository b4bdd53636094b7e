//! A socket that says when it is let go: ttrpc closes its sockets without a word.
//!
//! And one that can be read to its end: ttrpc gives a connection up at the first write that fails, with whatever the
//! peer said before it left still unread. Here such a write waits, and the end that is read next ends the connection,
//! unless we have hung up: then nobody reads any more.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A stream that holds `witness` for as long as it is open; the witness acts when it is dropped.
pub(crate) struct Watched<W> {
    stream: UnixStream,
    hung_up: Pin<Box<WaitForCancellationFutureOwned>>,
    _witness: W,
}

impl<W> Watched<W> {
    /// Binds a witness to a stream, which we hang up by the token.
    pub(crate) fn new(stream: UnixStream, hung_up: CancellationToken, witness: W) -> Self {
        Self { stream, hung_up: Box::pin(hung_up.cancelled_owned()), _witness: witness }
    }
}

impl<W: Unpin> AsyncRead for Watched<W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<W: Unpin> AsyncWrite for Watched<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, buffer);
        match written {
            Poll::Ready(Err(left)) if left.kind() == io::ErrorKind::BrokenPipe => {
                self.hung_up.as_mut().poll(context).map(|()| Err(left))
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
