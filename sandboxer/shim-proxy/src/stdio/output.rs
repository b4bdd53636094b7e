//! Copies stdout or stderr. The size of a chunk is checked before the chunk is read, and the chunk is written before
//! the next one is read.

use std::fs::File;
use std::io::{self, Write};

use bulkhead_protocol::stream::MAX_CHUNK;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tracing::{debug, warn};

use super::deadlines::{Deadlines, Phase};
use super::fifo::FifoWriter;
use super::guest_stream::GuestStream;
use super::streamed::StreamWriter;

/// Most output after the exit of a process, in bytes. Pipe and socket buffers of guest and host hold well under 1 MiB;
/// what comes beyond the limit was written by another process, which must not hold the stream open.
const MAX_AFTER_EXIT: u64 = 16 * 1024 * 1024;

/// Where output goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// containerd's FIFO.
    Fifo(FifoWriter),
    /// A plain file; a write to it does not wait.
    File(File),
    /// containerd's streaming service.
    Streamed(StreamWriter),
}

impl Sink {
    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Fifo(fifo) => fifo.write_all(bytes).await,
            Self::File(file) => file.write_all(bytes),
            Self::Streamed(writer) => {
                writer.write_all(bytes).await;
                Ok(())
            }
        }
    }

    async fn finish(self) {
        match self {
            Self::Fifo(fifo) => fifo.finish().await,
            Self::File(file) => drop(file),
            Self::Streamed(writer) => writer.finish(),
        }
    }
}

/// Why a stream ended other than by its end mark.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("the guest closed the connection without an end mark")]
    Broken(#[source] io::Error),
    #[error("the guest sent a chunk of {0} bytes, at most {MAX_CHUNK} are allowed")]
    Oversized(u32),
    #[error("the guest sent no end mark")]
    Silent,
    #[error("the guest did not stop sending after the exit")]
    Endless,
    #[error("cannot write to the host's end")]
    Write(#[source] io::Error),
    #[error("nobody takes the last output")]
    Stuck,
}

/// Copies until the end mark, through broken connections, then closes the host's end.
pub(super) async fn output(
    mut stream: GuestStream,
    mut guest: UnixStream,
    mut sink: Sink,
    mut deadlines: Deadlines,
) {
    let mut copy = Copy::default();
    let copied = loop {
        match copy.run(&mut stream, &mut guest, &mut sink, &mut deadlines).await {
            Err(Fault::Broken(error)) if deadlines.phase() != Phase::Cut => {
                debug!(stream = stream.name(), %error, "broken, dialling again");
                match deadlines.guest(stream.reconnect()).await {
                    // The guest sends a chunk that it could not send whole once more.
                    Some(again) => (guest, copy.partial) = (again, Vec::new()),
                    None => break Err(Fault::Broken(error)),
                }
            }
            ended => break ended,
        }
    };
    // After its end mark the guest waits for this close, which says that all its bytes have been read.
    drop(guest);
    if let Err(fault) = copied {
        if deadlines.phase() != Phase::Cut {
            warn!(
                stream = stream.name(),
                error = bulkhead_protocol::error::chain(&fault),
                "output ended early"
            );
        }
        // The beginning of a chunk is better than nothing. That the host's end takes no bytes has been logged above.
        drop(deadlines.host(sink.write_all(&copy.partial)).await);
        // containerd never opens its end again: keep ours until the process has ended (fact 4.4).
        deadlines.alive(std::future::pending::<()>()).await;
    }
    sink.finish().await;
}

/// The progress of a copy, carried over from one connection to the next.
#[derive(Default)]
struct Copy {
    /// The part of the present chunk that has been read.
    partial: Vec<u8>,
    /// Bytes since the exit.
    after_exit: u64,
}

impl Copy {
    async fn run(
        &mut self,
        stream: &mut GuestStream,
        guest: &mut UnixStream,
        sink: &mut Sink,
        deadlines: &mut Deadlines,
    ) -> Result<(), Fault> {
        loop {
            let head = deadlines.guest(guest.read_u32_le()).await;
            let length = head.ok_or(Fault::Silent)?.map_err(Fault::Broken)?;
            if length == 0 {
                return Ok(());
            }
            if length > MAX_CHUNK {
                return Err(Fault::Oversized(length));
            }
            if deadlines.phase() != Phase::Alive {
                self.after_exit += u64::from(length);
                if self.after_exit > MAX_AFTER_EXIT {
                    return Err(Fault::Endless);
                }
            }
            self.read_chunk(length, guest, deadlines).await?;
            stream.works();
            let chunk = std::mem::take(&mut self.partial);
            let written = deadlines.host(sink.write_all(&chunk)).await;
            written.ok_or(Fault::Stuck)?.map_err(Fault::Write)?;
        }
    }

    /// Reads a chunk of `length` bytes into `partial`. No memory is held between chunks.
    async fn read_chunk(
        &mut self,
        length: u32,
        guest: &mut UnixStream,
        deadlines: &mut Deadlines,
    ) -> Result<(), Fault> {
        let mut rest = guest.take(u64::from(length));
        self.partial.reserve_exact(usize::try_from(length).unwrap_or_default());
        while rest.limit() > 0 {
            let read = deadlines.guest(rest.read_buf(&mut self.partial)).await;
            if read.ok_or(Fault::Silent)?.map_err(Fault::Broken)? == 0 {
                return Err(Fault::Broken(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(())
    }
}
