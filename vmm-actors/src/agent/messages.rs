//! What the Agent actor hears and tells.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use actix::Message;
use bulkhead_protocol::agent::SetupRequest;
use bulkhead_protocol::version::NoCommonVersion;
use serde::Serialize;

use crate::ask::Command;

/// Listens for the guest's announcement. To be answered before the VMM starts: a guest that finds nobody loses two
/// seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen;

impl Command for Listen {
    /// Answered when the socket listens.
    type Answer = ();
    type Error = AgentError;
}

/// Waits until the guest has announced itself and answers, from now for as long as a boot may take. Legal after
/// [`Listen`]; at once when the guest already answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AwaitGuest;

impl Command for AwaitGuest {
    /// Who it is.
    type Answer = Guest;
    type Error = AgentError;
}

/// Makes the guest a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// What it becomes.
    pub request: Box<SetupRequest>,
}

impl Command for Setup {
    /// Answered when it is ready for containers.
    type Answer = ();
    type Error = AgentError;
}

/// Asks for a sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping;

impl Command for Ping {
    /// How long the answer took.
    type Answer = Duration;
    type Error = AgentError;
}

/// Asks what CPUs and memory the guest uses, or has it use those that its VM was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grow {
    /// What it is to use; none: it is only asked, and is ready for memory from then on.
    pub to: Option<Capacity>,
}

impl Command for Grow {
    /// What it uses. Less than it was to: an error.
    type Answer = Capacity;
    type Error = AgentError;
}

/// What a guest has to run containers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// CPUs online.
    pub cpus: u32,
    /// What its kernel gives to processes, in bytes: less than the VM's memory.
    pub memory_bytes: u64,
}

/// Asks the guest to end its containers and power off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// How long its containers may take to end by SIGTERM.
    pub grace: Duration,
}

impl Command for Shutdown {
    /// Answered when the guest has heard it; its end is the VMM's.
    type Answer = ();
    type Error = AgentError;
}

/// Asks what the actor knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observe;

impl Command for Observe {
    /// Answered at once.
    type Answer = AgentView;
    type Error = AgentError;
}

/// A guest that answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Guest {
    /// Protocol version of the session.
    pub version: u32,
    /// Build of the agent.
    pub agent_build: String,
    /// Its kernel.
    pub kernel_release: String,
    /// What it can do beyond the protocol's version.
    pub features: Vec<String>,
    /// From the start of its kernel to its announcement, by its own clock; unknown after a take-over.
    pub booted_in: Option<Duration>,
}

/// The session as its actor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentView {
    /// cold, listening, opening, up, lost, silent or failed.
    pub state: &'static str,
    /// Who answers, or answered last.
    pub guest: Option<Guest>,
    /// Heartbeats missed in a row.
    pub missed: u32,
    /// How long ago the guest answered last, or was taken over; none before its first word.
    pub heard: Option<Duration>,
}

/// The guest does not answer any more. Told once; told again only after it has answered in between.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AgentSilent {
    /// Heartbeats missed in a row.
    pub missed: u32,
    /// What the last of them met.
    pub error: AgentError,
}

impl fmt::Display for AgentSilent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest has missed {} heartbeats: {}", self.missed, self.error)
    }
}

/// Why the guest cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The command does not fit the state.
    #[error("the agent's session is {state} and cannot {command}")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// What the session was.
        state: &'static str,
    },
    /// The socket for the announcement could not be made.
    #[error("cannot listen for the guest on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The guest booted too slowly, or not at all, or without its agent.
    #[error("the guest did not announce itself within {after:?}; the end of its console: {console_tail}")]
    NoAnnouncement {
        /// How long it had.
        after: Duration,
        /// What its console shows.
        console_tail: String,
    },
    /// The guest announced itself, but does not answer.
    #[error(
        "the guest announced itself but did not answer within {after:?}; the end of its console: {console_tail}"
    )]
    NoAnswer {
        /// How long it had, its boot included.
        after: Duration,
        /// What its console shows.
        console_tail: String,
    },
    /// What the guest sent as its announcement is none.
    #[error("the guest sent no valid announcement")]
    Announcement {
        /// What was wrong with it.
        source: io::Error,
    },
    /// The guest's agent is too old or too new for this build.
    #[error("the guest's agent {agent_build:?} does not fit; use the guest image of this release")]
    Version {
        /// Build of the agent.
        agent_build: String,
        /// The two ranges.
        source: NoCommonVersion,
    },
    /// The guest could not be dialled.
    #[error("cannot reach the guest through {}", socket.display())]
    Dial {
        /// The vsock socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The guest did not answer in time.
    #[error("the guest did not answer {call} within {after:?}")]
    CallTimedOut {
        /// The call.
        call: &'static str,
        /// How long it had.
        after: Duration,
    },
    /// The guest's agent is of a release that could not do this.
    #[error("the guest's agent, {agent_build:?}, cannot {what}")]
    Incapable {
        /// Build of the agent.
        agent_build: String,
        /// What it cannot.
        what: &'static str,
    },
    /// The guest does not use what its VM was given.
    #[error(
        "the guest uses {} CPUs and {} MiB of memory, and was to use {} and {}{refused}",
        has.cpus, has.memory_bytes >> 20, wanted.cpus, wanted.memory_bytes >> 20
    )]
    NotTaken {
        /// What it was to use.
        wanted: Capacity,
        /// What it uses.
        has: Capacity,
        /// What it says about it; may be empty.
        refused: String,
    },
    /// The guest did not do what it was asked.
    #[error("the guest did not carry out {call}")]
    Call {
        /// The call.
        call: &'static str,
        /// What it or the connection said.
        source: ttrpc::Error,
    },
}

impl AgentError {
    /// Whether time ran out, so that the guest may only have been slow.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::NoAnnouncement { .. } | Self::NoAnswer { .. } | Self::CallTimedOut { .. } => true,
            Self::Dial { source, .. } => source.kind() == io::ErrorKind::TimedOut,
            Self::Call { source: ttrpc::Error::RpcStatus(status), .. } => {
                status.code() == ttrpc::Code::DEADLINE_EXCEEDED
            }
            Self::Refused { .. }
            | Self::Listen { .. }
            | Self::Announcement { .. }
            | Self::Version { .. }
            | Self::Incapable { .. }
            | Self::NotTaken { .. }
            | Self::Call { .. } => false,
        }
    }

    /// Whether the guest has said that what it was asked cannot be.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Call { source: ttrpc::Error::RpcStatus(status), .. }
            if status.code() == ttrpc::Code::INVALID_ARGUMENT)
    }

    /// Whether the connection is at fault rather than the guest's answer.
    pub(super) fn is_broken_connection(&self) -> bool {
        matches!(self, Self::Call { source, .. } if !matches!(source, ttrpc::Error::RpcStatus(_)))
    }
}
