//! Which specs of the suite are chosen, and what they are judged by.

use bulkhead_tests::conformance::specs::LeftOut;
use bulkhead_tests::conformance::verdict::{Refusal, Rules};

/// The label of specs that every node has to pass.
const WANTED: &str = "NodeConformance";

/// Labels of specs that stop the node's daemons, take the node for themselves, or are known to fail now and then.
const UNWANTED: &[&str] = &["Serial", "Slow", "Flaky", "Disruptive"];

/// How labels begin of specs about features that a node has only when it is set up for them.
const FEATURE: &str = "Feature:";

/// The choice as ginkgo's `--label-filter` says it.
pub(crate) fn filter() -> String {
    let unwanted: String = UNWANTED.iter().map(|label| format!(" && !{label}")).collect();
    format!("{WANTED}{unwanted} && {FEATURE} isEmpty")
}

/// The same for the labels of one spec.
pub(crate) fn chosen(labels: &[String]) -> bool {
    let has = |wanted: &str| labels.iter().any(|label| label == wanted);
    has(WANTED)
        && !UNWANTED.iter().any(|label| has(label))
        && !labels.iter().any(|label| label.starts_with(FEATURE))
}

/// Parts of names that are the same in every spec that is chosen.
pub(crate) const TAGS: &[&str] = &["[sig-node] ", "[sig-storage] ", "[NodeConformance]", "[Conformance]"];

/// Specs of which `--quick` runs those that match: a few of each kind, none that waits for minutes.
pub(crate) const QUICK: &str = "Container Runtime blackbox test on terminated container\
    |Downward API should provide (pod|container|default)|Security Context When creating a\
    |EmptyDir volumes should support|Variable Expansion should allow|Kubelet when scheduling a\
    |ConfigMap should be consumable|Hostname of Pod";

/// What cannot run on a test node at all.
pub(crate) const LEFT_OUT: &[LeftOut] =
    &[below_its_own_cgroup("Kubelet Cgroup Manager"), below_its_own_cgroup("Kubelet PodOverhead handling")];

const fn below_its_own_cgroup(names: &'static str) -> LeftOut {
    LeftOut {
        names,
        why: "looks for kubelet's cgroups in the machine's root, and a test node's are below one of its own",
    }
}

/// What the specs are judged by.
pub(crate) const RULES: Rules = Rules { refusals: REFUSALS, not_judged: &[] };

/// Everything that is refused though runc can do it.
const REFUSALS: &[Refusal] = &[
    host_network(
        "Downward API should provide host IP and pod IP as an env var if pod uses host network [LinuxOnly]",
    ),
    host_network("KubeletManagedEtcHosts should test kubelet managed /etc/hosts file"),
    host_network(
        "Kubelet with pods in a privileged namespace when scheduling an agnhost Pod with hostAliases and hostNetwork \
         should write entries to /etc/hosts when hostNetwork is enabled",
    ),
    host_network(
        "[sig-network] Networking Granular Checks: Pods should function for node-pod communication: http [LinuxOnly]",
    ),
    host_network(
        "[sig-network] Networking Granular Checks: Pods should function for node-pod communication: udp [LinuxOnly]",
    ),
    host_network(
        "[sig-network] Pod Host IPs when creating a Pod should add node IPs of all supported families to hostIPs of \
         host-network pod",
    ),
    Refusal {
        spec: "Mount recursive read-only [LinuxOnly] Mount recursive read-only when the runtime supports recursive \
               read-only mounts should accept recursive read-only mounts",
        says: "mounts made in a VM cannot reach the host",
        why: "refused: its Bidirectional volume, as a mount made by the guest's kernel cannot appear on the host",
    },
];

const fn host_network(spec: &'static str) -> Refusal {
    Refusal {
        spec,
        says: "hostNetwork pods cannot run in a VM",
        why: "refused: the host's interfaces cannot be used from a VM",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_and_choice_say_the_same() {
        assert_eq!(
            filter(),
            "NodeConformance && !Serial && !Slow && !Flaky && !Disruptive && Feature: isEmpty"
        );
        let labels = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert!(chosen(&labels(&["sig-node", "NodeConformance", "Conformance"])));
        assert!(!chosen(&labels(&["sig-node"])));
        assert!(!chosen(&labels(&["NodeConformance", "Serial"])));
        assert!(!chosen(&labels(&["NodeConformance", "Feature:Swap"])));
    }
}
