//! What a pod asks for, free of the wire it came over. Part of the durable record, so fields are only ever added.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A pod as its creator described it, already checked: what a VM cannot give has been refused before.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSpec {
    /// Kubernetes name of the pod.
    pub name: String,
    /// Kubernetes namespace of the pod.
    pub namespace: String,
    /// Kubernetes UID of the pod.
    pub uid: String,
    /// How often the sandbox of this pod was made before.
    pub attempt: u32,
    /// Host name of the guest; never empty once checked.
    pub hostname: String,
    /// Whole text of the containers' `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Parent of the pod's host cgroup, as kubelet spells it (`/kubepods/…` or `….slice`); empty: none named.
    pub cgroup_parent: String,
    /// Namespaced sysctls for the guest, dotted names, containerd's defaults included.
    pub sysctls: BTreeMap<String, String>,
    /// Sum of what the pod's containers may use.
    pub resources: Resources,
    /// What the sandbox itself may use beside them (`RuntimeClass.overhead`).
    pub overhead: Resources,
    /// Labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod.
    pub annotations: BTreeMap<String, String>,
    /// Where kubelet keeps the containers' logs on the host; empty: nowhere.
    pub log_directory: PathBuf,
    /// Containers of the pod see each other's processes.
    pub shared_pid_namespace: bool,
    /// Resource limits of the process that made the pod (containerd), by their OCI names (`RLIMIT_NOFILE`): what a
    /// container has where its spec says nothing, as it would without a VM.
    pub inherited_limits: BTreeMap<String, ResourceLimit>,
    /// Host ports of the pod. CNI's portmap serves them; here for people who look.
    pub port_mappings: Vec<PortMapping>,
}

/// One resource limit, getrlimit(2); `u64::MAX` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    /// What holds.
    pub soft: u64,
    /// Up to where the process itself may raise it.
    pub hard: u64,
}

/// CPU and memory bounds, `0` or empty meaning "not set", units as in the CRI.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// CFS period in microseconds.
    pub cpu_period: i64,
    /// CFS quota in microseconds per period; negative: no limit.
    pub cpu_quota: i64,
    /// Relative weight, 2 to 262144.
    pub cpu_shares: i64,
    /// Memory limit in bytes.
    pub memory_limit_bytes: i64,
    /// Memory plus swap limit in bytes.
    pub memory_swap_limit_bytes: i64,
    /// Host CPUs, in the list format of cpuset(7).
    pub cpuset_cpus: String,
    /// Host NUMA nodes, in the list format of cpuset(7).
    pub cpuset_mems: String,
    /// Huge page limits in bytes by page size (`2MB`, `1GB`).
    pub hugepage_limits: BTreeMap<String, u64>,
    /// Raw cgroup v2 files and what to write into them.
    pub unified: BTreeMap<String, String>,
}

impl Resources {
    /// With new values where some are set.
    #[must_use]
    pub(crate) fn updated(&self, new: &Self) -> Self {
        let number = |old: i64, new: i64| if new == 0 { old } else { new };
        let text = |old: &String, new: &String| if new.is_empty() { old.clone() } else { new.clone() };
        let (mut hugepage_limits, mut unified) = (self.hugepage_limits.clone(), self.unified.clone());
        hugepage_limits.extend(new.hugepage_limits.clone());
        unified.extend(new.unified.clone());
        Self {
            cpu_period: number(self.cpu_period, new.cpu_period),
            cpu_quota: number(self.cpu_quota, new.cpu_quota),
            cpu_shares: number(self.cpu_shares, new.cpu_shares),
            memory_limit_bytes: number(self.memory_limit_bytes, new.memory_limit_bytes),
            memory_swap_limit_bytes: number(self.memory_swap_limit_bytes, new.memory_swap_limit_bytes),
            cpuset_cpus: text(&self.cpuset_cpus, &new.cpuset_cpus),
            cpuset_mems: text(&self.cpuset_mems, &new.cpuset_mems),
            hugepage_limits,
            unified,
        }
    }
}

/// One host port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PortMapping {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Port in the pod.
    pub container_port: u16,
    /// Port on the host.
    pub host_port: u16,
    /// Address on the host; empty: every one.
    pub host_ip: String,
}

impl PodSpec {
    /// Text of `/etc/hosts` for containers that bring none: localhost, and the pod's own addresses under its name.
    #[must_use]
    pub fn hosts(&self, addresses: &[IpAddr]) -> String {
        let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        for address in addresses {
            // Writing into a String cannot fail.
            let _infallible = writeln!(text, "{address}\t{}", self.hostname);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_record_without_newer_fields_still_reads() {
        let spec: PodSpec = serde_json::from_str(r#"{"name":"web","unknown_later":1}"#).unwrap();
        assert_eq!(spec, PodSpec { name: "web".into(), ..PodSpec::default() });
    }

    #[test]
    fn hosts_names_every_address_of_the_pod() {
        let spec = PodSpec { hostname: "web-0".into(), ..PodSpec::default() };
        let hosts = spec.hosts(&["10.88.0.4".parse().unwrap(), "fd00::4".parse().unwrap()]);
        assert!(hosts.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(hosts.ends_with("10.88.0.4\tweb-0\nfd00::4\tweb-0\n"), "{hosts}");
    }
}
