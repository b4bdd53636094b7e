//! containerd's FIFOs, opened so that the absence of either side blocks nothing, breaks nothing and loses no byte
//! (facts 4.1 to 4.4).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::time::sleep;

use crate::runtime::backoff::Backoff;

/// Pauses between checks whether containerd has come back for the last bytes.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(250));

fn open(path: &Path, access: OFlags) -> io::Result<OwnedFd> {
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    if kind == FileType::Fifo {
        Ok(fd)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a FIFO"))
    }
}

/// The writing end of stdout or stderr, with a reading end kept open beside it: while containerd is away, writing
/// fills the pipe instead of failing.
#[derive(Debug)]
pub(crate) struct FifoWriter {
    write: Sender,
    read: OwnedFd,
}

impl FifoWriter {
    /// Opens both ends. The reading end comes first: opening the writing end alone can fail with ENXIO.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let read = open(path, OFlags::RDONLY)?;
        Ok(Self { write: Sender::from_owned_fd(open(path, OFlags::WRONLY)?)?, read })
    }

    /// Writes all of it, waiting while the pipe is full.
    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write.write_all(bytes).await
    }

    /// Closes as soon as there is a reader for what is left: a FIFO that nobody has open loses its bytes.
    pub(crate) async fn finish(self) {
        let Self { write, read } = self;
        drop(read);
        let mut pauses = PAUSES;
        while has_unread(&write) && !has_reader(&write) {
            sleep(pauses.pause()).await;
        }
    }
}

/// Whether the pipe holds bytes; an error counts as no, so that it never holds a stream open.
fn has_unread(write: &Sender) -> bool {
    rustix::io::ioctl_fionread(write).is_ok_and(|bytes| bytes > 0)
}

/// Whether somebody has the reading end open: otherwise the writing end polls as POLLERR (pipe(7), poll(2)).
fn has_reader(write: &Sender) -> bool {
    let mut fds = [PollFd::new(write, PollFlags::OUT)];
    let polled = poll(&mut fds, Some(&Timespec::default()));
    polled.is_err() || fds.iter().all(|fd| !fd.revents().contains(PollFlags::ERR))
}

/// The reading end of stdin.
#[derive(Debug)]
pub(crate) struct FifoReader {
    read: Receiver,
}

impl FifoReader {
    /// Opens the FIFO, and a writing end to be kept until CloseIO: without one, containerd's absence reads as the
    /// end of the input.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, OwnedFd)> {
        let read = Receiver::from_owned_fd(open(path, OFlags::RDONLY)?)?;
        let hold = open(path, OFlags::WRONLY)?;
        Ok((Self { read }, hold))
    }

    /// Waits for bytes, or for the end of the input (an empty answer), and takes at most `limit` of them. No
    /// memory is held while there is nothing to read.
    pub(crate) async fn read(&self, limit: usize) -> io::Result<Vec<u8>> {
        loop {
            self.read.readable().await?;
            let mut buffer = vec![0; limit];
            match self.read.try_read(&mut buffer) {
                Ok(count) => {
                    buffer.truncate(count);
                    return Ok(buffer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
