//! What can be wrong with a request to a sandbox.

use super::lifecycle::state::{Cause, Refused};
use super::record::RecordError;
use crate::ask::AskError;
use crate::cgroup::CgroupError;
use crate::containers::ContainerError;
use crate::id::SandboxId;
use crate::resize::ResizeError;

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
    /// What was asked about a container.
    #[error(transparent)]
    Container(ContainerError),
    /// The pod's resources cannot be changed that way; they are what they were.
    #[error("sandbox {id} keeps its resources")]
    Unchangeable {
        /// The sandbox.
        id: SandboxId,
        /// What cannot be changed, and why.
        source: Box<ResizeError>,
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
    #[error("sandbox {id}")]
    Resources {
        /// The sandbox.
        id: SandboxId,
        /// What failed.
        source: Box<AskError<CgroupError>>,
    },
}

impl From<ContainerError> for SandboxError {
    fn from(error: ContainerError) -> Self {
        match error {
            ContainerError::Ended(id) => Self::Gone(id),
            ContainerError::Busy(id) => Self::Busy(id),
            other @ (ContainerError::NotRunning { .. }
            | ContainerError::Releasing(_)
            | ContainerError::Record { .. }
            | ContainerError::ReadBundle { .. }
            | ContainerError::Spec { .. }
            | ContainerError::HostDisk { .. }
            | ContainerError::Attach { .. }
            | ContainerError::Detach { .. }
            | ContainerError::Mount { .. }
            | ContainerError::Shared(_)) => Self::Container(other),
        }
    }
}
