//! The Kubernetes RuntimeClass that fits the settings, as YAML.

use bulkhead_config::Settings;
use vmm_actors::cgroup::Limits;

/// Name of the runtime in containerd's configuration, as shipped (`config/containerd/bulkhead.toml`).
const HANDLER: &str = "bulkhead";

/// The label of nodes that run Bulkhead, as in the Helm chart (`config/kubernetes/helm/values.yaml`).
const READY: &str = "bulkhead-project.github.io/ready";

/// What a VM takes beside its pod's own limit becomes the overhead, so that the scheduler reckons with it and kubelet
/// makes the pod's cgroup large enough. It has no CPU: what VMM and helpers use counts against the pod's own CPU limit.
pub(crate) fn manifest(settings: &Settings) -> String {
    let guest_mib = settings.vm.memory_mib;
    let overhead_mib = Limits::needed_bytes(u64::from(guest_mib.get()) << 20) >> 20;
    format!(
        "# kubectl label node NODE {READY}=true    on every node that runs bulkhead-sandboxer
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: {HANDLER}
# The runtime's name in containerd's configuration.
handler: {HANDLER}
overhead:
  podFixed:
    # [vm] memory_mib = {guest_mib}, and {} MiB for VMM and helpers.
    memory: {overhead_mib}Mi
scheduling:
  nodeSelector:
    {READY}: \"true\"
",
        overhead_mib - u64::from(guest_mib.get())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overhead_is_what_the_settings_make_of_it() {
        let mut settings = Settings::default();
        assert!(manifest(&settings).contains("    memory: 448Mi\n"));
        settings.vm.memory_mib = 1024.try_into().unwrap();
        let text = manifest(&settings);
        assert!(
            text.contains("    memory: 1216Mi\n") && text.contains("memory_mib = 1024, and 192 MiB"),
            "{text}"
        );
        assert!(
            include_str!("../../config/containerd/bulkhead.toml").contains(&format!("runtimes.{HANDLER}]"))
        );
        let chart = include_str!("../../config/kubernetes/helm/values.yaml");
        assert!(chart.contains(&format!("    {READY}: \"true\"\n")), "the chart has another label");
    }
}
