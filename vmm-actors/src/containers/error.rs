//! Why a container cannot be prepared, or not be released.

use std::path::PathBuf;
use std::sync::Arc;

use super::disks::TooMany;
use crate::ask::{AskError, answer};
use crate::guest_spec::SpecError;
use crate::host::block::BlockError;
use crate::id::{ContainerId, SandboxId};
use crate::mounts::MountsError;
use crate::record_part::RecordError;
use crate::vm::VmError;
use crate::waiters::Waiters;

/// Why a request about a container has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// A container needs a running sandbox.
    #[error("sandbox {sandbox} is {state}; a container needs a running one")]
    NotRunning {
        /// The sandbox.
        sandbox: SandboxId,
        /// Name of its state.
        state: &'static str,
    },
    /// The sandbox began to end while the container was being prepared.
    #[error("sandbox {0} ended before its container was prepared")]
    Ended(SandboxId),
    /// There are too many requests.
    #[error("too many requests are waiting for sandbox {0}; try again")]
    Busy(SandboxId),
    /// What there was of this container is being released.
    #[error("container {0} is being released; try again")]
    Releasing(ContainerId),
    /// It could not be recorded, so nothing was made.
    #[error("container {container} cannot be recorded")]
    Record {
        /// The container.
        container: ContainerId,
        /// Why.
        source: AskError<RecordError>,
    },
    /// The bundle has no readable spec.
    #[error("container {container} has no readable {}", path.display())]
    ReadBundle {
        /// The container.
        container: ContainerId,
        /// The file.
        path: PathBuf,
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
        path: PathBuf,
        /// Why.
        source: BlockError,
    },
    /// A block device could not be attached to the VM.
    #[error("container {container} cannot have its block devices")]
    Attach {
        /// The container.
        container: ContainerId,
        /// Why.
        source: AttachError,
    },
    /// A block device could not be detached from the VM.
    #[error("container {container} has gone, but its block devices are not unplugged yet")]
    Detach {
        /// The container.
        container: ContainerId,
        /// Why.
        source: AskError<VmError>,
    },
    /// Its mounts could not be made or undone.
    #[error("container {container}")]
    Mount {
        /// The container.
        container: ContainerId,
        /// Why.
        source: AskError<MountsError>,
    },
    /// The same for several callers that waited together.
    #[error(transparent)]
    Shared(Arc<Self>),
}

impl ContainerError {
    /// Tells everybody who waits: one caller the error itself, several of them the same one.
    pub(super) fn tell<T>(self, waiters: Waiters<T, Self>) {
        match waiters.only() {
            Ok(reply) => answer(reply, Err(self)),
            Err(mut waiters) => {
                let shared = Arc::new(self);
                waiters.answer(|| Err(Self::Shared(Arc::clone(&shared))));
            }
        }
    }

    /// Whether the request asks for what cannot be had here, however often it is repeated.
    #[must_use]
    pub fn is_callers(&self) -> bool {
        match self {
            Self::ReadBundle { .. } | Self::Spec { .. } | Self::HostDisk { .. } => true,
            Self::Attach { source, .. } => source.is_callers(),
            Self::Mount { source: AskError::Failed(error), .. } => error.is_callers(),
            Self::Shared(error) => error.is_callers(),
            Self::NotRunning { .. }
            | Self::Ended(_)
            | Self::Busy(_)
            | Self::Releasing(_)
            | Self::Record { .. }
            | Self::Detach { .. }
            | Self::Mount { .. } => false,
        }
    }
}

/// Why a block device is not attached to the VM.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The pod's VM takes none. The text says what would have to change.
    #[error("{0}")]
    Incapable(String),
    /// The VM has as many as it can have.
    #[error(transparent)]
    TooMany(TooMany),
    /// The agent of an older guest image would leave the devices out without a word.
    #[error(
        "the guest's agent (build {agent_build}) knows no block devices; install the guest image of this release"
    )]
    OldGuest {
        /// Build of the agent.
        agent_build: String,
    },
    /// The VMM did not take it.
    #[error("{} for {}", device.display(), path.display())]
    Device {
        /// The device on the host.
        device: PathBuf,
        /// Where the container wants it.
        path: PathBuf,
        /// Why not.
        source: Arc<AskError<VmError>>,
    },
}

impl AttachError {
    /// Whether the pod's VM is not made for it, so that a repeat cannot help.
    #[must_use]
    pub fn is_callers(&self) -> bool {
        match self {
            Self::Incapable(_) | Self::TooMany(_) | Self::OldGuest { .. } => true,
            Self::Device { source, .. } => {
                matches!(**source, AskError::Failed(VmError::Unsupported { .. }))
            }
        }
    }
}
