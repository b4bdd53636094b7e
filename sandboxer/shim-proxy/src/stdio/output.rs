//! Copies stdout or stderr. What comes from the guest is bounded before it is read, and written out before more is
//! taken.

use std::fs::File;
use std::io::{self, Write};

use bulkhead_protocol::stream::MAX_CHUNK;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tracing::{debug, warn};

use super::deadlines::{Patience, Phase};
use super::fifo::FifoWriter;
use super::guest_stream::Port;
use super::streamed::Outlet;

/// Most that an ended process can have left behind, in bytes, with room to spare: pipe and socket buffers of guest
/// and host hold well under 1 MiB. More is written by somebody else, who must not hold the stream open.
const LEFT_AFTER_EXIT: u64 = 16 * 1024 * 1024;

/// Where output goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// containerd's FIFO.
    Fifo(FifoWriter),
    /// A plain file, which does not make us wait.
    File(File),
    /// containerd's stream.
    Streamed(Outlet),
}

impl Sink {
    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Fifo(fifo) => fifo.write_all(bytes).await,
            Self::File(file) => file.write_all(bytes),
            Self::Streamed(outlet) => {
                outlet.write_all(bytes).await;
                Ok(())
            }
        }
    }

    async fn finish(self) {
        match self {
            Self::Fifo(fifo) => fifo.finish().await,
            Self::File(file) => drop(file),
            Self::Streamed(outlet) => outlet.finish(),
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

/// Copies until the end mark, through broken connections, then lets go of the host's end.
pub(super) async fn output(mut port: Port, mut guest: UnixStream, mut sink: Sink, mut patience: Patience) {
    let mut copy = Copy::default();
    let copied = loop {
        match copy.run(&mut port, &mut guest, &mut sink, &mut patience).await {
            Err(Fault::Broken(error)) if patience.phase() != Phase::Cut => {
                debug!(stream = port.name(), %error, "broken, dialling again");
                match patience.guest(port.reconnect()).await {
                    // The guest sends a chunk again that it could not send whole.
                    Some(again) => (guest, copy.partial) = (again, Vec::new()),
                    None => break Err(Fault::Broken(error)),
                }
            }
            ended => break ended,
        }
    };
    // After an end mark the guest waits for this close: all its bytes have been taken.
    drop(guest);
    if let Err(fault) = copied {
        if patience.phase() != Phase::Cut {
            warn!(stream = port.name(), error = crate::error::chain(&fault), "output ended early");
        }
        // The beginning of a chunk is better than nothing; a host's end that takes nothing has been told above.
        drop(patience.host(sink.write_all(&copy.partial)).await);
        // containerd never opens its end again: keep ours until the process has ended (fact 4.4).
        patience.alive(std::future::pending::<()>()).await;
    }
    sink.finish().await;
}

/// What is carried over from one connection to the next.
#[derive(Default)]
struct Copy {
    /// What has come of the chunk under way.
    partial: Vec<u8>,
    /// Bytes since the exit.
    after_exit: u64,
}

impl Copy {
    async fn run(
        &mut self,
        port: &mut Port,
        guest: &mut UnixStream,
        sink: &mut Sink,
        patience: &mut Patience,
    ) -> Result<(), Fault> {
        loop {
            let head = patience.guest(guest.read_u32_le()).await;
            let length = head.ok_or(Fault::Silent)?.map_err(Fault::Broken)?;
            if length == 0 {
                return Ok(());
            }
            if length > MAX_CHUNK {
                return Err(Fault::Oversized(length));
            }
            if patience.phase() != Phase::Alive {
                self.after_exit += u64::from(length);
                if self.after_exit > LEFT_AFTER_EXIT {
                    return Err(Fault::Endless);
                }
            }
            self.chunk(length, guest, patience).await?;
            port.works();
            let chunk = std::mem::take(&mut self.partial);
            let written = patience.host(sink.write_all(&chunk)).await;
            written.ok_or(Fault::Stuck)?.map_err(Fault::Write)?;
        }
    }

    /// Reads a chunk of `length` bytes into `partial`. No memory is held between chunks.
    async fn chunk(
        &mut self,
        length: u32,
        guest: &mut UnixStream,
        patience: &mut Patience,
    ) -> Result<(), Fault> {
        let mut rest = guest.take(u64::from(length));
        self.partial.reserve_exact(usize::try_from(length).unwrap_or_default());
        while rest.limit() > 0 {
            let read = patience.guest(rest.read_buf(&mut self.partial)).await;
            if read.ok_or(Fault::Silent)?.map_err(Fault::Broken)? == 0 {
                return Err(Fault::Broken(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(())
    }
}
