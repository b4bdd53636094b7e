//! What can go wrong with Cloud Hypervisor.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hyper::StatusCode;

use crate::host::process::{Exit, ProcessError};
use crate::vm::{DriverError, VmError};

/// Key of the VMM's program in the settings.
pub(super) const PATH_SETTING: &str = "[cloud_hypervisor] path";

/// Why Cloud Hypervisor did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum CloudHypervisorError {
    /// A file that the VM boots from is not usable.
    #[error("{setting} = {} cannot be used; set it to an existing, readable file", path.display())]
    Unusable {
        /// The key in the settings.
        setting: &'static str,
        /// Its value.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The program could not be asked for its version.
    #[error("{} does not tell its version; check {setting} in the settings", path.display())]
    Ask {
        /// The key in the settings that names the program.
        setting: &'static str,
        /// The program.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The program is too old, or something else.
    #[error(
        "{said:?} is what the VMM says of its version, and Bulkhead needs Cloud Hypervisor {oldest} or newer; set {setting} to one"
    )]
    Version {
        /// The key in the settings that names the program.
        setting: &'static str,
        /// The version, as the program gives it.
        said: String,
        /// The oldest that will do.
        oldest: u32,
    },
    /// No guest runs on KVM here.
    #[error(
        "[vm] hypervisor = \"cloud-hypervisor\" needs KVM, which does not run a guest here: {reason}; use a host with KVM, or \
         set it to \"qemu\", which can do without"
    )]
    KvmUnusable {
        /// What was tried and what came of it.
        reason: String,
    },
    /// A file or socket of the VM could not be made.
    #[error("cannot {act} {}", path.display())]
    Prepare {
        /// What was tried.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The VMM could not be started.
    #[error("the VMM could not be started; check {setting} in the settings")]
    Start {
        /// The key in the settings that names the program.
        setting: &'static str,
        /// Why not.
        source: ProcessError,
    },
    /// The VMM ended before its VM ran.
    #[error("the VMM ended at once ({exit}): {last_words}")]
    Ended {
        /// How it ended.
        exit: Exit,
        /// What it printed.
        last_words: String,
    },
    /// The API does not answer.
    #[error("the VMM cannot be asked for {request:?}")]
    Unreachable {
        /// The request.
        request: &'static str,
        /// Why not.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The API takes too long.
    #[error("the VMM did not answer {request:?} within {within:?}")]
    Late {
        /// The request.
        request: &'static str,
        /// How long it had.
        within: Duration,
    },
    /// The API said no.
    #[error("the VMM did not take {request:?} ({status}): {reason}")]
    Refused {
        /// The request.
        request: &'static str,
        /// The status of its answer.
        status: StatusCode,
        /// What the VMM said.
        reason: String,
    },
    /// The API answered what this driver does not understand.
    #[error("the VMM's answer to {request:?} is not what Cloud Hypervisor documents")]
    Answer {
        /// The request.
        request: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The guest does not let a device go that was unplugged.
    #[error("the guest did not let go of {id:?} within {within:?}")]
    KeptByGuest {
        /// The device.
        id: String,
        /// How long it had.
        within: Duration,
    },
}

impl CloudHypervisorError {
    /// Whether the API answered with this status.
    pub(super) fn is(&self, wanted: StatusCode) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == wanted)
    }

    /// Whether the settings are at fault, so that a repeat cannot help.
    fn is_misconfigured(&self) -> bool {
        match self {
            Self::Unusable { .. } | Self::Ask { .. } | Self::Version { .. } | Self::KvmUnusable { .. } => {
                true
            }
            Self::Start { source, .. } => matches!(source, ProcessError::Execute { .. }),
            Self::Prepare { .. }
            | Self::Ended { .. }
            | Self::Unreachable { .. }
            | Self::Late { .. }
            | Self::Refused { .. }
            | Self::Answer { .. }
            | Self::KeptByGuest { .. } => false,
        }
    }
}

impl From<CloudHypervisorError> for VmError {
    fn from(error: CloudHypervisorError) -> Self {
        let is_misconfigured = error.is_misconfigured();
        Self::Driver(DriverError::new(error, is_misconfigured))
    }
}
