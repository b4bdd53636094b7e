//! What can go wrong with a VM.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::Size;
use crate::host::process::{Exit, ProcessError};

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
    #[error("{driver} cannot {what}")]
    Unsupported {
        /// The driver, with its machine type.
        driver: String,
        /// The ability.
        what: &'static str,
    },
    /// The boot was ended by [`Kill`](super::Kill) or [`Shutdown`](super::Shutdown).
    #[error("the VM was ended while it was being started")]
    Cancelled,
    /// A file that the VM boots from, or a program, is not usable.
    #[error("{setting} = {} cannot be used; set it to an existing, readable file", path.display())]
    Unusable {
        /// The key in the settings.
        setting: &'static str,
        /// Its value.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The VMM could not be started.
    #[error("the VMM could not be started; check {setting} in the settings")]
    StartVmm {
        /// The key in the settings that names the program.
        setting: &'static str,
        /// Why not.
        source: ProcessError,
    },
    /// The vsock helper could not be started.
    #[error("the vsock helper could not be started; check {setting} in the settings")]
    StartHelper {
        /// The key in the settings that names the program.
        setting: &'static str,
        /// Why not.
        source: ProcessError,
    },
    /// The vsock helper ended before the VMM could connect to it.
    #[error("the vsock helper {} ended at once ({exit}): {last_words}", program.display())]
    HelperEnded {
        /// The program.
        program: PathBuf,
        /// How it ended.
        exit: Exit,
        /// What it printed.
        last_words: String,
    },
    /// The vsock helper runs, but does not listen.
    #[error("the vsock helper does not listen on {} after {waited:?}: {last_words}", socket.display())]
    HelperSilent {
        /// Where it should.
        socket: PathBuf,
        /// How long it had.
        waited: Duration,
        /// What it printed.
        last_words: String,
    },
    /// A socket of the VM could not be made or reached.
    #[error("cannot {act} {}", path.display())]
    Socket {
        /// What was tried.
        act: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// KVM is asked for, but no guest runs on it here.
    #[error(
        "accelerator = \"kvm\" is set, but KVM does not run a guest here: {reason}; set it to \"auto\" or \"tcg\""
    )]
    KvmUnusable {
        /// What was tried and what came of it.
        reason: String,
    },
    /// The VMM's API did not take a command.
    #[error("the VMM did not take {command:?}: {reason}")]
    Api {
        /// The command of the VMM's API.
        command: &'static str,
        /// What the VMM said.
        reason: String,
    },
    /// The VM was not started with room for that much.
    #[error(
        "it can get {most} at most while it runs; room for more needs [qemu] machine = \"q35\" and larger [vm] \
         max_vcpus or max_memory_mib before it is made"
    )]
    NoRoom {
        /// What it should become.
        wanted: Size,
        /// What it can become.
        most: Size,
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
            Self::Unusable { .. } | Self::KvmUnusable { .. } | Self::Unsupported { .. } => true,
            Self::StartVmm { source, .. } | Self::StartHelper { source, .. } => {
                matches!(source, ProcessError::Execute { .. })
            }
            Self::Refused { .. }
            | Self::Cancelled
            | Self::HelperEnded { .. }
            | Self::HelperSilent { .. }
            | Self::Socket { .. }
            | Self::Api { .. }
            | Self::NoRoom { .. }
            | Self::NotResized { .. }
            | Self::Adopt { .. } => false,
        }
    }
}
