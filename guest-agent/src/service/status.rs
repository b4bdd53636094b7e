//! Which error is which RPC code: the only place that decides it.

use std::io::ErrorKind;

use bulkhead_protocol::error::chain;
use bulkhead_protocol::version::NoCommonVersion;
use ttrpc::Code;

use crate::cgroup::CgroupError;
use crate::container::ContainerError;
use crate::hotplug::resize::GrowthError;
use crate::pod::SetupError;
use crate::process::helper::LaunchError;
use crate::process::reaper::SignalError;

/// What a call can end with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Version(#[from] NoCommonVersion),
    #[error("set up the pod")]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error("the agent crashed in this call, its console has the details")]
    Crashed(#[source] tokio::task::JoinError),
    #[error("take what was added to the VM")]
    Growth(#[from] GrowthError),
}

impl CallError {
    fn code(&self) -> Code {
        match self {
            CallError::Version(_) => Code::FAILED_PRECONDITION,
            CallError::Setup(error) => setup_code(error),
            CallError::Container(error) => container_code(error),
            CallError::Crashed(_) | CallError::Growth(_) => Code::INTERNAL,
        }
    }
}

impl From<CallError> for ttrpc::Error {
    fn from(error: CallError) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), chain(&error)))
    }
}

fn setup_code(error: &SetupError) -> Code {
    match error {
        SetupError::Different { .. } => Code::FAILED_PRECONDITION,
        SetupError::Network(error) if error.is_callers_fault() => Code::INVALID_ARGUMENT,
        SetupError::Sysctl(_) => Code::INVALID_ARGUMENT,
        SetupError::Network(_)
        | SetupError::Clock(_)
        | SetupError::Hostname { .. }
        | SetupError::WriteFile { .. }
        | SetupError::Mount { .. }
        | SetupError::PidNamespace { .. } => Code::INTERNAL,
    }
}

fn container_code(error: &ContainerError) -> Code {
    match error {
        ContainerError::NoContainer { .. }
        | ContainerError::NoExec { .. }
        | ContainerError::HasEnded { .. }
        | ContainerError::WasDeleted { .. }
        | ContainerError::Signal(SignalError::Ended { .. }) => Code::NOT_FOUND,
        ContainerError::ContainerExists { .. } | ContainerError::ExecExists { .. } => Code::ALREADY_EXISTS,
        ContainerError::NotStarted { .. }
        | ContainerError::StillRuns { .. }
        | ContainerError::NoTerminal { .. }
        | ContainerError::NoRootfs { .. }
        | ContainerError::NoMountSource { .. }
        | ContainerError::MakeWorkDir { .. }
        | ContainerError::Cgroup(CgroupError::Beyond { .. })
        | ContainerError::NoPidNamespace { .. } => Code::FAILED_PRECONDITION,
        ContainerError::BadId { .. }
        | ContainerError::ParseSpec { .. }
        | ContainerError::IncompleteSpec { .. }
        | ContainerError::ParseProcess { .. }
        | ContainerError::BadVariable { .. }
        | ContainerError::ParseResources { .. }
        | ContainerError::Signal(SignalError::BadSignal { .. }) => Code::INVALID_ARGUMENT,
        ContainerError::Create { source, .. } | ContainerError::StartExec { source, .. } => {
            launch_code(source)
        }
        // A sub-path that leads out of its volume, or through a file.
        ContainerError::Memory { source, .. }
            if matches!(source.kind(), ErrorKind::CrossesDevices | ErrorKind::NotADirectory) =>
        {
            Code::FAILED_PRECONDITION
        }
        ContainerError::Mount { .. }
        | ContainerError::Memory { .. }
        | ContainerError::Disk { .. }
        | ContainerError::DiskPath { .. }
        | ContainerError::DiskNode { .. }
        | ContainerError::WriteFile { .. }
        | ContainerError::RemoveFile { .. }
        | ContainerError::Start { .. }
        | ContainerError::Unkillable { .. }
        | ContainerError::Streams(_)
        | ContainerError::Socket(_)
        | ContainerError::Signal(SignalError::Send { .. })
        | ContainerError::Cgroup(_)
        | ContainerError::Resize { .. }
        | ContainerError::Life { .. } => Code::INTERNAL,
    }
}

/// What libcontainer refuses is nearly always the request: a program that is not there, a user, a mount.
fn launch_code(error: &LaunchError) -> Code {
    match error {
        LaunchError::Refused(_) => Code::INVALID_ARGUMENT,
        LaunchError::MakePipe(_)
        | LaunchError::Spawn(_)
        | LaunchError::Read(_)
        | LaunchError::Silent { .. } => Code::INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_does_not_fit_is_a_precondition() {
        let error = CallError::from(NoCommonVersion { peer_min: 7, peer_max: 9 });
        assert_eq!(error.code(), Code::FAILED_PRECONDITION);
    }
}
