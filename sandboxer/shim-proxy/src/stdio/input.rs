//! Copies stdin until its end or the end of the process.

use std::io;
use std::time::Duration;

use bulkhead_protocol::stream::END;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::deadlines::Deadlines;
use super::fifo::FifoReader;
use super::guest_stream::GuestStream;
use super::streamed::StreamReader;

/// Bytes taken from the host's end at once.
const CHUNK: usize = 16 * 1024;
/// How long the guest may take to acknowledge the end.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);

/// Where input comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// containerd's FIFO.
    Fifo(FifoReader),
    /// containerd's streaming service.
    Streamed(StreamReader),
}

impl Source {
    /// Waits for bytes, or for the end of the input (an empty answer), and takes at most `limit` of them. Can be
    /// dropped while it waits.
    async fn read(&mut self, limit: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::Fifo(fifo) => fifo.read(limit).await,
            Self::Streamed(reader) => Ok(reader.read(limit).await),
        }
    }
}

/// Copies until the end of the input is acknowledged, through broken connections.
pub(super) async fn input(
    mut stream: GuestStream,
    mut source: Source,
    mut guest: UnixStream,
    mut deadlines: Deadlines,
) {
    let mut unsent = Vec::new();
    loop {
        let Some(copied) = deadlines.alive(copy(&mut stream, &mut source, &mut guest, &mut unsent)).await
        else {
            return;
        };
        match copied {
            Ok(()) => return,
            Err(Fault::Read(error)) => {
                warn!(stream = stream.name(), %error, "cannot read the host's end, input ends here");
                return;
            }
            Err(Fault::Broken) => {
                debug!(stream = stream.name(), "broken, dialling again");
                match deadlines.alive(stream.reconnect()).await {
                    Some(again) => guest = again,
                    None => return,
                }
            }
        }
    }
}

enum Fault {
    Read(io::Error),
    Broken,
}

/// `unsent` is the frame that the last connection did not take whole. The guest has discarded its beginning, so it is
/// sent again from the start.
async fn copy(
    stream: &mut GuestStream,
    source: &mut Source,
    guest: &mut UnixStream,
    unsent: &mut Vec<u8>,
) -> Result<(), Fault> {
    let (mut from_guest, mut to_guest) = guest.split();
    // The guest sends nothing on this stream: a read returns only when the guest has closed it.
    let mut nothing = [0; 1];
    loop {
        if unsent.is_empty() {
            let bytes = tokio::select! {
                bytes = source.read(CHUNK) => bytes.map_err(Fault::Read)?,
                _closed = from_guest.read(&mut nothing) => return Err(Fault::Broken),
            };
            unsent.reserve_exact(bytes.len() + END.len());
            unsent.extend(u32::try_from(bytes.len()).unwrap_or_default().to_le_bytes());
            unsent.extend(bytes);
        }
        let sent = tokio::select! {
            sent = to_guest.write_all(unsent) => sent,
            _closed = from_guest.read(&mut nothing) => return Err(Fault::Broken),
        };
        sent.map_err(|_broken| Fault::Broken)?;
        stream.works();
        if unsent.as_slice() == END {
            // The guest closes once it has passed the end on. If it does not, nothing is lost by ending here.
            drop(timeout(ACK_TIMEOUT, from_guest.read(&mut nothing)).await);
            return Ok(());
        }
        *unsent = Vec::new();
    }
}
