//! What this suite's specs are judged by.

use bulkhead_tests::conformance::verdict::{NotARuntimes, Refusal, Rules};

/// Everything that is refused though runc can do it, and what is containerd's own.
pub(crate) const RULES: Rules = Rules {
    refusals: REFUSALS,
    not_judged: &[NotARuntimes {
        begin: "Image ",
        why: "containerd's image service alone, and a registry, which the node has not",
    }],
};

const REFUSALS: &[Refusal] = &[
    Refusal {
        spec: "Security Context NamespaceOption runtime should support HostPID",
        says: "hostPID pods cannot run in a VM",
        why: "refused: the host's processes cannot be seen from a VM",
    },
    Refusal {
        spec: "Security Context NamespaceOption runtime should support HostIpc is true",
        says: "hostIPC pods cannot run in a VM",
        why: "refused: the host's shared memory cannot be used from a VM",
    },
    Refusal {
        spec: "Security Context NamespaceOption runtime should support HostNetwork is true",
        says: "hostNetwork pods cannot run in a VM",
        why: "refused: the host's interfaces cannot be used from a VM",
    },
    Refusal {
        spec: "Streaming runtime should support streaming interfaces runtime should support portforward in host network",
        says: "hostNetwork pods cannot run in a VM",
        why: "refused with the host network",
    },
    Refusal {
        spec: "Container Mount Propagation runtime should support mount propagation mount with 'rshared' should \
               support propagation from host to container and vice versa",
        says: "mounts made in a VM cannot reach the host",
        why: "refused: a mount made by the guest's kernel cannot appear on the host",
    },
];
