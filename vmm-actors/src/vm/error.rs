//! What can go wrong with a VM.

use std::error::Error as StdError;
use std::fmt;

use super::size::Size;
use crate::host::process::{ProcessError, StillAlive};

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
    /// The boot was ended by [`Shutdown`](super::Shutdown).
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
    /// A process of the VM was killed and does not end.
    #[error(transparent)]
    StillAlive(StillAlive),
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
            | Self::Adopt { .. }
            | Self::StillAlive(_) => false,
        }
    }
}

/// An error of a driver, in the driver's own words.
#[derive(Debug)]
pub struct DriverError {
    own: Box<dyn StdError + Send + Sync>,
    is_misconfigured: bool,
}

impl DriverError {
    /// Wraps a driver's error. `is_misconfigured` says that the settings are at fault, so that a repeat cannot help.
    pub fn new(source: impl StdError + Send + Sync + 'static, is_misconfigured: bool) -> Self {
        Self { own: Box::new(source), is_misconfigured }
    }

    /// Whether the settings are at fault.
    #[must_use]
    pub fn is_misconfigured(&self) -> bool {
        self.is_misconfigured
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.own.fmt(f)
    }
}

impl StdError for DriverError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.own.source()
    }
}
