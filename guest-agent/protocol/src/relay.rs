//! Forwards a connection of a unix socket between host and guest. Both ends run the same code.
//!
//! Data travels as frames of at most [`MAX_CHUNK`] bytes. A frame of length 0 ends its direction, as shutdown(2) of
//! writing does. An end that has sent its frame of length 0 and delivered the other's sends a second one: everything
//! has arrived. It sends [`GONE`] instead when its socket is closed in both directions, which unix(7) distinguishes:
//! nothing more can be delivered there. After either the stream is closed. A stream that is closed before was broken,
//! and so is the forwarded connection.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdStream;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::stream::{END, MAX_CHUNK};

/// Sent instead of a frame's length: the socket at the sender's end is closed in both directions.
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
    /// The other end closed the stream before both directions had ended.
    #[error("the other end closed the stream before both directions had ended")]
    Cut,
}

/// Copies bytes until both directions have ended, or one socket is closed in both directions. Buffers only the chunk
/// that is being copied.
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
                // It has got our last frame, and need not send one.
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
            // It was closed with data unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break true,
            Err(error) => return Err(RelayError::Socket(error)),
        }
    };
    send_word(stream, END).await?;
    let last = tokio::select! {
        hung_up = hung_up(socket), if !gone => hung_up.map(|()| GONE).map_err(RelayError::Socket)?,
        Ok(()) = peer_has_ended, if !gone => END,
        else => GONE,
    };
    send_word(stream, last).await
}

async fn send_word<W: AsyncWrite + Unpin>(stream: &mut W, word: [u8; 4]) -> Result<(), RelayError> {
    stream.write_all(&word).await.map_err(RelayError::Stream)?;
    stream.flush().await.map_err(RelayError::Stream)
}

/// Reads the next data of the socket as a frame; a frame of length 0 at its end.
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

/// Waits until the other end is closed in both directions, not only for writing (EPOLLHUP of epoll(7)).
async fn hung_up(socket: &UnixStream) -> io::Result<()> {
    // A duplicate has a readiness of its own: clearing that of `socket` would disturb the task that writes to it.
    let twin = StdStream::from(socket.as_fd().try_clone_to_owned()?);
    let twin = UnixStream::from_std(twin)?;
    loop {
        if twin.ready(Interest::WRITABLE).await?.is_write_closed() {
            return Ok(());
        }
        // Clears the readiness for writing, to wait for the next event.
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
            // After its end: the close of the stream has overtaken the last frame.
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
                // Nobody receives this when this end's socket is closed.
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

/// Shuts the socket down for writing. No-op if it is closed.
fn shut_down(socket: &UnixStream) -> io::Result<()> {
    let twin = StdStream::from(socket.as_fd().try_clone_to_owned()?);
    match twin.shutdown(std::net::Shutdown::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}

/// Writes all of the chunk. Discards it when the socket is closed for reading: the other direction reports that.
async fn deliver(socket: &UnixStream, mut chunk: &[u8]) -> io::Result<()> {
    while !chunk.is_empty() {
        socket.writable().await?;
        match socket.try_write(chunk) {
            Ok(written) => chunk = chunk.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if is_closed(error.kind()) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_closed(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests;
