//! From CRI's `PodSandboxConfig` to what the actors understand. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use containerd_sandbox::Any;
use k8s_cri::v1::{
    DnsConfig, LinuxContainerResources, LinuxPodSandboxConfig, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PortMapping as CriPortMapping, Protocol,
};
use prost::Message;
use vmm_actors::{PodSpec, PortMapping, Resources};

/// What containerd's CRI plugin puts into Create's `options`. Its type URLs have no prefix.
const CONFIG_TYPE: &str = "runtime.v1.PodSandboxConfig";

/// Longest host name, in bytes (gethostname(2), `HOST_NAME_MAX`).
const MAX_HOSTNAME: usize = 64;

/// What containerd's own sandbox controller sets where the pod does not, and leaves to a remote one
/// (containerd, `podsandbox/sandbox_run_linux.go`): any container may use low ports and ICMP sockets.
const DEFAULT_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// The pod cannot be made into a sandbox; the text says what to change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodConfigError {
    /// Create without options.
    #[error("Create carries no options; a {CONFIG_TYPE} is needed, as containerd's CRI plugin sends it")]
    NoOptions,
    /// Options of another type.
    #[error(
        "Create carries options of type {got:?}; a {CONFIG_TYPE} is needed, as containerd's CRI plugin sends it"
    )]
    WrongType {
        /// The type URL that came.
        got: String,
    },
    /// Options that are not what their type says.
    #[error("the pod's configuration is not a {CONFIG_TYPE}")]
    Decode {
        /// What protobuf says.
        source: prost::DecodeError,
    },
    /// No network namespace.
    #[error("hostNetwork pods cannot run in a VM, which has a network of its own: set hostNetwork: false")]
    HostNetwork,
    /// The host's processes.
    #[error("hostPID pods cannot run in a VM, which cannot see the host's processes: set hostPID: false")]
    HostPid,
    /// The host's shared memory.
    #[error("hostIPC pods cannot run in a VM, which has a memory of its own: set hostIPC: false")]
    HostIpc,
    /// A user namespace.
    #[error("user namespaces are not supported in a VM pod: set hostUsers: true")]
    UserNamespace,
    /// A host name that no kernel takes.
    #[error("host name {hostname:?} is not 1 to {MAX_HOSTNAME} bytes without blanks")]
    Hostname {
        /// The name.
        hostname: String,
    },
    /// A port that is none.
    #[error("port {port} is not between 0 and 65535")]
    Port {
        /// The number.
        port: i32,
    },
}

/// Reads a pod's configuration. `host_resolv_conf` is what the pod gets when it names no DNS (`dnsPolicy: Default`).
///
/// # Errors
/// [`PodConfigError`].
pub(crate) fn pod_spec(options: Option<Any>, host_resolv_conf: &str) -> Result<PodSpec, PodConfigError> {
    let options = options.ok_or(PodConfigError::NoOptions)?;
    // Older clients write the protobuf form of a type URL, with a host before the name.
    let name = options.type_url.rsplit('/').next().unwrap_or_default();
    if name != CONFIG_TYPE {
        return Err(PodConfigError::WrongType { got: options.type_url });
    }
    let config = PodSandboxConfig::decode(options.value.as_slice())
        .map_err(|source| PodConfigError::Decode { source })?;
    from_config(config, host_resolv_conf)
}

fn from_config(config: PodSandboxConfig, host_resolv_conf: &str) -> Result<PodSpec, PodConfigError> {
    let metadata = config.metadata.unwrap_or_default();
    let linux = config.linux.unwrap_or_default();
    let shared_pid_namespace = pid_shared(&linux)?;
    Ok(PodSpec {
        hostname: hostname(config.hostname, &metadata.name)?,
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        attempt: metadata.attempt,
        resolv_conf: resolv_conf(config.dns_config).unwrap_or_else(|| host_resolv_conf.to_owned()),
        cgroup_parent: linux.cgroup_parent,
        sysctls: sysctls(linux.sysctls),
        resources: linux.resources.map(resources).unwrap_or_default(),
        overhead: linux.overhead.map(resources).unwrap_or_default(),
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        log_directory: PathBuf::from(config.log_directory),
        shared_pid_namespace,
        // Not of the pod: whoever heard the request knows who made it.
        inherited_limits: std::collections::BTreeMap::new(),
        port_mappings: config.port_mappings.into_iter().map(port_mapping).collect::<Result<_, _>>()?,
    })
}

/// Whether the pod's containers share a pid namespace: as CRI's `NamespaceMode` has it, they do unless the pod says
/// otherwise. kubelet always says.
fn pid_shared(linux: &LinuxPodSandboxConfig) -> Result<bool, PodConfigError> {
    let security = linux.security_context.as_ref();
    let Some(options) = security.and_then(|security| security.namespace_options.as_ref()) else {
        return Ok(true);
    };
    refuse_host_namespaces(options)?;
    Ok(options.pid() == NamespaceMode::Pod)
}

fn refuse_host_namespaces(options: &NamespaceOption) -> Result<(), PodConfigError> {
    let users = options.userns_options.as_ref();
    if options.network() == NamespaceMode::Node {
        Err(PodConfigError::HostNetwork)
    } else if options.pid() == NamespaceMode::Node {
        Err(PodConfigError::HostPid)
    } else if options.ipc() == NamespaceMode::Node {
        Err(PodConfigError::HostIpc)
    } else if users.is_some_and(|users| users.mode() != NamespaceMode::Node) {
        Err(PodConfigError::UserNamespace)
    } else {
        Ok(())
    }
}

fn hostname(asked: String, pod: &str) -> Result<String, PodConfigError> {
    let hostname = if asked.is_empty() { pod.chars().take(MAX_HOSTNAME).collect() } else { asked };
    let printable = hostname.bytes().all(|byte| byte.is_ascii_graphic());
    if printable && (1..=MAX_HOSTNAME).contains(&hostname.len()) {
        Ok(hostname)
    } else {
        Err(PodConfigError::Hostname { hostname })
    }
}

/// resolv.conf(5) from the pod's DNS settings; `None` when they say nothing.
fn resolv_conf(dns: Option<DnsConfig>) -> Option<String> {
    let DnsConfig { servers, searches, options } = dns?;
    let list = |keyword: &str, words: Vec<String>| {
        (!words.is_empty()).then(|| format!("{keyword} {}\n", words.join(" ")))
    };
    let servers = servers.iter().map(|server| format!("nameserver {server}\n")).collect::<String>();
    let rest = [list("search", searches), list("options", options)];
    let text = rest.into_iter().flatten().fold(servers, |text, line| text + &line);
    (!text.is_empty()).then_some(text)
}

fn sysctls(asked: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let defaults = DEFAULT_SYSCTLS.map(|(name, value)| (name.to_owned(), value.to_owned()));
    // Of two entries the later one stays. kubelet allows slashes in the names.
    defaults
        .into_iter()
        .chain(asked.into_iter().map(|(name, value)| (name.replace('/', "."), value)))
        .collect()
}

/// Resources as the actors have them.
pub(crate) fn resources(cri: LinuxContainerResources) -> Resources {
    let hugepages = cri.hugepage_limits.into_iter().map(|page| (page.page_size, page.limit));
    Resources {
        cpu_period: cri.cpu_period,
        cpu_quota: cri.cpu_quota,
        cpu_shares: cri.cpu_shares,
        memory_limit_bytes: cri.memory_limit_in_bytes,
        memory_swap_limit_bytes: cri.memory_swap_limit_in_bytes,
        cpuset_cpus: cri.cpuset_cpus,
        cpuset_mems: cri.cpuset_mems,
        hugepage_limits: hugepages.collect(),
        unified: cri.unified.into_iter().collect(),
    }
}

fn port_mapping(cri: CriPortMapping) -> Result<PortMapping, PodConfigError> {
    let port = |port: i32| u16::try_from(port).map_err(|_out_of_range| PodConfigError::Port { port });
    let protocol = match cri.protocol() {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    Ok(PortMapping {
        protocol: protocol.to_owned(),
        container_port: port(cri.container_port)?,
        host_port: port(cri.host_port)?,
        host_ip: cri.host_ip,
    })
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::{HugepageLimit, LinuxSandboxSecurityContext, PodSandboxMetadata, UserNamespace};

    use super::*;

    fn config() -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "web".to_owned(),
                uid: "u1".to_owned(),
                namespace: "shop".to_owned(),
                attempt: 2,
            }),
            hostname: "web-0".to_owned(),
            log_directory: "/var/log/pods/shop_web_u1".to_owned(),
            dns_config: Some(DnsConfig {
                servers: vec!["10.96.0.10".to_owned(), "fd00::a".to_owned()],
                searches: vec!["shop.svc.cluster.local".to_owned(), "svc.cluster.local".to_owned()],
                options: vec!["ndots:5".to_owned()],
            }),
            port_mappings: vec![CriPortMapping {
                protocol: Protocol::Udp.into(),
                container_port: 53,
                host_port: 1053,
                host_ip: "127.0.0.1".to_owned(),
            }],
            labels: [("app".to_owned(), "web".to_owned())].into(),
            annotations: [("note".to_owned(), "x".to_owned())].into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/podu1".to_owned(),
                sysctls: [("net/core/somaxconn".to_owned(), "512".to_owned())].into(),
                resources: Some(LinuxContainerResources {
                    cpu_quota: 50_000,
                    cpu_period: 100_000,
                    memory_limit_in_bytes: 1 << 27,
                    hugepage_limits: vec![HugepageLimit { page_size: "2MB".to_owned(), limit: 4 << 20 }],
                    ..Default::default()
                }),
                overhead: Some(LinuxContainerResources {
                    memory_limit_in_bytes: 1 << 26,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            windows: None,
        }
    }

    fn any(config: &PodSandboxConfig) -> Option<Any> {
        Some(Any { type_url: CONFIG_TYPE.to_owned(), value: config.encode_to_vec() })
    }

    fn with_namespaces(options: NamespaceOption) -> PodSandboxConfig {
        let mut config = config();
        let security = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        config.linux.get_or_insert_default().security_context = Some(security);
        config
    }

    fn read(config: &PodSandboxConfig) -> Result<PodSpec, PodConfigError> {
        pod_spec(any(config), "nameserver 192.0.2.1\n")
    }

    #[test]
    fn a_pod_is_read_whole() {
        let spec = read(&config()).unwrap();
        let names = (spec.name.as_str(), spec.namespace.as_str(), spec.uid.as_str(), spec.attempt);
        assert_eq!(names, ("web", "shop", "u1", 2));
        assert_eq!(spec.hostname, "web-0");
        assert_eq!(
            spec.resolv_conf,
            "nameserver 10.96.0.10\nnameserver fd00::a\nsearch shop.svc.cluster.local svc.cluster.local\n\
             options ndots:5\n"
        );
        assert_eq!(spec.cgroup_parent, "/kubepods/podu1");
        assert_eq!(spec.resources.cpu_quota, 50_000);
        assert_eq!(spec.resources.memory_limit_bytes, 1 << 27);
        assert_eq!(spec.resources.hugepage_limits["2MB"], 4 << 20);
        assert_eq!(spec.overhead.memory_limit_bytes, 1 << 26);
        assert_eq!((spec.labels["app"].as_str(), spec.annotations["note"].as_str()), ("web", "x"));
        assert_eq!(spec.log_directory, PathBuf::from("/var/log/pods/shop_web_u1"));
        let [port] = spec.port_mappings.as_slice() else { panic!("{:?}", spec.port_mappings) };
        assert_eq!((port.protocol.as_str(), port.container_port, port.host_port), ("udp", 53, 1053));
    }

    #[test]
    fn containerd_s_default_sysctls_are_added_and_yield_to_the_pod() {
        let mut config = config();
        let spec = read(&config).unwrap();
        assert_eq!(spec.sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
        assert_eq!(spec.sysctls["net.ipv4.ping_group_range"], "0 2147483647");
        assert_eq!(spec.sysctls["net.core.somaxconn"], "512");
        let own = ("net.ipv4.ip_unprivileged_port_start".to_owned(), "1024".to_owned());
        config.linux.get_or_insert_default().sysctls.extend([own]);
        assert_eq!(read(&config).unwrap().sysctls["net.ipv4.ip_unprivileged_port_start"], "1024");
    }

    #[test]
    fn a_pod_that_names_nothing_has_defaults() {
        let metadata = PodSandboxMetadata { name: "n".repeat(80), ..Default::default() };
        let config = PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
        let spec = read(&config).unwrap();
        assert_eq!(spec.hostname, "n".repeat(64));
        assert_eq!(spec.resolv_conf, "nameserver 192.0.2.1\n");
        assert!(spec.shared_pid_namespace);
    }

    #[test]
    fn pids_are_shared_when_the_pod_says_so() {
        for (mode, shared) in [(NamespaceMode::Pod, true), (NamespaceMode::Container, false)] {
            let config = with_namespaces(NamespaceOption { pid: mode.into(), ..Default::default() });
            assert_eq!(read(&config).unwrap().shared_pid_namespace, shared, "{mode:?}");
        }
    }

    #[test]
    fn namespaces_of_the_host_are_refused_by_name() {
        let node = i32::from(NamespaceMode::Node);
        let container = i32::from(NamespaceMode::Container);
        let users = UserNamespace { mode: NamespaceMode::Pod.into(), ..Default::default() };
        let cases = [
            (NamespaceOption { network: node, ..Default::default() }, "hostNetwork"),
            (NamespaceOption { pid: node, ..Default::default() }, "hostPID"),
            (NamespaceOption { ipc: node, pid: container, ..Default::default() }, "hostIPC"),
            (NamespaceOption { userns_options: Some(users), ..Default::default() }, "hostUsers"),
        ];
        for (options, says) in cases {
            let error = read(&with_namespaces(options)).unwrap_err().to_string();
            assert!(error.contains(says), "{says}: {error}");
        }
        let host_users = UserNamespace { mode: node, ..Default::default() };
        let fine = NamespaceOption { userns_options: Some(host_users), pid: container, ..Default::default() };
        assert!(read(&with_namespaces(fine)).is_ok());
    }

    #[test]
    fn options_of_another_kind_are_named() {
        assert!(matches!(pod_spec(None, ""), Err(PodConfigError::NoOptions)));
        let other = Any { type_url: "runtime.v1.ContainerConfig".to_owned(), value: Vec::new() };
        let error = pod_spec(Some(other), "").unwrap_err().to_string();
        assert!(error.contains("\"runtime.v1.ContainerConfig\"") && error.contains(CONFIG_TYPE), "{error}");
        let noise = Any { type_url: CONFIG_TYPE.to_owned(), value: vec![0xff; 9] };
        assert!(matches!(pod_spec(Some(noise), ""), Err(PodConfigError::Decode { .. })));
        let type_url = format!("type.googleapis.com/{CONFIG_TYPE}");
        let prefixed = Any { type_url, value: config().encode_to_vec() };
        assert_eq!(pod_spec(Some(prefixed), "").unwrap().name, "web");
    }

    #[test]
    fn impossible_names_and_ports_are_refused() {
        let mut named = config();
        named.hostname = "two words".to_owned();
        assert!(read(&named).unwrap_err().to_string().contains("\"two words\""));
        for port in [-1, 65536] {
            let mut config = config();
            config.port_mappings[0].host_port = port;
            assert!(read(&config).unwrap_err().to_string().contains(&port.to_string()));
        }
    }
}
