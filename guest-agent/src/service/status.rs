//! Which error is which RPC code: the only place that decides it.

use std::io::ErrorKind;

use bulkhead_protocol::error::chain;
use bulkhead_protocol::version::NoCommonVersion;
use ttrpc::Code;

use crate::cgroup::CgroupError;
use crate::container::ContainerError;
use crate::hotplug::resize::ResizeError;
use crate::pod::SetupError;
use crate::process::helper::LaunchError;
use crate::process::reaper::SignalError;

/// Why a call failed.
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
    #[error("take added CPUs and memory into use")]
    Resize(#[from] ResizeError),
}

impl CallError {
    fn code(&self) -> Code {
        match self {
            CallError::Version(_) => Code::FAILED_PRECONDITION,
            CallError::Setup(error) => setup_code(error),
            CallError::Container(error) => container_code(error),
            CallError::Crashed(_) | CallError::Resize(_) => Code::INTERNAL,
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
        SetupError::Network(error) if error.is_invalid_request() => Code::INVALID_ARGUMENT,
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
        | ContainerError::Cgroup(CgroupError::ExceedsVm { .. })
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
        // The sub-path leads out of its volume, or through a file.
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
        | ContainerError::Transition { .. } => Code::INTERNAL,
    }
}

/// Nearly always libcontainer refuses because the request is wrong: a program, a user or a mount that does not exist.
fn launch_code(error: &LaunchError) -> Code {
    match error {
        LaunchError::Refused(_) => Code::INVALID_ARGUMENT,
        LaunchError::MakePipe(_)
        | LaunchError::Spawn(_)
        | LaunchError::Read(_)
        | LaunchError::NoReport { .. } => Code::INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_common_version_is_a_failed_precondition() {
        let error = CallError::from(NoCommonVersion { peer_min: 7, peer_max: 9 });
        assert_eq!(error.code(), Code::FAILED_PRECONDITION);
    }
}
