//! The settings as types: one struct for each table of the file.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::profile_name::ProfileName;
use crate::vmm::{CloudHypervisor, Hypervisor, Qemu, Vmms};

/// Everything that can be set, as `bulkhead.toml` spells it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The resident service itself.
    pub sandboxer: Sandboxer,
    /// The shim proxy.
    pub shim: Shim,
    /// What every VM boots.
    pub guest: Guest,
    /// The shape of every VM.
    pub vm: Vm,
    /// The QEMU driver. The tables of VMMs are in `vmm`.
    pub qemu: Qemu,
    /// The Cloud Hypervisor driver.
    pub cloud_hypervisor: CloudHypervisor,
    /// The file server of the pod's share.
    pub virtiofsd: Virtiofsd,
    /// Host cgroups of the pods.
    pub cgroup: Cgroup,
    /// Figures for Prometheus.
    pub metrics: Metrics,
    /// Traces of calls, for an OpenTelemetry collector.
    pub traces: Traces,
    /// The profiles beside the default one, which is everything above. Each has all that is in force for it: the keys of its
    /// `[profile.NAME]` tables, and the values above for the others. `sandboxer.listen` is its own socket. It has no
    /// profiles of its own.
    #[serde(rename = "profile", skip_serializing_if = "BTreeMap::is_empty")]
    pub profiles: BTreeMap<ProfileName, Settings>,
}

impl Settings {
    /// Every profile with what is in force for it, the default one first.
    pub fn all_profiles(&self) -> impl Iterator<Item = (ProfileName, &Self)> {
        let others = self.profiles.iter().map(|(name, profile)| (name.clone(), profile));
        std::iter::once((ProfileName::default(), self)).chain(others)
    }

    /// What is in force for this profile. None if there is none of this name (any more).
    #[must_use]
    pub fn profile(&self, name: &ProfileName) -> Option<&Self> {
        if *name == ProfileName::default() { Some(self) } else { self.profiles.get(name) }
    }

    /// What concerns VMMs.
    pub(crate) fn vmms(&self) -> Vmms<'_> {
        Vmms { chosen: self.vm.hypervisor, qemu: &self.qemu, cloud_hypervisor: &self.cloud_hypervisor }
    }
}

/// `[sandboxer]`: sockets, directories, logging.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sandboxer {
    /// Unix socket of the Sandbox Controller, the `address` of containerd's `proxy_plugins` entry.
    pub listen: PathBuf,
    /// Runtime directory: one directory per pod below `s/`, and `control.sock`. On tmpfs; gone after a reboot.
    pub run_dir: PathBuf,
    /// Durable directory: records below `sandboxes/`, broken ones below `quarantine/`.
    pub state_dir: PathBuf,
    /// containerd's gRPC socket; its ttrpc socket for events is this path with `.ttrpc` behind it.
    pub containerd_address: PathBuf,
    /// Filter of the log: levels with or without a module, in the syntax of `tracing_subscriber::filter::Targets`.
    pub log_level: String,
    /// How log lines look on stderr.
    pub log_format: LogFormat,
    /// How long a running sandbox may be unknown to containerd before it is stopped, in seconds.
    pub orphan_grace_secs: u32,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line for a person.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `[shim]`: the shim proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shim {
    /// The shim proxy's binary. containerd must find one of the same name in its PATH.
    pub binary: PathBuf,
}

/// `[guest]`: what every VM boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guest {
    /// Uncompressed, PVH-bootable kernel (ELF `vmlinux`).
    pub kernel: PathBuf,
    /// Initial root image with the agent in it.
    pub image: PathBuf,
    /// Added to the kernel command line.
    pub kernel_params: String,
    /// How long a guest may take from the VMM's start to its agent's announcement, in seconds.
    pub boot_timeout_secs: NonZeroU32,
    /// Level of the agent's log on the console: error, warn, info, debug or trace.
    pub agent_log_level: String,
}

/// `[vm]`: the shape of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vm {
    /// Which driver runs the VMs.
    pub hypervisor: Hypervisor,
    /// vCPUs of a VM whose pod names no CPU limit.
    pub vcpus: NonZeroU32,
    /// Memory of a VM whose pod names no memory limit, in MiB. A pod's own limit is added to it.
    pub memory_mib: NonZeroU32,
    /// vCPUs to which a running VM can grow, where its machine can. One that begins with more stays as it is.
    pub max_vcpus: NonZeroU32,
    /// Memory to which a running VM can grow, in MiB, where its machine can. One that begins with more stays as it is.
    pub max_memory_mib: NonZeroU32,
    /// Back guest memory by huge pages of the host.
    pub hugepages: bool,
    /// Pods may have block devices of the host. Without, none of their VMs has a controller for them.
    pub block_volumes: bool,
    /// Where the guest's entropy device reads from.
    pub entropy_source: PathBuf,
    /// A shell on the guest's console, for looking into a broken guest. Never in production.
    pub debug_console: bool,
}

/// `[virtiofsd]`: the file server of the pod's share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Virtiofsd {
    /// `virtiofsd`.
    pub path: PathBuf,
    /// How much the guest may cache.
    pub cache: CacheMode,
    /// Worker threads; 0: requests are served by the queue's thread.
    pub thread_pool_size: u32,
    /// Arguments behind ours.
    pub extra_args: Vec<String>,
}

/// virtiofsd's `--cache`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Nothing is cached in the guest.
    Never,
    /// Metadata for a short time, data from open to close.
    #[default]
    Auto,
    /// Everything: only for shares that nobody else writes.
    Always,
}

/// `[cgroup]`: host cgroups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroup {
    /// Parent of a pod's cgroup when the pod names none.
    pub default_parent: String,
    /// What becomes of a pod whose RuntimeClass has no overhead, and whose limit leaves its VM no room.
    pub without_overhead: WithoutOverhead,
}

/// `[metrics]`: figures for Prometheus.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where they are served. Checked: empty, the path of a unix socket, or a loopback address with a port.
    pub listen: String,
}

/// `[traces]`: what each call led to, as OpenTelemetry traces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traces {
    /// The collector that takes them, OTLP over gRPC. Checked: empty, `http://host:port`, or `unix://` and a path.
    pub endpoint: String,
    /// How many of a hundred traces that begin here are kept. Of one that a caller began, the caller has decided.
    pub sample_percent: u8,
}

/// What becomes of a pod that brings no overhead for its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WithoutOverhead {
    /// It does not start.
    Refuse,
    /// VMM and helpers are in a cgroup beside the pod's own.
    #[default]
    Outside,
}

impl Default for Sandboxer {
    fn default() -> Self {
        Self {
            listen: "/run/bulkhead/sandboxer.sock".into(),
            run_dir: "/run/bulkhead".into(),
            state_dir: "/var/lib/bulkhead".into(),
            containerd_address: "/run/containerd/containerd.sock".into(),
            log_level: "info".into(),
            log_format: LogFormat::Text,
            orphan_grace_secs: 60,
        }
    }
}

impl Default for Shim {
    fn default() -> Self {
        Self { binary: "/usr/bin/containerd-shim-bulkhead-v2".into() }
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            kernel: "/usr/share/bulkhead/vmlinux".into(),
            image: "/usr/share/bulkhead/bulkhead-guest.cpio".into(),
            kernel_params: String::new(),
            boot_timeout_secs: NonZeroU32::new(45).unwrap_or(NonZeroU32::MIN),
            agent_log_level: "info".into(),
        }
    }
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            hypervisor: Hypervisor::default(),
            vcpus: NonZeroU32::MIN,
            memory_mib: NonZeroU32::new(256).unwrap_or(NonZeroU32::MIN),
            max_vcpus: NonZeroU32::new(8).unwrap_or(NonZeroU32::MIN),
            max_memory_mib: NonZeroU32::new(16 * 1024).unwrap_or(NonZeroU32::MIN),
            hugepages: false,
            block_volumes: true,
            entropy_source: "/dev/urandom".into(),
            debug_console: false,
        }
    }
}

impl Default for Traces {
    fn default() -> Self {
        Self { endpoint: String::new(), sample_percent: 100 }
    }
}

impl Default for Virtiofsd {
    fn default() -> Self {
        Self {
            path: "/usr/libexec/virtiofsd".into(),
            cache: CacheMode::Auto,
            thread_pool_size: 0,
            extra_args: Vec::new(),
        }
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Self { default_parent: "/bulkhead".into(), without_overhead: WithoutOverhead::default() }
    }
}
