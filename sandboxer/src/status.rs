//! The one place that turns errors into RPC codes, and logs them.

use containerd_sandbox::{Code, Failure};

use vmm_actors::sandbox::state::{Cause, Class};
use vmm_actors::sandbox::{SandboxError, chain};

use crate::pod_config::PodConfigError;
use crate::update::UpdateError;

/// A failed call about a sandbox, said to its caller and to the log.
pub(crate) fn failure(call: &'static str, error: &SandboxError) -> Failure {
    let failure = Failure::new(code(error), chain(error));
    log(call, &failure);
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
        SandboxError::Gone(_) | SandboxError::Resources { .. } => Code::Unavailable,
        SandboxError::ReadBundle { .. } | SandboxError::Spec { .. } => Code::InvalidArgument,
        SandboxError::Leftover { .. }
        | SandboxError::Record { .. }
        | SandboxError::Mount { .. }
        | SandboxError::Plug { .. }
        | SandboxError::Unplug { .. } => Code::Internal,
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
