//! Copies one stream. What comes from the guest is bounded before it is read, and written out before more is taken.

use std::fs::File;
use std::future::Future;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::stream::{END, MAX_CHUNK};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::warn;

use super::fifo::{FifoReader, FifoWriter};

/// How long an ended process's stream may be silent before it counts as ended: the guest sends its end as soon as
/// the process is reaped and the pipe empty, unless the guest is starved or lies.
const SILENT_AFTER_EXIT: Duration = Duration::from_secs(10);
/// The same once the VM is gone: what has reached the host is there already.
const SILENT_AFTER_CUT: Duration = Duration::from_millis(200);
/// How long a reader of ours may hold up the last bytes of a VM that is gone.
const STUCK_AFTER_CUT: Duration = Duration::from_secs(5);
/// How long the guest may take to acknowledge the end of stdin.
const ACK_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of stdin taken at once.
const STDIN_CHUNK: usize = 16 * 1024;

/// What may still come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Everything: the process lives.
    Alive,
    /// The rest of the output: the process has ended.
    Ending,
    /// What has reached the host: the VM is gone.
    Cut,
}

/// Whose stream it is, for the log.
#[derive(Debug)]
pub(super) struct Label {
    pub(super) process: Arc<str>,
    pub(super) stream: &'static str,
}

/// Where output goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// containerd's FIFO.
    Fifo(FifoWriter),
    /// A plain file, which does not make us wait.
    File(File),
}

impl Sink {
    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Fifo(fifo) => fifo.write_all(bytes).await,
            Self::File(file) => file.write_all(bytes),
        }
    }

    async fn finish(self) {
        match self {
            Self::Fifo(fifo) => fifo.finish().await,
            Self::File(file) => drop(file),
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
    #[error("cannot write to the host's end")]
    Write(#[source] io::Error),
    #[error("nobody takes the last output")]
    Stuck,
}

/// Waits for `work` as long as the phase allows; a change of phase starts the patience anew.
async fn patiently<F: Future>(
    phase: &mut watch::Receiver<Phase>,
    patience: fn(Phase) -> Option<Duration>,
    work: F,
) -> Option<F::Output> {
    tokio::pin!(work);
    loop {
        let patience = patience(*phase.borrow_and_update());
        let bored = async {
            match patience {
                Some(time) => sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            done = &mut work => return Some(done),
            () = bored => return None,
            changed = phase.changed() => if changed.is_err() { return None },
        }
    }
}

fn for_guest(phase: Phase) -> Option<Duration> {
    match phase {
        Phase::Alive => None,
        Phase::Ending => Some(SILENT_AFTER_EXIT),
        Phase::Cut => Some(SILENT_AFTER_CUT),
    }
}

fn for_host(phase: Phase) -> Option<Duration> {
    match phase {
        Phase::Alive | Phase::Ending => None,
        Phase::Cut => Some(STUCK_AFTER_CUT),
    }
}

fn for_input(phase: Phase) -> Option<Duration> {
    match phase {
        Phase::Alive => None,
        Phase::Ending | Phase::Cut => Some(Duration::ZERO),
    }
}

/// Copies stdout or stderr until its end mark, then lets go of the host's end.
pub(super) async fn output(
    label: Label,
    mut guest: UnixStream,
    mut sink: Sink,
    mut phase: watch::Receiver<Phase>,
) {
    let copied = copy_out(&mut guest, &mut sink, &mut phase).await;
    // After an end mark the guest waits for this close: all its bytes have been taken.
    drop(guest);
    if let Err(fault) = copied {
        if *phase.borrow() != Phase::Cut {
            let error = crate::error::chain(&fault);
            warn!(process = %label.process, stream = label.stream, error, "output ended early");
        }
        // containerd never opens its end again: keep ours until the process has ended (fact 4.4).
        while *phase.borrow_and_update() == Phase::Alive && phase.changed().await.is_ok() {}
    }
    sink.finish().await;
}

async fn copy_out(
    guest: &mut UnixStream,
    sink: &mut Sink,
    phase: &mut watch::Receiver<Phase>,
) -> Result<(), Fault> {
    loop {
        let head = patiently(phase, for_guest, guest.read_u32_le()).await;
        let length = head.ok_or(Fault::Silent)?.map_err(Fault::Broken)?;
        if length == 0 {
            return Ok(());
        }
        if length > MAX_CHUNK {
            return Err(Fault::Oversized(length));
        }
        // In pieces as they come: what the guest has sent of a chunk is delivered even if the rest never comes.
        let mut left = usize::try_from(length).unwrap_or_default();
        let mut buffer = vec![0; left];
        while left > 0 {
            let space = buffer.get_mut(..left).unwrap_or_default();
            let read = patiently(phase, for_guest, guest.read(space)).await;
            let count = match read.ok_or(Fault::Silent)?.map_err(Fault::Broken)? {
                0 => return Err(Fault::Broken(io::ErrorKind::UnexpectedEof.into())),
                count => count,
            };
            let bytes = buffer.get(..count).unwrap_or_default();
            let written = patiently(phase, for_host, sink.write_all(bytes)).await;
            written.ok_or(Fault::Stuck)?.map_err(Fault::Write)?;
            left = left.saturating_sub(count);
        }
    }
}

/// Copies stdin until its end, or until the process no longer takes it.
pub(super) async fn input(
    label: Label,
    fifo: FifoReader,
    mut guest: UnixStream,
    mut phase: watch::Receiver<Phase>,
) {
    if let Err(error) = copy_in(&fifo, &mut guest, &mut phase).await {
        warn!(process = %label.process, stream = label.stream, %error, "input ended early");
    }
}

async fn copy_in(
    fifo: &FifoReader,
    guest: &mut UnixStream,
    phase: &mut watch::Receiver<Phase>,
) -> io::Result<()> {
    let (mut from_guest, mut to_guest) = guest.split();
    // The guest sends nothing on this stream: whatever comes is its close.
    let mut nothing = [0; 1];
    loop {
        let bytes = tokio::select! {
            bytes = patiently(phase, for_input, fifo.read(STDIN_CHUNK)) => match bytes {
                Some(bytes) => bytes?,
                None => return Ok(()),
            },
            _closed = from_guest.read(&mut nothing) => return Ok(()),
        };
        if bytes.is_empty() {
            break;
        }
        let length = u32::try_from(bytes.len()).unwrap_or_default().to_le_bytes();
        let send = async {
            to_guest.write_all(&length).await?;
            to_guest.write_all(&bytes).await
        };
        let sent = tokio::select! {
            sent = patiently(phase, for_input, send) => sent,
            _closed = from_guest.read(&mut nothing) => return Ok(()),
        };
        match sent {
            Some(Ok(())) => {}
            Some(Err(error)) => return unless_closed(error),
            None => return Ok(()),
        }
    }
    let end = async {
        to_guest.write_all(&END).await?;
        from_guest.read(&mut nothing).await
    };
    // The guest may have gone before it acknowledged: nothing is lost by that.
    drop(tokio::time::timeout(ACK_PATIENCE, patiently(phase, for_input, end)).await);
    Ok(())
}

/// A process may close its stdin, or end, at any time.
fn unless_closed(error: io::Error) -> io::Result<()> {
    let closed = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
    if closed.contains(&error.kind()) { Ok(()) } else { Err(error) }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
