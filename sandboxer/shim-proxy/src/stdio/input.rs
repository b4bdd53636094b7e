//! Copies stdin, until its end or the end of the process.

use std::io;
use std::time::Duration;

use bulkhead_protocol::stream::END;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::fifo::FifoReader;
use super::guest::Port;
use super::patience::Patience;

/// Bytes taken from the FIFO at once.
const CHUNK: usize = 16 * 1024;
/// How long the guest may take to acknowledge the end.
const ACK_PATIENCE: Duration = Duration::from_secs(10);

/// Copies until the end of the input is acknowledged, through broken connections.
pub(super) async fn input(mut port: Port, fifo: FifoReader, mut guest: UnixStream, mut patience: Patience) {
    let mut unsent = Vec::new();
    loop {
        let Some(copied) = patience.alive(copy(&mut port, &fifo, &mut guest, &mut unsent)).await else {
            return;
        };
        match copied {
            Ok(()) => return,
            Err(Fault::Read(error)) => {
                warn!(stream = port.name(), %error, "cannot read the host's end, input ends here");
                return;
            }
            Err(Fault::Broken) => {
                debug!(stream = port.name(), "broken, dialling again");
                match patience.alive(port.reconnect()).await {
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

/// `unsent` is the frame that the last connection did not take whole: the guest has thrown its beginning away.
async fn copy(
    port: &mut Port,
    fifo: &FifoReader,
    guest: &mut UnixStream,
    unsent: &mut Vec<u8>,
) -> Result<(), Fault> {
    let (mut from_guest, mut to_guest) = guest.split();
    // The guest sends nothing on this stream: whatever comes is its close.
    let mut nothing = [0; 1];
    loop {
        if unsent.is_empty() {
            let bytes = tokio::select! {
                bytes = fifo.read(CHUNK) => bytes.map_err(Fault::Read)?,
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
        port.works();
        if unsent.as_slice() == END {
            // The guest closes once it has passed the end on. If it does not, nothing is lost by going.
            drop(timeout(ACK_PATIENCE, from_guest.read(&mut nothing)).await);
            return Ok(());
        }
        *unsent = Vec::new();
    }
}
