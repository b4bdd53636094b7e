//! A connection of a unix socket, carried between host and guest. Both ends do the same.
//!
//! Data travels as frames of at most [`MAX_CHUNK`] bytes. A frame of length 0 ends its direction, as a shutdown of
//! writing does. Whoever has sent its end and delivered the other's sends a second one: everything has arrived.
//! [`GONE`] instead of it says that the socket is closed altogether, which unix(7) tells apart: nothing is taken there
//! any more. Either is followed by the close of the stream; a stream that closes before was cut, and so is what
//! hangs on it.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdStream;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::stream::{END, MAX_CHUNK};

/// In place of a frame's length: the socket at the sender's end is closed in both directions.
pub const GONE: [u8; 4] = u32::MAX.to_le_bytes();

/// Bytes taken from a socket at once.
const CHUNK: usize = 16 * 1024;

/// Why a connection ended other than by its ends.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The socket at this end.
    #[error("the unix socket's connection broke")]
    Socket(#[source] io::Error),
    /// The stream between host and guest.
    #[error("the stream between host and guest broke")]
    Stream(#[source] io::Error),
    /// The other end closed the stream without a word.
    #[error("the other end gave the connection up")]
    Cut,
}

/// Moves bytes until both sides have ended, or one has closed altogether. Takes memory only for what is on its way.
///
/// # Errors
/// [`RelayError`]. Either way both connections are closed.
pub async fn relay<S>(socket: UnixStream, stream: S) -> Result<(), RelayError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_peer, mut to_peer) = tokio::io::split(stream);
    let (delivered, peer_has_ended) = oneshot::channel();
    let receive = receive(&mut from_peer, &socket, delivered);
    tokio::pin!(receive);
    tokio::select! {
        received = &mut receive => received,
        sent = send(&socket, &mut to_peer, peer_has_ended) => {
            sent?;
            match receive.await {
                // It has heard our last word, and needs none.
                Err(RelayError::Cut) => Ok(()),
                received => received,
            }
        }
    }
}

async fn send<W>(
    socket: &UnixStream,
    stream: &mut W,
    peer_has_ended: oneshot::Receiver<()>,
) -> Result<(), RelayError>
where
    W: AsyncWrite + Unpin,
{
    let gone = loop {
        match next_chunk(socket).await {
            Ok(frame) if frame.len() == END.len() => break false,
            Ok(frame) => stream.write_all(&frame).await.map_err(RelayError::Stream)?,
            // It was closed with something unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break true,
            Err(error) => return Err(RelayError::Socket(error)),
        }
    };
    say(stream, END).await?;
    let last = tokio::select! {
        hung_up = hung_up(socket), if !gone => hung_up.map(|()| GONE).map_err(RelayError::Socket)?,
        Ok(()) = peer_has_ended, if !gone => END,
        else => GONE,
    };
    say(stream, last).await
}

async fn say<W: AsyncWrite + Unpin>(stream: &mut W, word: [u8; 4]) -> Result<(), RelayError> {
    stream.write_all(&word).await.map_err(RelayError::Stream)?;
    stream.flush().await.map_err(RelayError::Stream)
}

/// What the socket says next, as a frame; one without data at its end.
async fn next_chunk(socket: &UnixStream) -> io::Result<Vec<u8>> {
    loop {
        socket.readable().await?;
        let mut frame = Vec::with_capacity(END.len() + CHUNK);
        frame.extend(END);
        match socket.try_read_buf(&mut frame) {
            Ok(read) => {
                if let Some(head) = frame.first_chunk_mut() {
                    *head = u32::try_from(read).unwrap_or_default().to_le_bytes();
                }
                return Ok(frame);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Waits until the other end is closed altogether, which is more than that it says no more (EPOLLHUP of epoll(7)).
async fn hung_up(socket: &UnixStream) -> io::Result<()> {
    // With a readiness of its own: that of `socket` belongs to whoever writes to it.
    let twin = StdStream::from(socket.as_fd().try_clone_to_owned()?);
    let twin = UnixStream::from_std(twin)?;
    loop {
        if twin.ready(Interest::WRITABLE).await?.is_write_closed() {
            return Ok(());
        }
        // Forgets that it can be written to, until there is news.
        drop(twin.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into())));
    }
}

async fn receive<R>(
    stream: &mut R,
    socket: &UnixStream,
    delivered: oneshot::Sender<()>,
) -> Result<(), RelayError>
where
    R: AsyncRead + Unpin,
{
    let mut delivered = Some(delivered);
    loop {
        let length = match stream.read_u32_le().await {
            Ok(length) => length,
            // After its end: the stream's close has overtaken the last word.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && delivered.is_none() => {
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(RelayError::Cut),
            Err(error) => return Err(RelayError::Stream(error)),
        };
        match length {
            0 => {
                let Some(delivered) = delivered.take() else { return Ok(()) };
                shut_down(socket).map_err(RelayError::Socket)?;
                // Nobody waits when this end's socket is closed.
                delivered.send(()).unwrap_or_default();
            }
            u32::MAX => return Ok(()),
            length if length > MAX_CHUNK || delivered.is_none() => {
                let text = format!("a chunk of {length} bytes, of at most {MAX_CHUNK}, or after the end");
                return Err(RelayError::Stream(io::Error::new(io::ErrorKind::InvalidData, text)));
            }
            length => {
                let mut chunk = vec![0; usize::try_from(length).unwrap_or_default()];
                stream.read_exact(&mut chunk).await.map_err(RelayError::Stream)?;
                deliver(socket, &chunk).await.map_err(RelayError::Socket)?;
            }
        }
    }
}

/// Ends writing. One that is closed altogether has ended as well.
fn shut_down(socket: &UnixStream) -> io::Result<()> {
    let twin = StdStream::from(socket.as_fd().try_clone_to_owned()?);
    match twin.shutdown(std::net::Shutdown::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}

/// Writes all of it; nothing more where nobody takes it, of which the other direction tells.
async fn deliver(socket: &UnixStream, mut chunk: &[u8]) -> io::Result<()> {
    while !chunk.is_empty() {
        socket.writable().await?;
        match socket.try_write(chunk) {
            Ok(written) => chunk = chunk.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if nobody_reads(error.kind()) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn nobody_reads(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests;
