//! What can go wrong with QEMU and the vsock helper beside it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::host::process::{Exit, ProcessError};
use crate::vm::{DriverError, VmError};

/// Why QEMU or its helper did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum QemuError {
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
    /// QEMU could not be started.
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
    /// QMP did not take a command.
    #[error("the VMM did not take {command:?}: {reason}")]
    Api {
        /// The command.
        command: &'static str,
        /// What QEMU said.
        reason: String,
    },
}

impl QemuError {
    /// Whether the settings are at fault, so that a repeat cannot help.
    fn is_misconfigured(&self) -> bool {
        match self {
            Self::Unusable { .. } | Self::KvmUnusable { .. } => true,
            Self::StartVmm { source, .. } | Self::StartHelper { source, .. } => {
                matches!(source, ProcessError::Execute { .. })
            }
            Self::HelperEnded { .. } | Self::HelperSilent { .. } | Self::Socket { .. } | Self::Api { .. } => {
                false
            }
        }
    }
}

impl From<QemuError> for VmError {
    fn from(error: QemuError) -> Self {
        let is_misconfigured = error.is_misconfigured();
        Self::Driver(DriverError::new(error, is_misconfigured))
    }
}
