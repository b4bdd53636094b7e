//! Copies bytes between a process and its streams.
//!
//! Only the chunk that is being copied is buffered: when the host does not read, the pipe fills up and the process
//! blocks, as with any slow reader.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bulkhead_protocol::stream::{END, MAX_CHUNK};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::registry::{StreamKey, StreamRegistry};

/// Bytes of a frame's length.
const HEADER: usize = END.len();
/// How much a terminal can hold: the buffers of line discipline and driver.
const TERMINAL_CAPACITY: usize = 128 * 1024;

/// Our end of a pipe, or of a terminal.
pub(crate) type End = Arc<AsyncFd<OwnedFd>>;

/// Sends what the process writes, and the end of the stream, to the current connection. Runs until it is aborted: when
/// a connection breaks, the next one gets what was not sent.
///
/// The stream ends with the end of the file or, once `writers_gone` is true, with what is in the pipe: a child that
/// still has the pipe open must not keep the stream open.
pub(super) async fn output<S>(
    registry: Arc<StreamRegistry<S>>,
    key: StreamKey,
    end: End,
    writers_gone: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut source = Source { end: Some(end), writers_gone, left: None };
    let mut unsent = Vec::new();
    loop {
        let mut connection = registry.take(&key).await;
        match send(&mut connection, &mut source, &mut unsent).await {
            Ok(()) => tracing::trace!(%key, "the stream has ended"),
            Err(error) => tracing::debug!(%key, %error, "the stream broke, waiting for another connection"),
        }
    }
}

/// Discards what the process writes to a terminal whose output is not wanted, so that it does not block.
pub(super) async fn discard(end: End, writers_gone: watch::Receiver<bool>) {
    let mut source = Source { end: Some(end), writers_gone, left: None };
    let mut buffer = vec![0; 4096];
    while source.next(&mut buffer).await.is_some() {}
}

async fn send<S>(connection: &mut S, source: &mut Source, unsent: &mut Vec<u8>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut chunk = vec![0; MAX_CHUNK as usize];
    loop {
        if unsent.is_empty() {
            let Some(length) = source.next(&mut chunk).await else { break };
            let data = chunk.get(..length).unwrap_or_default();
            unsent.reserve_exact(HEADER + length);
            unsent.extend_from_slice(&u32::try_from(length).unwrap_or(0).to_le_bytes());
            unsent.extend_from_slice(data);
        }
        connection.write_all(unsent).await?;
        unsent.clear();
    }
    drop(chunk);
    unsent.shrink_to_fit();
    connection.write_all(&END).await?;
    connection.flush().await?;
    // The receiver closes after the end; an error counts as that.
    connection.read_u8().await.map_or(Ok(()), |_| Ok(()))
}

/// The output of a process.
struct Source {
    /// None once the end was read: it is closed then, so that late writers get an error.
    end: Option<End>,
    writers_gone: watch::Receiver<bool>,
    /// How many bytes may still be in the pipe, once no process writes any more.
    left: Option<usize>,
}

impl Source {
    /// Reads the next bytes into the buffer and returns how many; none at the end.
    async fn next(&mut self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            let end = self.end.clone()?;
            if *self.writers_gone.borrow() {
                return self.read_remaining(&end, buffer);
            }
            // A read that is cancelled has read nothing, so nothing is lost.
            let read = tokio::select! {
                biased;
                read = read_ready(&end, buffer) => Some(read.unwrap_or(0)),
                // A closed channel: the process was deleted, and this task is about to be aborted.
                changed = self.writers_gone.wait_for(|writers_gone| *writers_gone) => changed.is_err().then_some(0),
            };
            match read {
                Some(0) => return self.finish(),
                Some(length) => return Some(length),
                None => {}
            }
        }
    }

    /// Reads from the kernel directly: the runtime's view of readiness may be older than the last write.
    fn read_remaining(&mut self, end: &End, buffer: &mut [u8]) -> Option<usize> {
        let left = self
            .left
            .unwrap_or_else(|| rustix::pipe::fcntl_getpipe_size(end.get_ref()).unwrap_or(TERMINAL_CAPACITY));
        let length = left.min(buffer.len());
        match buffer.get_mut(..length).map(|buffer| read(end.get_ref(), buffer)) {
            Some(Ok(read @ 1..)) => {
                self.left = Some(left.saturating_sub(read));
                Some(read)
            }
            Some(Ok(0) | Err(_)) | None => self.finish(),
        }
    }

    fn finish(&mut self) -> Option<usize> {
        self.end = None;
        None
    }
}

async fn read_ready(end: &End, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = end.readable().await?;
        if let Ok(read) = ready.try_io(|end| read(end.get_ref(), buffer)) {
            return read;
        }
    }
}

/// Of a terminal whose other end is closed read(2) returns EIO, of a pipe 0; both are the end.
fn read(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(&fd, &mut *buffer) {
            Err(Errno::INTR) => {}
            Err(Errno::IO) => return Ok(0),
            other => return other.map_err(io::Error::from),
        }
    }
}

/// Writes what the host sends to the process, until the host ends the stream; then the process's stdin is closed. When
/// the process reads no more, the rest is discarded: the host must not block.
pub(super) async fn input<S>(registry: Arc<StreamRegistry<S>>, key: StreamKey, end: End)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut sink = Some(end);
    loop {
        let mut connection = registry.take(&key).await;
        match receive(&mut connection, &mut sink).await {
            Ok(()) => {
                tracing::trace!(%key, "the stream has ended");
                return;
            }
            Err(error) => tracing::debug!(%key, %error, "the stream broke, waiting for another connection"),
        }
    }
}

async fn receive<S>(connection: &mut S, sink: &mut Option<End>) -> io::Result<()>
where
    S: AsyncRead + Unpin,
{
    let mut chunk = Vec::new();
    loop {
        let length = connection.read_u32_le().await?;
        if length == 0 {
            return Ok(());
        }
        if length > MAX_CHUNK {
            let text = format!("a chunk of {length} bytes, at most {MAX_CHUNK} are allowed");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        chunk.resize(length as usize, 0);
        connection.read_exact(&mut chunk).await?;
        let taken = match sink {
            Some(end) => write_all(end, &chunk).await,
            None => Ok(()),
        };
        if taken.is_err() {
            *sink = None;
        }
    }
}

async fn write_all(end: &End, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let mut ready = end.writable().await?;
        match ready.try_io(|end| rustix::io::write(end.get_ref(), data).map_err(io::Error::from)) {
            Ok(Ok(written)) => data = data.get(written..).unwrap_or_default(),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
