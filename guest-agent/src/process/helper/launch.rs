//! Starts a helper and reads its report.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::child::report_argument;
use super::{Job, Report, decode};
use crate::kernel::clock;
use crate::process::reaper::Reaper;

/// Longest report, in bytes.
const MAX_REPORT: usize = 64 * 1024;

/// A helper failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("make a pipe for the helper's report")]
    MakePipe(#[source] io::Error),
    #[error("start a helper")]
    Spawn(#[source] io::Error),
    #[error("read the helper's report")]
    Read(#[source] io::Error),
    #[error("the helper ended with status {status} and without a report")]
    NoReport { status: u32 },
    #[error("{0}")]
    Refused(String),
}

/// The three standard streams of the process that the helper makes, and of the helper itself.
#[derive(Debug)]
pub(crate) struct Stdio {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Stdio {
    /// /dev/null for all three.
    pub(crate) fn null() -> io::Result<Self> {
        Ok(Self { stdin: null()?, stdout: null()?, stderr: null()? })
    }
}

/// /dev/null, opened for reading and writing.
pub(crate) fn null() -> io::Result<OwnedFd> {
    std::fs::File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from)
}

/// The process that the helper made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Launched {
    /// Its pid in the guest's initial pid namespace.
    pub(crate) pid: u32,
    /// A CLOCK_BOOTTIME at which the process did not exist yet.
    pub(crate) since_nanos: u64,
}

/// Runs a job in a helper and waits for its report.
pub(crate) async fn launch(reaper: &Reaper, job: &Job, stdio: Stdio) -> Result<Launched, LaunchError> {
    let since_nanos = clock::boot_nanos();
    let (reader, writer) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| LaunchError::MakePipe(errno.into()))?;
    let helper = spawn(job, stdio, &writer).map_err(LaunchError::Spawn)?;
    let ended = reaper.claim(helper, since_nanos);
    drop(writer);
    let mut reader = pipe::Receiver::from_owned_fd(reader).map_err(LaunchError::MakePipe)?;
    let mut bytes = Vec::new();
    // The process that the helper makes inherits the pipe until it executes its program. So the end of the report is
    // not the end of the file, and the crash of a helper shows in its exit, not in the pipe.
    let report = tokio::select! {
        biased;
        report = read(&mut reader, &mut bytes) => report?,
        exit = ended => {
            let status = exit.map_or(255, |exit| exit.status);
            read_remaining(&reader, &mut bytes).ok_or(LaunchError::NoReport { status })?
        }
    };
    let pid = report.map_err(LaunchError::Refused)?;
    Ok(Launched { pid, since_nanos })
}

fn spawn(job: &Job, stdio: Stdio, report: &OwnedFd) -> io::Result<u32> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(report_argument(report.as_raw_fd())).args(job.args());
    command.stdin(stdio.stdin).stdout(stdio.stdout).stderr(stdio.stderr).env_clear();
    // Only the one runtime thread starts helpers, so no other child inherits the descriptor meanwhile.
    let flags = fcntl_getfd(report)?;
    fcntl_setfd(report, flags.difference(FdFlags::CLOEXEC))?;
    let child = command.spawn();
    fcntl_setfd(report, flags)?;
    // The reaper waits for it, not this handle.
    child.map(|child| child.id())
}

async fn read(reader: &mut pipe::Receiver, bytes: &mut Vec<u8>) -> Result<Report, LaunchError> {
    loop {
        if let Some(report) = decode(bytes) {
            return Ok(report);
        }
        let read = reader.read_buf(bytes).await.map_err(LaunchError::Read)?;
        if read == 0 || bytes.len() > MAX_REPORT {
            return Err(LaunchError::NoReport { status: 255 });
        }
    }
}

/// Reads what a helper that has ended left in the pipe. Reads from the kernel directly: the runtime may not have seen
/// yet that the pipe is readable, and would say that there is nothing.
fn read_remaining(reader: &pipe::Receiver, bytes: &mut Vec<u8>) -> Option<Report> {
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = rustix::io::read(reader, &mut chunk) {
        bytes.extend_from_slice(chunk.get(..count)?);
    }
    decode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::helper::encode;

    #[tokio::test]
    async fn a_report_is_read_before_the_runtime_sees_the_pipe_readable() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let reader = pipe::Receiver::from_owned_fd(reader).unwrap();
        rustix::io::write(&writer, &encode(&Ok(77))).unwrap();
        // The runtime has not polled the pipe since.
        assert!(reader.try_read(&mut [0; 8]).is_err(), "it has polled the pipe: the test shows nothing");
        assert_eq!(read_remaining(&reader, &mut Vec::new()), Some(Ok(77)));
        assert_eq!(read_remaining(&reader, &mut Vec::new()), None, "and an empty pipe is no report");
    }
}
