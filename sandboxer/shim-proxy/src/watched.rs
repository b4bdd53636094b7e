//! A socket that says when it is let go: ttrpc closes its sockets without a word.
//!
//! And one that can be read to its end: ttrpc gives a connection up at the first write that fails, with whatever the
//! peer said before it left still unread. Here such a write waits, and the end that is read next ends the connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// A stream that holds `witness` for as long as it is open; the witness acts when it is dropped.
pub(crate) struct Watched<W> {
    stream: UnixStream,
    _witness: W,
}

impl<W> Watched<W> {
    /// Binds a witness to a stream.
    pub(crate) fn new(stream: UnixStream, witness: W) -> Self {
        Self { stream, _witness: witness }
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
        let left = |written: &Poll<io::Result<usize>>| matches!(written, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe);
        if left(&written) { Poll::Pending } else { written }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
