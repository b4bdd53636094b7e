//! Standard streams: pipes or a terminal on one side, one vsock connection per stream on the other.

mod hub;
mod pump;
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

pub(crate) use hub::{Hub, StreamKey};

use crate::kernel::syscalls;
use crate::process::helper::{Stdio, null};
use terminal::{ConsoleSocket, PtyError};

/// The hub of the guest.
pub(crate) type Streams = Hub<VsockStream>;

/// Streams that could not be made.
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
pub(crate) enum Prepared {
    /// Pipes, where a stream is wanted.
    Pipes { stdin: Option<OwnedFd>, stdout: Option<OwnedFd>, stderr: Option<OwnedFd> },
    /// A terminal that libcontainer makes and hands over.
    Terminal { socket: ConsoleSocket, stdin: bool, stdout: bool, size: (u32, u32), uid: u32 },
}

/// Makes what a process of user `uid` gets, and what we keep. The streams belong to that user, who may open them again
/// by /dev/stdout and the like.
pub(crate) fn prepare(wanted: &Wanted, uid: u32) -> Result<(Stdio, Prepared), StdioError> {
    if wanted.terminal {
        let socket = ConsoleSocket::new()?;
        let stdio = Stdio::null().map_err(StdioError::MakePipes)?;
        let size = (wanted.width, wanted.height);
        let (stdin, stdout) = (wanted.stdin, wanted.stdout);
        return Ok((stdio, Prepared::Terminal { socket, stdin, stdout, size, uid }));
    }
    let (stdio, prepared) = pipes(wanted).map_err(StdioError::MakePipes)?;
    prepared.give_to(uid).map_err(|source| StdioError::GiveToUser { uid, source })?;
    Ok((stdio, prepared))
}

fn pipes(wanted: &Wanted) -> io::Result<(Stdio, Prepared)> {
    // (read end, write end), or /dev/null for the process alone.
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
        Prepared::Pipes { stdin: our_stdin, stdout: our_stdout, stderr: our_stderr },
    ))
}

/// Streams of a process, being moved.
#[derive(Debug)]
pub(crate) struct Moving {
    /// Our end of its terminal, if it has one.
    pub(crate) terminal: Option<pump::End>,
    pumps: Vec<AbortHandle>,
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.pumps.iter().for_each(AbortHandle::abort);
    }
}

/// Whose streams they are, and where their connections come from.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) hub: Arc<Streams>,
    pub(crate) container: String,
    pub(crate) exec: String,
}

impl Owner {
    fn key(&self, kind: Kind) -> StreamKey {
        StreamKey { container: self.container.clone(), exec: self.exec.clone(), kind }
    }
}

impl Prepared {
    /// Both ends of a pipe are one inode, so ours does. /dev/null is everybody's as it is, and stays.
    fn give_to(&self, uid: u32) -> io::Result<()> {
        let Prepared::Pipes { stdin, stdout, stderr } = self else { return Ok(()) };
        let owner = Some(rustix::fs::Uid::from_raw(uid));
        let mut ends = [stdin, stdout, stderr].into_iter().flatten();
        ends.try_for_each(|end| rustix::fs::fchown(end, owner, None)).map_err(io::Error::from)
    }

    /// Where libcontainer hands over the terminal, if there is to be one.
    pub(crate) fn console(&self) -> Option<std::path::PathBuf> {
        match self {
            Prepared::Pipes { .. } => None,
            Prepared::Terminal { socket, .. } => Some(socket.path().to_owned()),
        }
    }

    /// Starts moving bytes, now that the process exists. `silent` becomes true when nobody writes any more.
    pub(crate) fn start(self, owner: &Owner, silent: &watch::Receiver<bool>) -> Result<Moving, StdioError> {
        let mut moving = Moving { terminal: None, pumps: Vec::new() };
        let reading = |end: OwnedFd| syscalls::watch(end, Interest::READABLE).map(Arc::new);
        match self {
            Prepared::Pipes { stdin, stdout, stderr } => {
                if let Some(end) = stdin {
                    let end = syscalls::watch(end, Interest::WRITABLE).map_err(StdioError::Watch)?;
                    moving.input(owner, Arc::new(end));
                }
                for (end, kind) in [(stdout, Kind::STDOUT), (stderr, Kind::STDERR)] {
                    if let Some(end) = end {
                        moving.output(owner, kind, reading(end).map_err(StdioError::Watch)?, silent);
                    }
                }
            }
            Prepared::Terminal { socket, stdin, stdout, size: (width, height), uid } => {
                let terminal = socket.receive()?;
                terminal::give_to(&terminal, uid).map_err(|source| StdioError::GiveToUser { uid, source })?;
                terminal::resize(&terminal, width, height)?;
                let both = Interest::READABLE.add(Interest::WRITABLE);
                let end = Arc::new(syscalls::watch(terminal, both).map_err(StdioError::Watch)?);
                moving.terminal = Some(Arc::clone(&end));
                if stdin {
                    moving.input(owner, Arc::clone(&end));
                }
                if stdout {
                    moving.output(owner, Kind::STDOUT, end, silent);
                } else {
                    moving.keep(tokio::spawn(pump::discard(end, silent.clone())));
                }
            }
        }
        Ok(moving)
    }
}

impl Moving {
    fn keep(&mut self, task: tokio::task::JoinHandle<()>) {
        self.pumps.push(task.abort_handle());
    }

    fn input(&mut self, owner: &Owner, end: pump::End) {
        self.keep(tokio::spawn(pump::input(Arc::clone(&owner.hub), owner.key(Kind::STDIN), end)));
    }

    fn output(&mut self, owner: &Owner, kind: Kind, end: pump::End, silent: &watch::Receiver<bool>) {
        self.keep(tokio::spawn(pump::output(Arc::clone(&owner.hub), owner.key(kind), end, silent.clone())));
    }
}
