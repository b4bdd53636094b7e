//! The one place that turns errors into RPC codes, and logs them.

use bulkhead_protocol::error::chain;
use containerd_sandbox::{Code, Failure};

use vmm_actors::sandbox::state::{Cause, Class};
use vmm_actors::sandbox::{Blame, SandboxError};

use crate::pod_config::PodConfigError;
use crate::update::UpdateError;

/// A failed call about a sandbox, said to its caller and to the log.
pub(crate) fn failure(call: &'static str, error: &SandboxError) -> Failure {
    let failure = Failure::new(code(error), chain(error));
    if let SandboxError::NoMetrics { .. } = error {
        // The kubelet polls every pod that it has not removed.
        tracing::debug!(call, code = ?failure.code, "{}", failure.message);
    } else {
        log(call, &failure);
    }
    failure
}

/// A pod that cannot be read is the caller's.
pub(crate) fn bad_pod(id: &str, error: &PodConfigError) -> Failure {
    invalid("create", format!("sandbox {id}: {}", chain(error)))
}

/// An update that cannot be read.
pub(crate) fn bad_update(id: &str, error: &UpdateError) -> Failure {
    let code = match error {
        UpdateError::NothingKnown => Code::Unimplemented,
        UpdateError::Decode { .. } => Code::InvalidArgument,
    };
    let failure = Failure::new(code, format!("sandbox {id}: {}", chain(error)));
    log("update", &failure);
    failure
}

/// Something in the request that cannot be.
pub(crate) fn invalid(call: &'static str, message: String) -> Failure {
    let failure = Failure::new(Code::InvalidArgument, message);
    log(call, &failure);
    failure
}

/// The same failure for a ttrpc caller.
pub(crate) fn ttrpc(failure: Failure) -> ttrpc::Error {
    let code = match failure.code {
        Code::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
        Code::NotFound => ttrpc::Code::NOT_FOUND,
        Code::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
        Code::FailedPrecondition => ttrpc::Code::FAILED_PRECONDITION,
        Code::ResourceExhausted => ttrpc::Code::RESOURCE_EXHAUSTED,
        Code::DeadlineExceeded => ttrpc::Code::DEADLINE_EXCEEDED,
        Code::Unavailable => ttrpc::Code::UNAVAILABLE,
        Code::Unimplemented => ttrpc::Code::UNIMPLEMENTED,
        Code::Internal => ttrpc::Code::INTERNAL,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, failure.message))
}

fn code(error: &SandboxError) -> Code {
    match error {
        SandboxError::AlreadyExists(_) => Code::AlreadyExists,
        SandboxError::NotFound(_) => Code::NotFound,
        SandboxError::Refused { .. }
        | SandboxError::NotRunning { .. }
        | SandboxError::HostDisk { .. }
        | SandboxError::Unchangeable { .. } => Code::FailedPrecondition,
        SandboxError::Ended { cause, .. } => cause_code(cause),
        SandboxError::Busy(_) => Code::ResourceExhausted,
        // containerd leaves a pod out of its statistics on Unavailable, and fails all of them on Internal.
        SandboxError::Gone(_) | SandboxError::NoMetrics { .. } | SandboxError::Resources { .. } => {
            Code::Unavailable
        }
        SandboxError::ReadBundle { .. }
        | SandboxError::Spec { .. }
        | SandboxError::Mount { blame: Blame::Caller, .. } => Code::InvalidArgument,
        // What the pod's VM has not is no fault of the request itself.
        SandboxError::Attach { blame: Blame::Caller, .. } => Code::FailedPrecondition,
        SandboxError::Leftover { .. }
        | SandboxError::Record { .. }
        | SandboxError::Mount { blame: Blame::Host, .. }
        | SandboxError::Attach { blame: Blame::Host, .. }
        | SandboxError::Detach { .. } => Code::Internal,
    }
}

fn cause_code(cause: &Cause) -> Code {
    match cause.class {
        Class::Asked => Code::FailedPrecondition,
        Class::Invalid => Code::InvalidArgument,
        Class::Exhausted => Code::ResourceExhausted,
        Class::TimedOut => Code::DeadlineExceeded,
        Class::Lost => Code::Unavailable,
    }
}

/// "There is none" is an everyday answer; the rest is for the operator.
fn log(call: &'static str, failure: &Failure) {
    let Failure { code, message } = failure;
    if *code == Code::NotFound {
        tracing::debug!(call, ?code, "{message}");
    } else {
        tracing::warn!(call, ?code, "{message}");
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use vmm_actors::guest_spec::SpecError;
    use vmm_actors::host::block::{BlockError, Number};
    use vmm_actors::id::{ContainerId, SandboxId};
    use vmm_actors::sandbox::record::RecordError;
    use vmm_actors::sandbox::state::Refused;

    fn id() -> SandboxId {
        SandboxId::new("p").unwrap()
    }

    fn container() -> ContainerId {
        ContainerId::new("c").unwrap()
    }

    fn ended(class: Class) -> SandboxError {
        SandboxError::Ended { id: id(), cause: Cause { class, reason: String::new() } }
    }

    /// Every error, and what its caller hears.
    fn table() -> Vec<(SandboxError, Code)> {
        let (reason, source) = (String::new, || io::Error::from(io::ErrorKind::NotFound));
        let unwritten = RecordError::Write { path: "/x".into(), source: source() };
        let unknown = BlockError::Unknown { number: Number { major: 7, minor: 0 }, source: source() };
        let mount = |blame| SandboxError::Mount { container: container(), blame, reason: reason() };
        let plug = |blame| SandboxError::Attach { container: container(), blame, reason: reason() };
        vec![
            (SandboxError::AlreadyExists(id()), Code::AlreadyExists),
            (SandboxError::NotFound(id()), Code::NotFound),
            (SandboxError::Refused { id: id(), source: Refused { state: "x" } }, Code::FailedPrecondition),
            (ended(Class::Asked), Code::FailedPrecondition),
            (ended(Class::Invalid), Code::InvalidArgument),
            (ended(Class::Exhausted), Code::ResourceExhausted),
            (ended(Class::TimedOut), Code::DeadlineExceeded),
            (ended(Class::Lost), Code::Unavailable),
            (SandboxError::Leftover { id: id(), left: Vec::new() }, Code::Internal),
            (SandboxError::Record { id: id(), source: unwritten }, Code::Internal),
            (SandboxError::Busy(id()), Code::ResourceExhausted),
            (SandboxError::Gone(id()), Code::Unavailable),
            (SandboxError::NotRunning { id: id(), state: "x" }, Code::FailedPrecondition),
            (
                SandboxError::ReadBundle { container: container(), path: "/x".into(), source: source() },
                Code::InvalidArgument,
            ),
            (
                SandboxError::Spec { container: container(), source: SpecError::NoProcess },
                Code::InvalidArgument,
            ),
            (
                SandboxError::HostDisk { container: container(), path: "/x".into(), source: unknown },
                Code::FailedPrecondition,
            ),
            (plug(Blame::Caller), Code::FailedPrecondition),
            (plug(Blame::Host), Code::Internal),
            (SandboxError::Detach { container: container(), reason: reason() }, Code::Internal),
            (mount(Blame::Caller), Code::InvalidArgument),
            (mount(Blame::Host), Code::Internal),
            (SandboxError::Unchangeable { id: id(), reason: reason() }, Code::FailedPrecondition),
            (SandboxError::Resources { id: id(), reason: reason() }, Code::Unavailable),
            (SandboxError::NoMetrics { id: id(), state: "x" }, Code::Unavailable),
        ]
    }

    /// Place of a variant among all: a new one does not compile before it is here, and fails before it is in the table.
    fn place(error: &SandboxError) -> usize {
        match error {
            SandboxError::AlreadyExists(_) => 0,
            SandboxError::NotFound(_) => 1,
            SandboxError::Refused { .. } => 2,
            SandboxError::Ended { .. } => 3,
            SandboxError::Leftover { .. } => 4,
            SandboxError::Record { .. } => 5,
            SandboxError::Busy(_) => 6,
            SandboxError::Gone(_) => 7,
            SandboxError::NotRunning { .. } => 8,
            SandboxError::ReadBundle { .. } => 9,
            SandboxError::Spec { .. } => 10,
            SandboxError::HostDisk { .. } => 11,
            SandboxError::Attach { .. } => 12,
            SandboxError::Detach { .. } => 13,
            SandboxError::Mount { .. } => 14,
            SandboxError::Unchangeable { .. } => 15,
            SandboxError::Resources { .. } => 16,
            SandboxError::NoMetrics { .. } => 17,
        }
    }

    #[test]
    fn a_caller_hears_whose_fault_it_is() {
        let mut seen = std::collections::BTreeSet::new();
        for (error, wanted) in table() {
            assert_eq!(code(&error), wanted, "{error:?}");
            seen.insert(place(&error));
        }
        assert!(seen.into_iter().eq(0..18), "an error is missing in the table");
    }
}
