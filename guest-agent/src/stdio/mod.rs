//! Standard streams of processes: pipes or a terminal on the process's side, one vsock connection per stream on the
//! host's.

mod pump;
mod registry;
pub(crate) mod terminal;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bulkhead_protocol::agent::Stdio as Wanted;
use bulkhead_protocol::agent::stream_header::Kind;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_vsock::VsockStream;

pub(crate) use registry::{StreamKey, StreamRegistry};

use crate::kernel::syscalls;
use crate::process::helper::{Stdio, null};
use terminal::{ConsoleSocket, PtyError};

/// The stream registry of the guest.
pub(crate) type Streams = StreamRegistry<VsockStream>;

/// The streams of a process could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    #[error("make the process's pipes")]
    MakePipes(#[source] io::Error),
    #[error("give the process's streams to user {uid}")]
    GiveToUser { uid: u32, source: io::Error },
    #[error("watch the process's streams")]
    Watch(#[source] io::Error),
    #[error(transparent)]
    Terminal(#[from] PtyError),
}

/// The streams of a process that does not exist yet.
#[derive(Debug)]
pub(crate) enum PreparedStdio {
    /// Our ends of pipes, for the streams that are wanted.
    Pipes { stdin: Option<OwnedFd>, stdout: Option<OwnedFd>, stderr: Option<OwnedFd> },
    /// A terminal that libcontainer makes and hands over.
    Terminal { socket: ConsoleSocket, stdin: bool, stdout: bool, size: (u32, u32), uid: u32 },
}

/// Makes the streams of a process of user `uid`, and our ends of them. The user owns them, so that the process can open
/// /dev/stdout and the like.
pub(crate) fn prepare(wanted: &Wanted, uid: u32) -> Result<(Stdio, PreparedStdio), StdioError> {
    if wanted.terminal {
        let socket = ConsoleSocket::new()?;
        let stdio = Stdio::null().map_err(StdioError::MakePipes)?;
        let size = (wanted.width, wanted.height);
        let (stdin, stdout) = (wanted.stdin, wanted.stdout);
        return Ok((stdio, PreparedStdio::Terminal { socket, stdin, stdout, size, uid }));
    }
    let (stdio, prepared) = pipes(wanted).map_err(StdioError::MakePipes)?;
    prepared.give_to(uid).map_err(|source| StdioError::GiveToUser { uid, source })?;
    Ok((stdio, prepared))
}

fn pipes(wanted: &Wanted) -> io::Result<(Stdio, PreparedStdio)> {
    // (read end, write end); a stream that is not wanted is /dev/null.
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
    let (stdin, our_stdin) = if wanted.stdin {
        let (theirs, ours) = pipe()?;
        (theirs, Some(ours))
    } else {
        (null()?, None)
    };
    let output = |wanted: bool| {
        if wanted { pipe().map(|(ours, theirs)| (theirs, Some(ours))) } else { Ok((null()?, None)) }
    };
    let (stdout, our_stdout) = output(wanted.stdout)?;
    let (stderr, our_stderr) = output(wanted.stderr)?;
    Ok((
        Stdio { stdin, stdout, stderr },
        PreparedStdio::Pipes { stdin: our_stdin, stdout: our_stdout, stderr: our_stderr },
    ))
}

/// The running streams of a process: tasks that copy bytes. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct RunningStdio {
    /// Our end of its terminal, if it has one.
    pub(crate) terminal: Option<pump::End>,
    pumps: Vec<AbortHandle>,
}

impl Drop for RunningStdio {
    fn drop(&mut self) {
        self.pumps.iter().for_each(AbortHandle::abort);
    }
}

/// The process that streams belong to, and the registry that has their connections.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) registry: Arc<Streams>,
    pub(crate) container: String,
    pub(crate) exec: String,
}

impl Owner {
    fn key(&self, kind: Kind) -> StreamKey {
        StreamKey { container: self.container.clone(), exec: self.exec.clone(), kind }
    }
}

impl PreparedStdio {
    /// Makes `uid` the owner of the pipes, by our ends: both ends of a pipe are one inode. /dev/null keeps its owner.
    fn give_to(&self, uid: u32) -> io::Result<()> {
        let PreparedStdio::Pipes { stdin, stdout, stderr } = self else { return Ok(()) };
        let owner = Some(rustix::fs::Uid::from_raw(uid));
        let mut ends = [stdin, stdout, stderr].into_iter().flatten();
        ends.try_for_each(|end| rustix::fs::fchown(end, owner, None)).map_err(io::Error::from)
    }

    /// Where libcontainer connects to hand over the terminal, if one is wanted.
    pub(crate) fn console(&self) -> Option<std::path::PathBuf> {
        match self {
            PreparedStdio::Pipes { .. } => None,
            PreparedStdio::Terminal { socket, .. } => Some(socket.path().to_owned()),
        }
    }

    /// Starts to copy bytes, now that the process exists. `writers_gone` becomes true when no process writes any more.
    pub(crate) fn start(
        self,
        owner: &Owner,
        writers_gone: &watch::Receiver<bool>,
    ) -> Result<RunningStdio, StdioError> {
        let mut running = RunningStdio { terminal: None, pumps: Vec::new() };
        let reading = |end: OwnedFd| syscalls::watch(end, Interest::READABLE).map(Arc::new);
        match self {
            PreparedStdio::Pipes { stdin, stdout, stderr } => {
                if let Some(end) = stdin {
                    let end = syscalls::watch(end, Interest::WRITABLE).map_err(StdioError::Watch)?;
                    running.input(owner, Arc::new(end));
                }
                for (end, kind) in [(stdout, Kind::STDOUT), (stderr, Kind::STDERR)] {
                    if let Some(end) = end {
                        running.output(owner, kind, reading(end).map_err(StdioError::Watch)?, writers_gone);
                    }
                }
            }
            PreparedStdio::Terminal { socket, stdin, stdout, size: (width, height), uid } => {
                let terminal = socket.receive()?;
                terminal::give_to(&terminal, uid).map_err(|source| StdioError::GiveToUser { uid, source })?;
                terminal::resize(&terminal, width, height)?;
                let both = Interest::READABLE.add(Interest::WRITABLE);
                let end = Arc::new(syscalls::watch(terminal, both).map_err(StdioError::Watch)?);
                running.terminal = Some(Arc::clone(&end));
                if stdin {
                    running.input(owner, Arc::clone(&end));
                }
                if stdout {
                    running.output(owner, Kind::STDOUT, end, writers_gone);
                } else {
                    running.keep(tokio::spawn(pump::discard(end, writers_gone.clone())));
                }
            }
        }
        Ok(running)
    }
}

impl RunningStdio {
    fn keep(&mut self, task: tokio::task::JoinHandle<()>) {
        self.pumps.push(task.abort_handle());
    }

    fn input(&mut self, owner: &Owner, end: pump::End) {
        self.keep(tokio::spawn(pump::input(Arc::clone(&owner.registry), owner.key(Kind::STDIN), end)));
    }

    fn output(&mut self, owner: &Owner, kind: Kind, end: pump::End, writers_gone: &watch::Receiver<bool>) {
        self.keep(tokio::spawn(pump::output(
            Arc::clone(&owner.registry),
            owner.key(kind),
            end,
            writers_gone.clone(),
        )));
    }
}
