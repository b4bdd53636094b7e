//! Moving bytes between a process and its streams.
//!
//! Nothing is buffered beyond the chunk under way: a host that does not read leaves the pipe full, and the process
//! waits, as it would for any slow reader.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bulkhead_protocol::stream::{END, MAX_CHUNK};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::hub::{Hub, StreamKey};

/// Bytes of a frame's length.
const HEADER: usize = END.len();
/// What a terminal can hold beyond a pipe's capacity: the line discipline's and the driver's buffers.
const TERMINAL_CAPACITY: usize = 128 * 1024;

/// Our end of a pipe, or of a terminal.
pub(crate) type End = Arc<AsyncFd<OwnedFd>>;

/// Sends what the process writes, and the end of it, on whatever connection there is. Runs until it is aborted: a
/// connection that breaks is followed by the next, which gets what the last one did not.
///
/// `silent` says that nobody writes any more. Without it the end is the end of the file; with it, what is in the
/// pipe: a process that left its output to a child must not keep the stream open.
pub(super) async fn output<S>(hub: Arc<Hub<S>>, key: StreamKey, end: End, silent: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut source = Source { end: Some(end), silent, left: None };
    let mut unsent = Vec::new();
    loop {
        let mut connection = hub.take(&key).await;
        match send(&mut connection, &mut source, &mut unsent).await {
            Ok(()) => tracing::trace!(%key, "the stream has ended"),
            Err(error) => tracing::debug!(%key, %error, "the stream broke, waiting for another connection"),
        }
    }
}

/// Throws away what the process writes to a terminal that nobody wants to see, so that it does not wait for ever.
pub(super) async fn discard(end: End, silent: watch::Receiver<bool>) {
    let mut source = Source { end: Some(end), silent, left: None };
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
    // The receiver answers the end by closing; an error is a close as well.
    connection.read_u8().await.map_or(Ok(()), |_| Ok(()))
}

/// What a process writes, read as long as there can be more.
struct Source {
    /// Nothing once the end was seen; closing it then lets late writers know.
    end: Option<End>,
    silent: watch::Receiver<bool>,
    /// Bytes that may still be there, once nobody writes any more.
    left: Option<usize>,
}

impl Source {
    /// Fills the buffer with what there is next and says how much; nothing at the end.
    async fn next(&mut self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            let end = self.end.clone()?;
            if *self.silent.borrow() {
                return self.remains(&end, buffer);
            }
            // Nothing is lost with a read that is given up: it has read nothing then.
            let read = tokio::select! {
                biased;
                read = read_ready(&end, buffer) => Some(read.unwrap_or(0)),
                // A closed channel: the process object is gone, and this task is about to be.
                changed = self.silent.wait_for(|silent| *silent) => changed.is_err().then_some(0),
            };
            match read {
                Some(0) => return self.finish(),
                Some(length) => return Some(length),
                None => {}
            }
        }
    }

    /// Reads past the runtime's idea of readiness, which may be older than the last write.
    fn remains(&mut self, end: &End, buffer: &mut [u8]) -> Option<usize> {
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

/// A terminal whose other end is closed says EIO where a pipe says 0; both are the end.
fn read(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(&fd, &mut *buffer) {
            Err(Errno::INTR) => {}
            Err(Errno::IO) => return Ok(0),
            other => return other.map_err(io::Error::from),
        }
    }
}

/// Gives the process what the host sends, until the host says that it was all. The end then closes with the value.
/// A process that reads no more has the rest thrown away: the host must not wait for it.
pub(super) async fn input<S>(hub: Arc<Hub<S>>, key: StreamKey, end: End)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut sink = Some(end);
    loop {
        let mut connection = hub.take(&key).await;
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
