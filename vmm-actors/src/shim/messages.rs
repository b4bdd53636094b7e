//! What the Shim actor hears and tells.

use std::fmt;
use std::io;
use std::path::PathBuf;

use actix::Message;
use bulkhead_config::Settings;
use bulkhead_protocol::CONTROL_SOCKET;
use serde::{Deserialize, Serialize};

use crate::ask::Command;
use crate::host::process::{CgroupProcs, Exit, ProcessError, ProcessIdentity, StillAlive};
use crate::id::{ContainerdNamespace, SandboxId};
use crate::runtime_dir::PodDir;

/// What the shim proxy is told when it is started.
#[derive(Debug, Clone)]
pub struct ShimSpec {
    /// Its pod.
    pub id: SandboxId,
    /// Where its sockets and its output go.
    pub dir: PodDir,
    /// The program.
    pub binary: PathBuf,
    /// Where the sandboxer serves shim proxies.
    pub control: PathBuf,
    /// Where containerd takes events.
    pub containerd_events: PathBuf,
    /// containerd's namespace of the pod.
    pub namespace: ContainerdNamespace,
}

impl ShimSpec {
    /// The shim proxy of a pod, as the settings describe it.
    #[must_use]
    pub fn new(id: SandboxId, namespace: ContainerdNamespace, dir: PodDir, settings: &Settings) -> Self {
        let mut events = settings.sandboxer.containerd_address.clone().into_os_string();
        events.push(".ttrpc");
        Self {
            id,
            dir,
            binary: settings.shim.binary.clone(),
            control: settings.sandboxer.run_dir.join(CONTROL_SOCKET),
            containerd_events: events.into(),
            namespace,
        }
    }
}

/// A running shim proxy, for the durable record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRecord {
    /// The process.
    pub process: ProcessIdentity,
    /// Where its sockets are.
    pub dir: PodDir,
}

/// Starts the shim proxy. Legal once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spawn {
    /// It starts in it.
    pub cgroup: Option<CgroupProcs>,
}

impl Command for Spawn {
    /// Answered when the process runs and both sockets take connections.
    type Answer = ShimRecord;
    type Error = ShimError;
}

/// The record is durable: the process outlives this actor from now on.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Keep;

/// Tells the proxy that its VM is up and its guest a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The VMM, whose end the proxy notices by itself.
    pub vmm: ProcessIdentity,
    /// The VM's vsock socket.
    pub vsock: PathBuf,
    /// The pod's network namespace, whose loopback the proxy leads into the guest.
    pub netns: PathBuf,
}

impl Command for Attach {
    /// Answered when Task calls can reach the guest.
    type Answer = ();
    type Error = ShimError;
}

/// Tells the proxy that its VM is gone or about to be ended: every Wait ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmGone {
    /// Exit status of everything that still ran, as a shell says it.
    pub exit_status: u32,
    /// Nanoseconds since the epoch.
    pub exited_at_nanos: i64,
    /// For people.
    pub reason: String,
}

impl Command for VmGone {
    /// Answered when the proxy knows.
    type Answer = ();
    type Error = ShimError;
}

/// Asks what the proxy has in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observe;

impl Command for Observe {
    /// Answered when the proxy has, or cannot.
    type Answer = ShimView;
    type Error = ShimError;
}

/// Lets the proxy answer everyone who waits and end; ends it by force where it does not. A repeat joins; an ended one,
/// or one that was never started, answers at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown;

impl Command for Shutdown {
    /// Answered when the process is gone, or with [`ShimError::StillAlive`] 10 s after SIGKILL.
    type Answer = Exit;
    type Error = ShimError;
}

/// A shim proxy as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ShimView {
    /// What it holds.
    pub containers: Vec<ContainerView>,
    /// Connections of containerd.
    pub open_connections: u32,
}

/// A container as its shim proxy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ContainerView {
    /// Its id.
    pub id: String,
    /// As the Task API names it, in lower case.
    pub status: String,
    /// In the guest.
    pub pid: u32,
    /// Valid when stopped.
    pub exit_status: u32,
    /// Nanoseconds since the epoch; 0 while it runs.
    pub exited_at_nanos: i64,
    /// containerd's bundle directory.
    pub bundle: String,
    /// Ids of its execs.
    pub execs: Vec<String>,
}

/// The shim proxy has ended. Told once, whether it was asked to end or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Message)]
#[rtype(result = "()")]
pub struct ShimExited {
    /// How it ended; unknown for one that an earlier instance had started.
    pub exit: Exit,
    /// Why.
    pub cause: EndCause,
    /// The last lines it printed; may be empty.
    pub last_words: String,
}

/// Why a shim proxy ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndCause {
    /// We were asked to end it.
    Asked,
    /// By itself or by somebody else: containerd has lost every container of the pod.
    Crashed,
}

impl fmt::Display for ShimExited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.cause {
            EndCause::Asked => "was ended",
            EndCause::Crashed => "ended unexpectedly",
        };
        write!(f, "the shim proxy {why} ({})", self.exit)?;
        if self.last_words.is_empty() { Ok(()) } else { write!(f, "; last words: {}", self.last_words) }
    }
}

/// Why a command to the shim proxy failed.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The command does not fit the state.
    #[error("the shim proxy is {state} and cannot {command}")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// What it was doing.
        state: &'static str,
    },
    /// One of its sockets could not be made.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The program could not be started.
    #[error("the shim proxy could not be started; check [shim] binary in the settings")]
    Start {
        /// Why not.
        source: ProcessError,
    },
    /// A recorded process could not be looked at.
    #[error("cannot take over the shim proxy, process {pid}")]
    Adopt {
        /// The recorded pid.
        pid: u32,
        /// Why not.
        source: ProcessError,
    },
    /// Its socket could not be reached.
    #[error("cannot reach the shim proxy on {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The proxy did not do what it was asked.
    #[error("the shim proxy did not carry out {call}")]
    Call {
        /// The call.
        call: &'static str,
        /// What it or the connection said.
        source: ttrpc::Error,
    },
    /// It was killed and does not end.
    #[error(transparent)]
    StillAlive(StillAlive),
}

impl ShimError {
    /// Whether the settings are at fault, so that a repeat cannot help.
    #[must_use]
    pub fn is_misconfigured(&self) -> bool {
        matches!(self, Self::Start { source: ProcessError::Execute { .. } })
    }
}
