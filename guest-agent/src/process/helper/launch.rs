//! Starting a helper and hearing its report.

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

/// A report longer than this is no report.
const MAX_REPORT: usize = 64 * 1024;

/// A helper that did not do its job.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("make a pipe for the helper's report")]
    MakePipe(#[source] io::Error),
    #[error("start a helper")]
    Spawn(#[source] io::Error),
    #[error("read the helper's report")]
    Read(#[source] io::Error),
    #[error("the helper ended with status {status} and without a report")]
    Silent { status: u32 },
    #[error("{0}")]
    Refused(String),
}

/// The three standard streams of what the helper makes; it has them itself until then.
#[derive(Debug)]
pub(crate) struct Stdio {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Stdio {
    /// All three are /dev/null.
    pub(crate) fn null() -> io::Result<Self> {
        Ok(Self { stdin: null()?, stdout: null()?, stderr: null()? })
    }
}

/// /dev/null, open for both directions.
pub(crate) fn null() -> io::Result<OwnedFd> {
    std::fs::File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from)
}

/// What the helper made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Launched {
    /// In the guest's initial pid namespace.
    pub(crate) pid: u32,
    /// CLOCK_BOOTTIME before the process can have existed.
    pub(crate) since_nanos: u64,
}

/// Runs a job in a helper.
pub(crate) async fn launch(reaper: &Reaper, job: &Job, stdio: Stdio) -> Result<Launched, LaunchError> {
    let since_nanos = clock::boot_nanos();
    let (reader, writer) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| LaunchError::MakePipe(errno.into()))?;
    let helper = spawn(job, stdio, &writer).map_err(LaunchError::Spawn)?;
    let ended = reaper.claim(helper, since_nanos);
    drop(writer);
    let mut reader = pipe::Receiver::from_owned_fd(reader).map_err(LaunchError::MakePipe)?;
    let mut bytes = Vec::new();
    // The process that the helper makes inherits the pipe until it executes its program: no report can be read to
    // the end of the file, and a helper that crashed is heard of by its own end.
    let report = tokio::select! {
        biased;
        report = read(&mut reader, &mut bytes) => report?,
        exit = ended => {
            let status = exit.map_or(255, |exit| exit.status);
            late(&reader, &mut bytes).ok_or(LaunchError::Silent { status })?
        }
    };
    let pid = report.map_err(LaunchError::Refused)?;
    Ok(Launched { pid, since_nanos })
}

fn spawn(job: &Job, stdio: Stdio, report: &OwnedFd) -> io::Result<u32> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(report_argument(report.as_raw_fd())).args(job.args());
    command.stdin(stdio.stdin).stdout(stdio.stdout).stderr(stdio.stderr).env_clear();
    // Nothing else in this process forks between these two lines: helpers are started by the one runtime thread.
    let flags = fcntl_getfd(report)?;
    fcntl_setfd(report, flags.difference(FdFlags::CLOEXEC))?;
    let child = command.spawn();
    fcntl_setfd(report, flags)?;
    // The reaper waits for it; the handle needs no clean-up.
    child.map(|child| child.id())
}

async fn read(reader: &mut pipe::Receiver, bytes: &mut Vec<u8>) -> Result<Report, LaunchError> {
    loop {
        if let Some(report) = decode(bytes) {
            return Ok(report);
        }
        let read = reader.read_buf(bytes).await.map_err(LaunchError::Read)?;
        if read == 0 || bytes.len() > MAX_REPORT {
            return Err(LaunchError::Silent { status: 255 });
        }
    }
}

/// What a helper that has ended left in the pipe. Asked of the kernel, not of the runtime: that the pipe is readable may
/// be news that the runtime has yet to hear, and until then it says that nothing is there.
fn late(reader: &pipe::Receiver, bytes: &mut Vec<u8>) -> Option<Report> {
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
    async fn a_report_that_the_runtime_has_not_heard_of_is_not_lost() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let reader = pipe::Receiver::from_owned_fd(reader).unwrap();
        rustix::io::write(&writer, &encode(&Ok(77))).unwrap();
        // The runtime has not looked at the pipe since.
        assert!(reader.try_read(&mut [0; 8]).is_err(), "it has looked: the test shows nothing");
        assert_eq!(late(&reader, &mut Vec::new()), Some(Ok(77)));
        assert_eq!(late(&reader, &mut Vec::new()), None, "and an empty pipe is no report");
    }
}
