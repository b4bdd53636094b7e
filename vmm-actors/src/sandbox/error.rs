//! What can be wrong with a request to a sandbox.

use super::record::RecordError;
use super::state::{Cause, Refused};
use crate::guest_spec::SpecError;
use crate::host::block::BlockError;
use crate::id::{ContainerId, SandboxId};

/// Why a request to a sandbox has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// There is one of this id already.
    #[error("sandbox {0} exists already; remove it first")]
    AlreadyExists(SandboxId),
    /// There is none of this id.
    #[error("there is no sandbox {0}")]
    NotFound(SandboxId),
    /// The sandbox is in no state for it.
    #[error("sandbox {id}")]
    Refused {
        /// The sandbox.
        id: SandboxId,
        /// What its state says.
        source: Refused,
    },
    /// It ended, or never came up.
    #[error("sandbox {id}: {}", cause.reason)]
    Ended {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        cause: Cause,
    },
    /// Something of it could not be released.
    #[error("sandbox {id} is stopped, but this is left of it: {}; stop it again to retry", left.join("; "))]
    Leftover {
        /// The sandbox.
        id: SandboxId,
        /// What is left, a line each.
        left: Vec<String>,
    },
    /// Its record could not be written.
    #[error("sandbox {id} cannot be recorded")]
    Record {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        source: RecordError,
    },
    /// The service has more requests than it can take.
    #[error("too many requests are waiting for sandbox {0}; try again")]
    Busy(SandboxId),
    /// The actor ended while it worked on the request.
    #[error("sandbox {0} ended before it could answer; ask again")]
    Gone(SandboxId),
    /// A container needs a running sandbox.
    #[error("sandbox {id} is {state}; a container needs a running one")]
    NotRunning {
        /// The sandbox.
        id: SandboxId,
        /// Name of its state.
        state: &'static str,
    },
    /// The bundle has no readable spec.
    #[error("container {container} has no readable {}", path.display())]
    ReadBundle {
        /// The container.
        container: ContainerId,
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The spec asks for what a VM cannot give.
    #[error("container {container} cannot run in a VM")]
    Spec {
        /// The container.
        container: ContainerId,
        /// Why.
        source: SpecError,
    },
    /// A block device of the host that it wants is not usable.
    #[error("container {container} cannot have its block device {}", path.display())]
    HostDisk {
        /// The container.
        container: ContainerId,
        /// Where it wants it.
        path: std::path::PathBuf,
        /// Why.
        source: BlockError,
    },
    /// A block device could not be attached to the VM.
    #[error("container {container} cannot have its block devices: {reason}")]
    Attach {
        /// The container.
        container: ContainerId,
        /// Whose fault it is.
        blame: Blame,
        /// What failed, causes included.
        reason: String,
    },
    /// A block device could not be unplugged.
    #[error("container {container} has gone, but its block devices are not unplugged yet: {reason}")]
    Detach {
        /// The container.
        container: ContainerId,
        /// What failed, causes included.
        reason: String,
    },
    /// Its mounts could not be made.
    #[error("container {container}: {reason}")]
    Mount {
        /// The container.
        container: ContainerId,
        /// Whose fault it is.
        blame: Blame,
        /// What failed, causes included.
        reason: String,
    },
    /// The pod's resources cannot be changed that way; they are what they were.
    #[error("sandbox {id} keeps its resources: {reason}")]
    Unchangeable {
        /// The sandbox.
        id: SandboxId,
        /// What cannot be changed, and why.
        reason: String,
    },
    /// A sandbox that is not up, or no longer, has no metrics. Whoever polls meets it every day.
    #[error("sandbox {id} is {state} and has no metrics")]
    NoMetrics {
        /// The sandbox.
        id: SandboxId,
        /// The state it is in.
        state: &'static str,
    },
    /// A figure of the pod could not be read.
    #[error("sandbox {id}: {reason}")]
    Resources {
        /// The sandbox.
        id: SandboxId,
        /// What failed, causes included.
        reason: String,
    },
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The request asks for what cannot be had, however often it is repeated.
    Caller,
    /// The host or one of its processes failed.
    Host,
}
