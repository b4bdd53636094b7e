//! The one place that turns errors into RPC codes, and logs them.

use bulkhead_protocol::error::chain;
use containerd_sandbox::{Code, Failure};

use vmm_actors::containers::ContainerError;
use vmm_actors::sandbox::SandboxError;
use vmm_actors::sandbox::state::{Cause, Class};

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
        SandboxError::Refused { .. } | SandboxError::Unchangeable { .. } => Code::FailedPrecondition,
        SandboxError::Ended { cause, .. } => cause_code(cause),
        SandboxError::Busy(_) => Code::ResourceExhausted,
        // containerd leaves a pod out of its statistics on Unavailable, and fails all of them on Internal.
        SandboxError::Gone(_) | SandboxError::NoMetrics { .. } | SandboxError::Resources { .. } => {
            Code::Unavailable
        }
        SandboxError::Container(error) => container_code(error),
        SandboxError::Leftover { .. } | SandboxError::Record { .. } => Code::Internal,
    }
}

fn container_code(error: &ContainerError) -> Code {
    match error {
        ContainerError::NotRunning { .. } | ContainerError::HostDisk { .. } => Code::FailedPrecondition,
        ContainerError::Busy(_) | ContainerError::Releasing(_) => Code::ResourceExhausted,
        ContainerError::Ended(_) => Code::Unavailable,
        ContainerError::ReadBundle { .. } | ContainerError::Spec { .. } => Code::InvalidArgument,
        ContainerError::Mount { .. } if error.is_callers() => Code::InvalidArgument,
        // What the pod's VM has not is no fault of the request itself.
        ContainerError::Attach { .. } if error.is_callers() => Code::FailedPrecondition,
        ContainerError::Record { .. }
        | ContainerError::Mount { .. }
        | ContainerError::Attach { .. }
        | ContainerError::Detach { .. } => Code::Internal,
        ContainerError::Shared(error) => container_code(error),
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
    use std::num::NonZeroU32;

    use super::*;
    use vmm_actors::ask::AskError;
    use vmm_actors::cgroup::CgroupError;
    use vmm_actors::containers::AttachError;
    use vmm_actors::guest_spec::SpecError;
    use vmm_actors::host::block::{BlockError, Number};
    use vmm_actors::id::{ContainerId, SandboxId};
    use vmm_actors::mounts::MountsError;
    use vmm_actors::resize::{GrowthError, ResizeError};
    use vmm_actors::sandbox::record::RecordError;
    use vmm_actors::sandbox::state::Refused;
    use vmm_actors::vm::{Size, VmError};

    fn id() -> SandboxId {
        SandboxId::new("p").unwrap()
    }

    fn container() -> ContainerId {
        ContainerId::new("c").unwrap()
    }

    fn ended(class: Class) -> SandboxError {
        SandboxError::Ended { id: id(), cause: Cause { class, reason: String::new() } }
    }

    fn not_found() -> io::Error {
        io::Error::from(io::ErrorKind::NotFound)
    }

    fn unwritten() -> RecordError {
        RecordError::Write { path: "/x".into(), source: not_found() }
    }

    /// Every error about a sandbox, and what its caller hears.
    fn table() -> Vec<(SandboxError, Code)> {
        let unchangeable = |source| SandboxError::Unchangeable { id: id(), source: Box::new(source) };
        let gone = || GrowthError::Vm(AskError::Gone("Vm"));
        let size = Size { vcpus: NonZeroU32::MIN, memory_mib: NonZeroU32::MIN };
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
            (SandboxError::Record { id: id(), source: unwritten() }, Code::Internal),
            (SandboxError::Busy(id()), Code::ResourceExhausted),
            (SandboxError::Gone(id()), Code::Unavailable),
            (unchangeable(ResizeError::NotRunning { state: "x" }), Code::FailedPrecondition),
            (unchangeable(ResizeError::Limits(AskError::Gone("Cgroup"))), Code::FailedPrecondition),
            (
                unchangeable(ResizeError::CannotGrow { from: size, to: size, source: gone() }),
                Code::FailedPrecondition,
            ),
            (
                unchangeable(ResizeError::NotGrown { from: size, to: size, has: size, source: gone() }),
                Code::FailedPrecondition,
            ),
            (
                SandboxError::Resources {
                    id: id(),
                    source: Box::new(AskError::Failed(CgroupError::NotMounted)),
                },
                Code::Unavailable,
            ),
            (SandboxError::NoMetrics { id: id(), state: "x" }, Code::Unavailable),
            (SandboxError::Container(ContainerError::Ended(id())), Code::Unavailable),
        ]
    }

    /// Every error about a container, and what its caller hears.
    fn container_table() -> Vec<(ContainerError, Code)> {
        let unknown = || BlockError::Unknown { number: Number { major: 7, minor: 0 }, source: not_found() };
        let mount = |source| ContainerError::Mount { container: container(), source };
        let attach = |source| ContainerError::Attach { container: container(), source };
        let device = |error| AttachError::Device {
            device: "/x".into(),
            path: "/y".into(),
            source: std::sync::Arc::new(AskError::Failed(error)),
        };
        let unsupported = || VmError::Unsupported { driver: "x".into(), what: "x", why: "x".into() };
        let host_disk =
            || ContainerError::HostDisk { container: container(), path: "/x".into(), source: unknown() };
        let old_guest = || AttachError::OldGuest { agent_build: String::new() };
        vec![
            (ContainerError::NotRunning { sandbox: id(), state: "x" }, Code::FailedPrecondition),
            (ContainerError::Ended(id()), Code::Unavailable),
            (ContainerError::Busy(id()), Code::ResourceExhausted),
            (ContainerError::Releasing(container()), Code::ResourceExhausted),
            (
                ContainerError::Record { container: container(), source: AskError::Failed(unwritten()) },
                Code::Internal,
            ),
            (
                ContainerError::ReadBundle { container: container(), path: "/x".into(), source: not_found() },
                Code::InvalidArgument,
            ),
            (
                ContainerError::Spec { container: container(), source: SpecError::NoProcess },
                Code::InvalidArgument,
            ),
            (host_disk(), Code::FailedPrecondition),
            (attach(AttachError::Incapable(String::new())), Code::FailedPrecondition),
            (attach(old_guest()), Code::FailedPrecondition),
            (attach(device(unsupported())), Code::FailedPrecondition),
            (attach(device(VmError::Cancelled)), Code::Internal),
            (ContainerError::Detach { container: container(), source: AskError::Gone("Vm") }, Code::Internal),
            (
                mount(AskError::Failed(MountsError::NoRootfs { container: container() })),
                Code::InvalidArgument,
            ),
            (mount(AskError::Failed(MountsError::CutOff)), Code::Internal),
            (mount(AskError::Gone("Mounts")), Code::Internal),
            (ContainerError::Shared(host_disk().into()), Code::FailedPrecondition),
            (ContainerError::Shared(attach(old_guest()).into()), Code::FailedPrecondition),
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
            SandboxError::Container(_) => 8,
            SandboxError::Unchangeable { .. } => 9,
            SandboxError::Resources { .. } => 10,
            SandboxError::NoMetrics { .. } => 11,
        }
    }

    /// The same of errors about containers.
    fn place_of_container(error: &ContainerError) -> usize {
        match error {
            ContainerError::NotRunning { .. } => 0,
            ContainerError::Ended(_) => 1,
            ContainerError::Busy(_) => 2,
            ContainerError::Releasing(_) => 3,
            ContainerError::Record { .. } => 4,
            ContainerError::ReadBundle { .. } => 5,
            ContainerError::Spec { .. } => 6,
            ContainerError::HostDisk { .. } => 7,
            ContainerError::Attach { .. } => 8,
            ContainerError::Detach { .. } => 9,
            ContainerError::Mount { .. } => 10,
            ContainerError::Shared(_) => 11,
        }
    }

    #[test]
    fn a_caller_hears_whose_fault_it_is() {
        let mut seen = std::collections::BTreeSet::new();
        for (error, wanted) in table() {
            assert_eq!(code(&error), wanted, "{error:?}");
            seen.insert(place(&error));
        }
        assert!(seen.into_iter().eq(0..12), "an error is missing in the table");
    }

    #[test]
    fn the_same_of_containers() {
        let mut seen = std::collections::BTreeSet::new();
        for (error, wanted) in container_table() {
            assert_eq!(container_code(&error), wanted, "{error:?}");
            seen.insert(place_of_container(&error));
            assert_eq!(code(&SandboxError::from(error)), wanted, "as an error of its sandbox");
        }
        assert!(seen.into_iter().eq(0..12), "an error is missing in the table");
    }
}
