//! Helper processes: a VMM, a file server, a shim proxy.
//!
//! They live in a session of their own, without a parent-death signal and with their output in a file, so that the
//! end of this process is not theirs. A process is known by its pidfd and told apart by [`ProcessIdentity`].

mod cpu_time;
mod fork;
mod identity;
mod output;
mod owned;
pub mod supervised;
mod watch;

use std::ffi::OsString;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use cpu_time::cpu_time_with_children;
pub use identity::{ProcessIdentity, boot_id};
pub use output::last_lines;
pub use owned::{OwnedProcess, pidfd_of};
pub use rustix::process::Signal;
pub(super) use watch::{readable as watch_readable, urgent as watch_urgent};

/// What to start, and how.
#[derive(Debug)]
pub struct Spawn {
    /// Executed as it is, without a search in `PATH`.
    pub program: PathBuf,
    /// Arguments behind the program's name.
    pub args: Vec<OsString>,
    /// File that takes stdout and stderr. Created with mode 0600, appended to when there.
    pub output: PathBuf,
    /// Descriptors to hand over, each with its number in the child (3 or more). No other one is inherited.
    pub fds: Vec<(OwnedFd, RawFd)>,
    /// Joined between fork and exec: the program never runs outside of it.
    pub cgroup: Option<CgroupProcs>,
    /// The whole environment, but for `PATH`, which is ours unless it is named here.
    pub env: Vec<(OsString, OsString)>,
}

/// The `cgroup.procs` files of a pod: one for cgroup v2, one for each hierarchy of v1.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CgroupProcs {
    files: Arc<[PathBuf]>,
}

impl CgroupProcs {
    /// Takes the paths of `cgroup.procs` files. They are opened at each spawn, so none is held open.
    #[must_use]
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self { files: files.into() }
    }

    /// The files, in the order in which they are joined.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It ended, but not as our child, so nobody told us how.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("unknown exit"),
        }
    }
}

/// A process that SIGKILL has not ended in time. It runs no code of its own any more, and ends when the kernel lets it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "process {pid} ({name}) was killed and is still there after {waited:?}: it waits in the kernel, most likely for a \
     disk or a network file system that does not answer; /proc/{pid}/stack says where, and it ends when that answers"
)]
pub struct StillAlive {
    /// The process.
    pub pid: u32,
    /// Its name, as ps shows it.
    pub name: String,
    /// How long it had.
    pub waited: Duration,
}

/// What can go wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The kernel would not execute the program: it is missing, not executable, or no program.
    #[error("cannot execute {}", program.display())]
    Execute {
        /// What should have run.
        program: PathBuf,
        /// What execve(2) said.
        source: io::Error,
    },
    /// The program or one of its arguments cannot be passed to execve(2).
    #[error("an argument of {} contains a zero byte", program.display())]
    Argument {
        /// What should have run.
        program: PathBuf,
    },
    /// A descriptor number below 3 was asked for, or one number twice.
    #[error("{} cannot get a descriptor as number {number}", program.display())]
    DescriptorNumber {
        /// What should have run.
        program: PathBuf,
        /// The number in the child.
        number: RawFd,
    },
    /// A file could not be opened: the one for the output, a `cgroup.procs`, or `/dev/null`.
    #[error("cannot open {} for {}", path.display(), program.display())]
    Open {
        /// What should have run.
        program: PathBuf,
        /// The file.
        path: PathBuf,
        /// What open(2) said.
        source: io::Error,
    },
    /// The child could not join its cgroup, so the program was not started.
    #[error("cannot start {} in cgroup {}", program.display(), cgroup.display())]
    JoinCgroup {
        /// What should have run.
        program: PathBuf,
        /// The `cgroup.procs` file.
        cgroup: PathBuf,
        /// What write(2) said.
        source: io::Error,
    },
    /// No child could be made, or it could not be prepared for the program.
    #[error("cannot start {}: {step} failed", program.display())]
    Start {
        /// What should have run.
        program: PathBuf,
        /// The system call.
        step: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The process could not be identified by `/proc`.
    #[error("cannot identify process {pid}")]
    Identify {
        /// The process.
        pid: u32,
        /// Why not.
        source: io::Error,
    },
    /// The process could not be opened or watched.
    #[error("cannot watch process {pid}")]
    Watch {
        /// The process.
        pid: u32,
        /// Why not.
        source: io::Error,
    },
    /// The signal could not be sent. A process that has ended is no error.
    #[error("cannot send a signal to process {pid}")]
    Signal {
        /// The process.
        pid: u32,
        /// What pidfd_send_signal(2) said.
        source: io::Error,
    },
}

impl ProcessError {
    /// The program that could not be started, if this is about one.
    #[must_use]
    pub fn program(&self) -> Option<&Path> {
        match self {
            Self::Execute { program, .. }
            | Self::Argument { program }
            | Self::DescriptorNumber { program, .. }
            | Self::Open { program, .. }
            | Self::JoinCgroup { program, .. }
            | Self::Start { program, .. } => Some(program),
            Self::Identify { .. } | Self::Watch { .. } | Self::Signal { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
