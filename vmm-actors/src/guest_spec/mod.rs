//! Makes a container's OCI spec, as containerd writes it for the host, fit for the guest. Pure: touches no file.
//!
//! The rule for each part of the spec is one of four: it holds in the guest as it is (process, limits, seccomp), it
//! gets its guest counterpart (root, binds, cgroup path), it is the pod's and not the container's here (network, IPC
//! and UTS namespace, sysctls, `/dev/shm`) and goes, or a VM cannot give it and the container is refused.

mod devices;
mod error;
mod mounts;
mod note;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bulkhead_protocol::{GUEST_CGROUPS, MEMORY_DIR, MIN_OOM_SCORE_ADJ, PID_NAMESPACE, SHARE_DIR, SOCKET_DIR};
use oci_spec::runtime::{
    Hooks, Linux, LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount, PosixRlimitBuilder,
    PosixRlimitType, Process, Root, Spec,
};

use crate::pod_spec::ResourceLimit;

pub use devices::HostDisk;
pub use error::SpecError;
pub use mounts::{Bind, Propagation, ReadOnly};
pub use note::Note;

/// A container as the guest gets it, and what the host must do for it first.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    /// OCI runtime spec as JSON, ready for the agent.
    pub spec_json: Vec<u8>,
    /// Where the root file system appears in the guest.
    pub rootfs: PathBuf,
    /// Host paths that must appear in the pod's share; position and [`Bind::index`] agree.
    pub binds: Vec<Bind>,
    /// Block devices of the host that must be plugged into the VM.
    pub disks: Vec<HostDisk>,
    /// What was left out or taken from the guest, for the log.
    pub notes: Vec<Note>,
}

/// Whose container it is.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Id of the container, already checked to be a single path component.
    pub container_id: &'a str,
    /// [`crate::PodSpec::shared_pid_namespace`].
    pub shared_pid_namespace: bool,
    /// [`crate::PodSpec::inherited_limits`].
    pub inherited_limits: &'a BTreeMap<String, ResourceLimit>,
}

/// Rewrites the bundle's `config.json` for the guest.
///
/// # Errors
/// [`SpecError`]: the text is no spec of a Linux container, or it asks for what a VM cannot give.
pub fn for_guest(config: &[u8], target: Target<'_>) -> Result<GuestSpec, SpecError> {
    let mut spec: Spec = serde_json::from_slice(config).map_err(|source| SpecError::Parse { source })?;
    let mut notes = Vec::new();
    let share = Path::new(SHARE_DIR).join(target.container_id);
    let rootfs = share.join("rootfs");

    refuse_hooks(spec.hooks().as_ref())?;
    let mut process = spec.process().clone().ok_or(SpecError::NoProcess)?;
    rewrite_process(&mut process, &mut notes);
    inherit_limits(&mut process, target.inherited_limits);
    let mut root = spec.root().clone().ok_or(SpecError::NoRoot)?;
    rewrite_root(&mut root, &rootfs);
    let mut linux = spec.linux().clone().ok_or(SpecError::NotLinux)?;
    let disks = rewrite_linux(&mut linux, target, &mut notes)?;
    let planned = mounts::plan(spec.mounts().clone().unwrap_or_default(), &share, &mut notes)?;

    spec.set_process(Some(process))
        .set_root(Some(root))
        .set_linux(Some(linux))
        .set_mounts(Some(planned.mounts))
        .set_hooks(None)
        .set_hostname(None)
        .set_domainname(None)
        .set_vm(None);
    let spec_json = serde_json::to_vec(&spec).map_err(|source| SpecError::Write { source })?;
    Ok(GuestSpec { spec_json, rootfs, binds: planned.binds, disks, notes })
}

impl GuestSpec {
    /// Heeds what the host has made of the binds. Those that the agent makes get its places as sources; they, and those
    /// that another container may write to, are read-only by the guest where they are to be, because the host does not
    /// see to it.
    ///
    /// # Errors
    /// [`SpecError::Parse`], [`SpecError::Write`]: not of a spec that [`for_guest`] made.
    pub fn settle(&mut self, container_id: &str, left: &LeftToGuest) -> Result<(), SpecError> {
        if *left == LeftToGuest::default() {
            return Ok(());
        }
        let parse = |source| SpecError::Parse { source };
        let mut spec: Spec = serde_json::from_slice(&self.spec_json).map_err(parse)?;
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for bind in &self.binds {
            let dir = match bind.index {
                index if left.sockets.contains(&index) => Some(SOCKET_DIR),
                index if left.memory.contains(&index) => Some(MEMORY_DIR),
                _ => None,
            };
            let is_left = dir.is_some() || left.read_only.contains(&bind.index);
            let is_it = |mount: &&mut Mount| mount.source().as_ref() == Some(&bind.guest_path);
            for mount in mounts.iter_mut().filter(is_it) {
                if let Some(dir) = dir {
                    let place = Path::new(dir).join(container_id).join(bind.index.to_string());
                    mount.set_source(Some(place));
                }
                if is_left && bind.read_only != ReadOnly::Nothing {
                    let options = mount.options().iter().flatten().cloned().chain(["ro".to_owned()]);
                    mount.set_options(Some(options.collect()));
                }
            }
        }
        spec.set_mounts(Some(mounts));
        self.spec_json = serde_json::to_vec(&spec).map_err(|source| SpecError::Write { source })?;
        Ok(())
    }
}

/// What of a container's binds the host leaves to the guest, each by [`Bind::index`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeftToGuest {
    /// Unix sockets of the host, which the agent listens for.
    pub sockets: Vec<u32>,
    /// Volumes in memory, which the agent makes.
    pub memory: Vec<u32>,
    /// Those in the share that the container may only read, and that are writable there.
    pub read_only: Vec<u32>,
}

fn refuse_hooks(hooks: Option<&Hooks>) -> Result<(), SpecError> {
    let Some(hooks) = hooks else { return Ok(()) };
    #[allow(deprecated, reason = "prestart is out of the standard but not out of use")]
    let kinds = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    let mut first = kinds.iter().filter_map(|(kind, hooks)| Some((kind, hooks.as_ref()?.first()?)));
    match first.next() {
        Some((kind, hook)) => Err(SpecError::Hook { kind, path: hook.path().clone() }),
        None => Ok(()),
    }
}

/// Limits that the spec does not set are those that the container would have had as a descendant of containerd; the
/// guest's own kernel has others. Kinds that the OCI spec does not know are left out.
fn inherit_limits(process: &mut Process, inherited: &BTreeMap<String, ResourceLimit>) {
    let mut limits = process.rlimits().clone().unwrap_or_default();
    for (name, ResourceLimit { soft, hard }) in inherited {
        let known = name.parse::<PosixRlimitType>().ok();
        let Some(kind) = known.filter(|kind| limits.iter().all(|limit| limit.typ() != *kind)) else {
            continue;
        };
        let limit = PosixRlimitBuilder::default().typ(kind).soft(*soft).hard(*hard).build();
        limits.extend(limit);
    }
    if !limits.is_empty() {
        process.set_rlimits(Some(limits));
    }
}

fn rewrite_process(process: &mut Process, notes: &mut Vec<Note>) {
    if let Some(profile) = process.apparmor_profile().as_ref().filter(|text| !text.is_empty()) {
        notes.push(Note::LeftOut { setting: "process.apparmorProfile", value: profile.clone() });
    }
    if let Some(label) = process.selinux_label().as_ref().filter(|text| !text.is_empty()) {
        notes.push(Note::LeftOut { setting: "process.selinuxLabel", value: label.clone() });
    }
    process.set_apparmor_profile(None).set_selinux_label(None).set_exec_cpu_affinity(None);
    let adjusted = process.oom_score_adj().map(|score| score.max(MIN_OOM_SCORE_ADJ));
    process.set_oom_score_adj(adjusted);
}

fn rewrite_root(root: &mut Root, rootfs: &Path) {
    root.set_path(rootfs.to_path_buf());
}

fn rewrite_linux(
    linux: &mut Linux,
    target: Target<'_>,
    notes: &mut Vec<Note>,
) -> Result<Vec<HostDisk>, SpecError> {
    let mappings = [linux.uid_mappings(), linux.gid_mappings()];
    if mappings.into_iter().flatten().any(|list| !list.is_empty()) {
        return Err(SpecError::UserNamespace);
    }
    if let Some(name) = linux.net_devices().iter().flatten().map(|(name, _)| name).next() {
        return Err(SpecError::NetDevice { name: name.clone() });
    }
    if let Some(listener) = linux.seccomp().as_ref().and_then(|seccomp| seccomp.listener_path().clone()) {
        return Err(SpecError::SeccompListener { path: listener });
    }
    if let Some(sysctls) = linux.sysctl().as_ref().filter(|map| !map.is_empty()) {
        let names: Vec<&str> = sysctls.keys().map(String::as_str).collect();
        notes.push(Note::LeftOut { setting: "linux.sysctl", value: names.join(", ") });
    }
    let namespaces = guest_namespaces(linux.namespaces().as_deref().unwrap_or_default(), target)?;
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_deref());
    let wanted = linux.devices().clone().unwrap_or_default();
    let planned = devices::plan(wanted, rules.unwrap_or_default())?;
    if let Some(mut resources) = linux.resources().clone() {
        rewrite_resources(&mut resources, &planned.disks, notes);
        linux.set_resources(Some(resources));
    }
    linux
        .set_sysctl(None)
        .set_namespaces(Some(namespaces))
        .set_devices(Some(planned.nodes).filter(|nodes| !nodes.is_empty()))
        .set_cgroups_path(Some(Path::new(GUEST_CGROUPS).join(target.container_id)))
        .set_mount_label(None)
        .set_intel_rdt(None)
        .set_memory_policy(None)
        .set_net_devices(None);
    Ok(planned.disks)
}

/// Leaves out what names CPUs, memory nodes, disks or traffic classes of the host: the pod's host cgroup bounds those.
fn rewrite_resources(resources: &mut LinuxResources, disks: &[HostDisk], notes: &mut Vec<Note>) {
    if let Some(mut cpu) = resources.cpu().clone() {
        let host_only = [("linux.resources.cpu.cpus", cpu.cpus()), ("linux.resources.cpu.mems", cpu.mems())];
        for (setting, value) in host_only {
            let value = value.clone().filter(|text| !text.is_empty());
            notes.extend(value.map(|value| Note::LeftOut { setting, value }));
        }
        cpu.set_cpus(None).set_mems(None);
        resources.set_cpu(Some(cpu));
    }
    if resources.block_io().is_some() {
        notes.push(Note::LeftOut { setting: "linux.resources.blockIO", value: "host disks".into() });
    }
    let rules = resources.devices().clone().map(|rules| devices::guest_rules(rules, disks, notes));
    resources.set_devices(rules).set_block_io(None).set_network(None).set_rdma(None);
}

/// Network, IPC and UTS are the VM's own; the mount and cgroup namespaces are made by the guest.
fn guest_namespaces(
    namespaces: &[LinuxNamespace],
    target: Target<'_>,
) -> Result<Vec<LinuxNamespace>, SpecError> {
    let path_of = |kind| namespaces.iter().find(|n| n.typ() == kind).and_then(|n| n.path().as_ref());
    let pod = path_of(LinuxNamespaceType::Network).and_then(|path| path.parent());
    let mut kept = Vec::new();
    let mut has_pid = false;
    for namespace in namespaces {
        let kind = namespace.typ();
        match (kind, namespace.path()) {
            (LinuxNamespaceType::Network | LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts, _) => {}
            (LinuxNamespaceType::User, _) => return Err(SpecError::UserNamespace),
            (LinuxNamespaceType::Pid, path) => {
                has_pid = true;
                let mut pid = namespace.clone();
                pid.set_path(path.as_deref().and_then(|path| guest_pid_namespace(path, pod, target)));
                kept.push(pid);
            }
            (LinuxNamespaceType::Mount | LinuxNamespaceType::Cgroup | LinuxNamespaceType::Time, None) => {
                kept.push(namespace.clone());
            }
            (
                LinuxNamespaceType::Mount | LinuxNamespaceType::Cgroup | LinuxNamespaceType::Time,
                Some(path),
            ) => {
                return Err(SpecError::HostNamespace { kind: kind.to_string(), path: path.clone() });
            }
        }
    }
    if has_pid { Ok(kept) } else { Err(SpecError::HostPid) }
}

/// containerd names the pod's pid namespace by the same `/proc/<pid>/ns` as the pod's network. Another pid there is
/// that of a container (mode TARGET), and a container's pid is one of the guest: that path holds in the guest.
fn guest_pid_namespace(path: &Path, pod: Option<&Path>, target: Target<'_>) -> Option<PathBuf> {
    if path.parent() != pod {
        Some(path.to_path_buf())
    } else if target.shared_pid_namespace {
        Some(PathBuf::from(PID_NAMESPACE))
    } else {
        None
    }
}
