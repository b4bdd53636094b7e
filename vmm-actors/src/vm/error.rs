//! What can go wrong with a VM.

use super::{DriverError, Size};
use crate::host::process::ProcessError;

/// Why a command to the VM failed.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The command does not fit the state.
    #[error("a VM that is {state} cannot {command}")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// What the VM was doing.
        state: &'static str,
    },
    /// This driver or machine type has no such ability.
    #[error("{driver} cannot {what}, {why}")]
    Unsupported {
        /// The driver, with its machine type.
        driver: String,
        /// The ability.
        what: &'static str,
        /// Why not, or what would be needed.
        why: String,
    },
    /// The boot was ended by [`Kill`](super::Kill) or [`Shutdown`](super::Shutdown).
    #[error("the VM was ended while it was being started")]
    Cancelled,
    /// The driver could not do it, or the VMM did not.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The VM was not started with room for that much.
    #[error(
        "it can get {limit} at most while it runs; more needs larger [vm] max_vcpus or max_memory_mib before it is made"
    )]
    NoRoom {
        /// What it should become.
        wanted: Size,
        /// What it can become.
        limit: Size,
    },
    /// The guest did not take what was added, or did not give back what was to go.
    #[error("the guest was to have {wanted}, and has {has}")]
    NotResized {
        /// What it was to have.
        wanted: Size,
        /// What it has.
        has: Size,
    },
    /// A process of a recorded VM could not be looked at.
    #[error("cannot take over the VM's process {pid}")]
    Adopt {
        /// The recorded pid.
        pid: u32,
        /// Why not.
        source: ProcessError,
    },
}

impl VmError {
    /// The same of the size that was asked for, when it met a part of it.
    pub(super) fn on_the_way_to(self, wanted: Size) -> Self {
        if let Self::NotResized { has, .. } = &self { Self::NotResized { wanted, has: *has } } else { self }
    }

    /// Whether the settings are at fault, so that a repeat cannot help.
    #[must_use]
    pub fn is_misconfigured(&self) -> bool {
        match self {
            Self::Driver(error) => error.is_misconfigured(),
            Self::Unsupported { .. } => true,
            Self::Refused { .. }
            | Self::Cancelled
            | Self::NoRoom { .. }
            | Self::NotResized { .. }
            | Self::Adopt { .. } => false,
        }
    }
}
