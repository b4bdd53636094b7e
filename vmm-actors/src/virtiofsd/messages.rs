//! What the Virtiofsd actor hears and tells.

use std::fmt;
use std::io;
use std::path::PathBuf;

use actix::Message;
use serde::{Deserialize, Serialize};

use crate::ask::Command;
use crate::host::process::{CgroupProcs, Exit, ProcessError, ProcessIdentity, StillAlive};
use crate::runtime_dir::VmDir;

/// A running daemon, for the durable record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtiofsdRecord {
    /// The process.
    pub process: ProcessIdentity,
    /// Whose share it serves.
    pub dir: VmDir,
}

/// Starts the daemon. Legal once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spawn {
    /// The daemon starts in it.
    pub cgroup: Option<CgroupProcs>,
}

impl Command for Spawn {
    /// Answered when the process runs and its socket takes connections.
    type Answer = VirtiofsdRecord;
    type Error = VirtiofsdError;
}

/// The record is durable: the process outlives this actor from now on.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Keep;

/// Ends the daemon. A repeat joins; an ended one, or one that was never started, answers at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kill;

impl Command for Kill {
    /// Answered when the process is gone, or with [`VirtiofsdError::StillAlive`] 10 s after SIGKILL.
    type Answer = Exit;
    type Error = VirtiofsdError;
}

/// Asks what the actor knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observe;

impl Command for Observe {
    /// Answered at once.
    type Answer = VirtiofsdView;
    type Error = VirtiofsdError;
}

/// The daemon as its actor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VirtiofsdView {
    /// cold, failed, up, ending or gone.
    pub state: &'static str,
    /// While it runs.
    pub pid: Option<u32>,
    /// How it ended.
    pub exited: Option<VirtiofsdExited>,
}

/// The daemon has ended. Told once, whether it was asked to end or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Message)]
#[rtype(result = "()")]
pub struct VirtiofsdExited {
    /// How it ended; unknown for one that an earlier instance had started.
    pub exit: Exit,
    /// Why.
    pub cause: EndCause,
    /// The last lines it printed; may be empty.
    pub last_words: String,
}

/// Why a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndCause {
    /// We were asked to end it.
    Asked,
    /// Its VMM disconnected: the VM's end is the news, not this one.
    VmmDisconnected,
    /// By itself or by somebody else: the guest has lost its file system.
    Crashed,
}

impl fmt::Display for VirtiofsdExited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.cause {
            EndCause::Asked => "was ended",
            EndCause::VmmDisconnected => "ended with its VMM",
            EndCause::Crashed => "ended unexpectedly",
        };
        write!(f, "virtiofsd {why} ({})", self.exit)?;
        if self.last_words.is_empty() { Ok(()) } else { write!(f, "; last words: {}", self.last_words) }
    }
}

/// Why a command to the daemon failed.
#[derive(Debug, thiserror::Error)]
pub enum VirtiofsdError {
    /// It was started already.
    #[error("virtiofsd is {state} and cannot be started again")]
    Refused {
        /// What it was doing.
        state: &'static str,
    },
    /// Its socket could not be made.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The program could not be started.
    #[error("virtiofsd could not be started; check [virtiofsd] path in the settings")]
    Start {
        /// Why not.
        source: ProcessError,
    },
    /// A recorded process could not be looked at.
    #[error("cannot take over virtiofsd, process {pid}")]
    Adopt {
        /// The recorded pid.
        pid: u32,
        /// Why not.
        source: ProcessError,
    },
    /// It was killed and does not end.
    #[error(transparent)]
    StillAlive(StillAlive),
}

impl VirtiofsdError {
    /// Whether the settings are at fault, so that a repeat cannot help.
    #[must_use]
    pub fn is_misconfigured(&self) -> bool {
        matches!(self, Self::Start { source: ProcessError::Execute { .. } })
    }
}
