//! The Kubernetes RuntimeClasses that fit the settings, one for each profile, as YAML.

use bulkhead_config::{ProfileName, Settings};
use vmm_actors::cgroup::Limits;

/// The label of nodes that run Bulkhead, as in the Helm chart (`config/kubernetes/helm/values.yaml`).
const READY: &str = "bulkhead-project.github.io/ready";

/// The RuntimeClass of every profile, as documents of one stream.
pub(crate) fn manifest(settings: &Settings) -> String {
    let classes = settings.all_profiles().map(|(name, profile)| class(&name, profile));
    let label =
        format!("# kubectl label node NODE {READY}=true    on every node that runs bulkhead-sandboxer\n");
    label + &classes.collect::<Vec<_>>().join("---\n")
}

/// What a VM takes beside its pod's own limit becomes the overhead, so that the scheduler reckons with it and kubelet
/// makes the pod's cgroup large enough. It has no CPU: what VMM and helpers use counts against the pod's own CPU limit.
fn class(name: &ProfileName, profile: &Settings) -> String {
    let guest_mib = profile.vm.memory_mib;
    let overhead_mib = Limits::needed_bytes(u64::from(guest_mib.get()) << 20) >> 20;
    let (runtime, table) = (name.runtime(), table(name));
    format!(
        "apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: {runtime}
# The runtime's name in containerd's configuration.
handler: {runtime}
overhead:
  podFixed:
    # {table} memory_mib = {guest_mib}, and {} MiB for VMM and helpers.
    memory: {overhead_mib}Mi
scheduling:
  nodeSelector:
    {READY}: \"true\"
",
        overhead_mib - u64::from(guest_mib.get())
    )
}

/// Where the settings have a profile's sizes.
fn table(name: &ProfileName) -> String {
    if *name == ProfileName::default() { "[vm]".to_owned() } else { format!("[profile.{name}.vm]") }
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
            text.contains("    memory: 1216Mi\n") && text.contains("[vm] memory_mib = 1024, and 192 MiB"),
            "{text}"
        );
        let chart = include_str!("../../config/kubernetes/helm/values.yaml");
        assert!(chart.contains(&format!("    {READY}: \"true\"\n")), "the chart has another label");
    }

    #[test]
    fn each_profile_has_a_class_of_its_own() {
        let text = "[profile.big]\nlisten = \"/run/b.sock\"\n[profile.big.vm]\nmemory_mib = 1024\n";
        let settings = Settings::parse(text, bulkhead_config::Scope::Values).unwrap();
        let text = manifest(&settings);
        let classes: Vec<&str> = text.split("---\n").collect();
        let [default, big] = classes.as_slice() else { panic!("{text}") };
        assert!(default.contains("handler: bulkhead\n") && default.contains("memory: 448Mi\n"), "{default}");
        assert!(big.contains("handler: bulkhead-big\n") && big.contains("memory: 1216Mi\n"), "{big}");
        assert!(big.contains("# [profile.big.vm] memory_mib = 1024, and 192 MiB"), "{big}");
    }
}
