//! A process and the right to end it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;

use super::identity::{boot_id, stat};
use super::{Exit, ProcessError, ProcessIdentity, Spawn, StillAlive, fork, watch};

/// How long a killed process may take to go. More means that it hangs in the kernel.
const KILLED_WITHIN: Duration = Duration::from_secs(10);
/// The same for a drop, which blocks its thread.
const DROPPED_WITHIN: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// A helper process that was spawned or adopted. Ends it on drop, unless [`keep`](Self::keep) was called.
#[derive(Debug)]
pub struct OwnedProcess {
    identity: ProcessIdentity,
    /// Readable for ever once the process has ended.
    pidfd: AsyncFd<OwnedFd>,
    armed: AtomicBool,
    /// How it ended, once somebody has found out. Locked while the kernel is asked.
    exit: Mutex<Option<Exit>>,
}

impl OwnedProcess {
    /// Starts a program, armed. Must be called within a tokio runtime; blocks until the program is executed.
    ///
    /// # Errors
    /// Whatever kept the program from being executed; nothing is left then.
    pub fn spawn(spawn: Spawn) -> Result<Self, ProcessError> {
        let program = spawn.program.display().to_string();
        let raw = fork::fork_exec(spawn)?;
        let pid = raw.unsigned_abs();
        // Nobody else waits for our child, so the pid is its until we do.
        let pidfd = open_pidfd(pid)?.ok_or_else(|| gone(pid))?;
        let identify = |source| ProcessError::Identify { pid, source };
        let identity = ProcessIdentity::of(pid).map_err(identify);
        let made = identity.and_then(|identity| {
            let pidfd = pidfd.try_clone().map_err(identify)?;
            Self::new(identity, pidfd, true)
        });
        if made.is_err() {
            kill_and_reap(pidfd.as_fd());
        }
        tracing::debug!(program, pid, "process started");
        made
    }

    /// Takes over a process that an earlier instance of this service started, armed like a spawned one. Must be
    /// called within a tokio runtime.
    ///
    /// `None` when it is gone: no such pid, a later process with that pid, or another boot.
    ///
    /// # Errors
    /// [`ProcessError::Identify`] and [`ProcessError::Watch`] when the kernel does not let us find out.
    pub fn adopt(identity: &ProcessIdentity) -> Result<Option<Self>, ProcessError> {
        let Some(pidfd) = pidfd_of(identity)? else { return Ok(None) };
        Self::new(identity.clone(), pidfd, true).map(Some)
    }

    fn new(identity: ProcessIdentity, pidfd: OwnedFd, armed: bool) -> Result<Self, ProcessError> {
        let pid = identity.pid;
        let pidfd = watch::readable(pidfd).map_err(|source| ProcessError::Watch { pid, source })?;
        Ok(Self { identity, pidfd, armed: AtomicBool::new(armed), exit: Mutex::new(None) })
    }

    /// Which process this is, for the durable record.
    #[must_use]
    pub fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// Waits for the end and says how it was: [`Exit::Unknown`] for a process that is not our child. Any number of
    /// waiters get the same answer, and any of them may go away.
    pub async fn wait(&self) -> Exit {
        loop {
            if let Some(exit) = self.ended() {
                return exit;
            }
            // The descriptor stays readable, so the readiness is not cleared; an error means that the runtime ends.
            if let Err(error) = self.pidfd.readable().await {
                tracing::warn!(pid = self.identity.pid, %error, "cannot watch a process any more");
                return Exit::Unknown;
            }
        }
    }

    /// How it ended, if it has. Never blocks.
    #[must_use]
    pub fn ended(&self) -> Option<Exit> {
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if exit.is_none() {
            *exit = ask(self.pidfd.get_ref());
        }
        *exit
    }

    /// Sends a signal to the process itself. One that has ended takes it silently.
    ///
    /// # Errors
    /// [`ProcessError::Signal`] when the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        match pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(ProcessError::Signal { pid: self.identity.pid, source: errno.into() }),
        }
    }

    /// Ends the process: SIGTERM, up to `grace` for it to go, then [`kill`](Self::kill).
    ///
    /// # Errors
    /// [`StillAlive`] when it is there 10 s after SIGKILL.
    pub async fn end(&self, grace: Duration) -> Result<Exit, StillAlive> {
        self.terminate(grace).await;
        self.kill().await
    }

    /// Asks the process to end by SIGTERM and waits for that up to `grace`. Without any grace it is not even asked.
    pub async fn terminate(&self, grace: Duration) {
        if grace.is_zero() {
            return;
        }
        self.try_signal(Signal::TERM);
        if tokio::time::timeout(grace, self.wait()).await.is_err() {
            let (pid, grace_ms) = (self.identity.pid, grace.as_millis());
            tracing::info!(pid, grace_ms, "process ignores the request to end, killing it");
        }
    }

    /// Ends the process, and its whole process group, by SIGKILL. One that has ended already answers at once.
    ///
    /// # Errors
    /// [`StillAlive`] when it is there 10 s later: it hangs in the kernel.
    pub async fn kill(&self) -> Result<Exit, StillAlive> {
        self.send_kill();
        tokio::time::timeout(KILLED_WITHIN, self.wait()).await.map_err(|_elapsed| {
            let pid = self.identity.pid;
            // It has not been reaped, so the pid is its.
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            StillAlive { pid, name: name.trim_end().to_owned(), waited: KILLED_WITHIN }
        })
    }

    /// Leaves the process running when this guard is dropped.
    pub fn keep(&self) {
        self.armed.store(false, Ordering::Release);
    }

    fn try_signal(&self, signal: Signal) {
        if let Err(error) = self.signal(signal) {
            tracing::warn!(pid = self.identity.pid, %error, "cannot signal a process");
        }
    }

    /// SIGKILL, for what it forked as well. A group has its leader's pid, which nobody can get before the leader is
    /// reaped: so the group is killed only while the lock keeps us from reaping, and only if the leader is our child.
    fn send_kill(&self) {
        let exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if exit.is_none() {
            kill_group(&self.identity, self.pidfd.get_ref());
        }
        drop(exit);
        self.try_signal(Signal::KILL);
    }
}

impl Drop for OwnedProcess {
    fn drop(&mut self) {
        if !self.armed.load(Ordering::Acquire) || self.ended().is_some() {
            return;
        }
        self.send_kill();
        let mut fds = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        if !matches!(poll(&mut fds, Some(&DROPPED_WITHIN)), Ok(1)) {
            tracing::error!(pid = self.identity.pid, "a killed process does not go: it hangs in the kernel");
        }
        let exit = self.ended();
        tracing::debug!(pid = self.identity.pid, ?exit, "process killed with its guard");
    }
}

fn gone(pid: u32) -> ProcessError {
    ProcessError::Watch { pid, source: Errno::SRCH.into() }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// A descriptor of the process with this identity. `None` when it is gone.
///
/// # Errors
/// [`ProcessError::Identify`] and [`ProcessError::Watch`] when the kernel does not let us find out.
pub fn pidfd_of(identity: &ProcessIdentity) -> Result<Option<OwnedFd>, ProcessError> {
    let pid = identity.pid;
    let identify = |source| ProcessError::Identify { pid, source };
    if boot_id().map_err(identify)? != identity.boot_id {
        return Ok(None);
    }
    // First the descriptor, then the check: what is checked is what is held.
    let Some(pidfd) = open_pidfd(pid)? else { return Ok(None) };
    match stat(pid) {
        Ok(stat) if stat.start_time == identity.start_time && !stat.ended => Ok(Some(pidfd)),
        Ok(_) => Ok(None),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(identify(error)),
    }
}

fn open_pidfd(pid: u32) -> Result<Option<OwnedFd>, ProcessError> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        // EINVAL: the pid is now that of a thread.
        Err(Errno::SRCH | Errno::INVAL) => Ok(None),
        Err(errno) => Err(ProcessError::Watch { pid, source: errno.into() }),
    }
}

/// Asks the kernel how the process ended; reaps it if it is our child.
fn ask(pidfd: &OwnedFd) -> Option<Exit> {
    match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(None) | Err(Errno::AGAIN | Errno::INTR) => None,
        Ok(Some(status)) => Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Unknown,
        }),
        // Not our child: the descriptor becomes readable when it has ended, and that is all there is to know.
        Err(_) => has_ended(pidfd).then_some(Exit::Unknown),
    }
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1))
}

fn kill_group(identity: &ProcessIdentity, pidfd: &OwnedFd) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let ours = !matches!(waitid(WaitId::PidFd(pidfd.as_fd()), options), Err(Errno::CHILD));
    let group = i32::try_from(identity.pid).ok().and_then(Pid::from_raw);
    if let Some(group) = group.filter(|_| ours)
        && let Err(error) = kill_process_group(group, Signal::KILL)
        && error != Errno::SRCH
    {
        tracing::warn!(pid = identity.pid, %error, "cannot kill a process group");
    }
}

fn kill_and_reap(pidfd: std::os::fd::BorrowedFd<'_>) {
    if pidfd_send_signal(pidfd, Signal::KILL).is_ok()
        && let Err(error) = waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED)
    {
        tracing::warn!(%error, "cannot reap a process that could not be watched");
    }
}
