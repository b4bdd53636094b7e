//! The errors of Task calls, and the only place that turns them into RPC statuses.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::error::chain;
use bulkhead_protocol::untrusted;
use ttrpc::{Code, Status};

use crate::lifecycle::Refusal;

/// The error of a Task call. Clones share the causes: a repeated call gets the same answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum TaskError {
    /// The pod has no such container (any more).
    #[error("no container {container} in this pod")]
    UnknownContainer {
        /// As the caller named it.
        container: String,
    },
    /// The container has no such exec (any more).
    #[error("no exec {exec} in container {container}")]
    UnknownExec {
        /// As the caller named it.
        container: String,
        /// As the caller named it.
        exec: String,
    },
    /// The id is in use.
    #[error("{what} exists already")]
    AlreadyExists {
        /// The container or exec.
        what: String,
    },
    /// The request is not possible in the present state.
    #[error("{what}: {source}")]
    Refused {
        /// The container or exec.
        what: String,
        /// Why.
        source: Refusal,
    },
    /// The request lacks something, or asks for something that is not supported.
    #[error("{0}")]
    BadRequest(String),
    /// The request changes a container's CPUs or memory nodes of the host, which its VM does not have.
    #[error(
        "the {what} {wanted:?} cannot be given to a running container that was made with {had:?}: they are the host's, \
         and it has those of its VM; nothing was changed"
    )]
    Pinned {
        /// CPUs or memory nodes.
        what: &'static str,
        /// In the list format of cpuset(7).
        wanted: String,
        /// What it was made with; may be empty.
        had: String,
    },
    /// This runtime does not have the call.
    #[error("{act} is not supported by Bulkhead")]
    NotOffered {
        /// The Task call.
        act: &'static str,
    },
    /// The host's end of a stream could not be opened.
    #[error("cannot open {} for {stream}", path.display())]
    OpenStdio {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// As containerd named it.
        path: PathBuf,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// The guest's end of a stream could not be connected.
    #[error("the guest took no connection for {stream}")]
    ConnectStream {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// The VM has ended.
    #[error("the VM of this pod is gone: {reason}")]
    VmGone {
        /// From the sandboxer, or from our own watch.
        reason: Arc<str>,
    },
    /// There was no session with the agent before the caller's deadline.
    #[error("no session with the guest agent in time for {act}")]
    AgentUnreachable {
        /// What was to be asked.
        act: &'static str,
    },
    /// The agent took longer than the caller's deadline.
    #[error("the guest agent did not answer {act} in time")]
    AgentSilent {
        /// What was asked.
        act: &'static str,
    },
    /// The session broke before the answer.
    #[error("lost the guest agent during {act}")]
    AgentLost {
        /// What was asked.
        act: &'static str,
        /// The cause.
        source: ttrpc::Error,
    },
    /// The agent refused or failed.
    #[error("the guest agent failed to {act}: {}", untrusted::text(.status.message()))]
    AgentFailed {
        /// What was asked.
        act: &'static str,
        /// The agent's answer.
        status: Status,
    },
    /// The agent's answer breaks the contract.
    #[error("the guest agent's answer to {act} makes no sense: {fault}")]
    AgentNonsense {
        /// What was asked.
        act: &'static str,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The sandboxer could not be reached within the caller's deadline.
    #[error("the sandboxer could not be reached at {} for {act} (is bulkhead-sandboxer running?)", path.display())]
    SandboxerUnreachable {
        /// What was to be asked.
        act: &'static str,
        /// Its control socket.
        path: PathBuf,
        /// The last failure.
        source: ttrpc::Error,
    },
    /// The sandboxer took longer than the caller's deadline.
    #[error("the sandboxer did not answer {act} in time")]
    SandboxerSilent {
        /// What was asked.
        act: &'static str,
    },
    /// The sandboxer refused or failed.
    #[error("the sandboxer failed to {act}: {}", .status.message())]
    SandboxerFailed {
        /// What was asked.
        act: &'static str,
        /// Its answer.
        status: Status,
    },
    /// A task of this process panicked.
    #[error("the shim proxy failed internally; see shim.stderr in the pod's directory")]
    Crashed,
}

impl TaskError {
    /// Whether the RPC code is "not found".
    pub(crate) fn is_not_found(&self) -> bool {
        self.code() == Code::NOT_FOUND
    }

    /// Whether the VM is gone, and everything in it.
    pub(crate) fn is_vm_gone(&self) -> bool {
        matches!(self, Self::VmGone { .. })
    }

    /// The RPC code of this error.
    fn code(&self) -> Code {
        match self {
            Self::UnknownContainer { .. } | Self::UnknownExec { .. } => Code::NOT_FOUND,
            Self::AlreadyExists { .. } => Code::ALREADY_EXISTS,
            Self::Refused { source, .. } => match source {
                Refusal::Missing | Refusal::AlreadyEnded => Code::NOT_FOUND,
                Refusal::BeingCreated
                | Refusal::NotRunning
                | Refusal::AlreadyStarted
                | Refusal::StillRunning
                | Refusal::NothingToDo => Code::FAILED_PRECONDITION,
            },
            Self::BadRequest(_) => Code::INVALID_ARGUMENT,
            Self::Pinned { .. } => Code::FAILED_PRECONDITION,
            Self::NotOffered { .. } => Code::UNIMPLEMENTED,
            Self::OpenStdio { source, .. } if source.kind() == io::ErrorKind::NotFound => Code::NOT_FOUND,
            Self::OpenStdio { .. } | Self::AgentNonsense { .. } | Self::Crashed => Code::INTERNAL,
            Self::ConnectStream { .. }
            | Self::VmGone { .. }
            | Self::AgentUnreachable { .. }
            | Self::AgentLost { .. }
            | Self::SandboxerUnreachable { .. } => Code::UNAVAILABLE,
            Self::AgentSilent { .. } | Self::SandboxerSilent { .. } => Code::DEADLINE_EXCEEDED,
            Self::AgentFailed { status, .. } | Self::SandboxerFailed { status, .. } => forwarded_code(status),
        }
    }

    /// The error as the caller gets it: the whole chain in one line.
    pub(crate) fn status(&self) -> ttrpc::Error {
        ttrpc::Error::RpcStatus(ttrpc::get_status(self.code(), chain(self)))
    }
}

/// The RPC code of another peer's error. Unimplemented is never passed on: it would make containerd fall back to
/// version 2 of the Task API (fact 3.4).
fn forwarded_code(status: &Status) -> Code {
    match status.code() {
        Code::OK
        | Code::CANCELLED
        | Code::UNKNOWN
        | Code::UNIMPLEMENTED
        | Code::INTERNAL
        | Code::DATA_LOSS
        | Code::ABORTED
        | Code::OUT_OF_RANGE
        | Code::UNAUTHENTICATED => Code::INTERNAL,
        code @ (Code::INVALID_ARGUMENT
        | Code::DEADLINE_EXCEEDED
        | Code::NOT_FOUND
        | Code::ALREADY_EXISTS
        | Code::PERMISSION_DENIED
        | Code::RESOURCE_EXHAUSTED
        | Code::FAILED_PRECONDITION
        | Code::UNAVAILABLE) => code,
    }
}

/// How long cleaning up after a failure may delay the answer.
pub(crate) const CLEANUP_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_guest_is_cut_and_kept_to_one_line() {
        let status = ttrpc::get_status(Code::INTERNAL, format!("a\nb{}", "x".repeat(5000)));
        let text = TaskError::AgentFailed { act: "start", status }.to_string();
        assert!(!text.contains('\n'));
        assert!(text.len() < untrusted::MAX_TEXT + 100, "{}", text.len());
    }

    #[test]
    fn unimplemented_of_another_peer_becomes_internal() {
        let status = ttrpc::get_status(Code::UNIMPLEMENTED, "no");
        assert_eq!(TaskError::AgentFailed { act: "create", status }.code(), Code::INTERNAL);
    }

    #[test]
    fn the_chain_names_each_cause_once() {
        let error = TaskError::Refused { what: "container c".into(), source: Refusal::StillRunning };
        assert_eq!(chain(&error), "container c: it is still running");
        let error = TaskError::OpenStdio {
            stream: "stdout",
            path: "/x".into(),
            source: Arc::new(io::Error::from_raw_os_error(2)),
        };
        assert!(chain(&error).contains("No such file"), "{}", chain(&error));
        assert!(error.is_not_found());
    }
}
