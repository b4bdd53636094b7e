//! Adapts a container's OCI spec to this guest. Pure.
//!
//! The sandboxer has taken out what has a meaning only on the host. The agent adds what only it knows: cgroup, the
//! pod's files and shared memory, oom_score_adj, and the pod's pid namespace.

pub(super) mod devices;

use std::path::{Path, PathBuf};

use bulkhead_protocol::{GUEST_CGROUPS, MIN_OOM_SCORE_ADJ, PID_NAMESPACE};
use oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, PosixRlimit, Process, Root, Spec,
};

use crate::container::error::ContainerError;
use crate::pod::{ETC_DIR, SHM_DIR};

/// Files of the pod in `/etc` of every container that mounts nothing there itself.
pub(crate) const POD_FILES: [&str; 3] = ["hostname", "resolv.conf", "hosts"];

const SHM: &str = "/dev/shm";

/// How many characters of an invalid variable an error shows.
const SHOWN: usize = 64;

/// What the pod has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodView {
    /// Those of [`POD_FILES`] that exist.
    pub(crate) files: Vec<&'static str>,
    /// The pod's shared memory is mounted.
    pub(crate) shm: bool,
    /// The pod has a pid namespace for all its containers.
    pub(crate) pid_namespace: bool,
}

/// What an exec inherits from its container unless its own process object says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Inherited {
    score: i32,
    limits: Vec<PosixRlimit>,
}

impl Inherited {
    /// What execs inherit from a container with this spec.
    pub(crate) fn of(spec: &Spec) -> Self {
        let process = spec.process().as_ref();
        Self {
            score: process.and_then(|process| process.oom_score_adj()).unwrap_or(0),
            limits: process.and_then(|process| process.rlimits().clone()).unwrap_or_default(),
        }
    }
}

/// The user of the container's init process.
pub(crate) fn uid(spec: &Spec) -> u32 {
    spec.process().as_ref().map_or(0, |process| process.user().uid())
}

/// A container that is being created.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) id: &'a str,
    pub(crate) rootfs: &'a Path,
    pub(crate) terminal: bool,
}

/// Parses a spec and adapts it to this guest.
pub(crate) fn adapt(json: &[u8], target: Target<'_>, pod: &PodView) -> Result<Spec, ContainerError> {
    let id = target.id.to_owned();
    let mut spec: Spec = serde_json::from_slice(json)
        .map_err(|source| ContainerError::ParseSpec { id: id.clone(), source })?;
    let missing = |part| ContainerError::IncompleteSpec { id: id.clone(), part };
    let mut process = spec.process().clone().ok_or_else(|| missing("process"))?;
    let mut linux = spec.linux().clone().ok_or_else(|| missing("linux"))?;
    let mut root = spec.root().clone().unwrap_or_default();
    check_environment(&process)
        .map_err(|entry| ContainerError::BadVariable { process: id.clone(), entry })?;
    adapt_process(&mut process, target.terminal, 0);
    adapt_linux(&mut linux, target.id, pod)?;
    root.set_path(target.rootfs.to_path_buf());
    let mounts = mounts(spec.mounts().clone().unwrap_or_default(), &root, pod);
    // Hooks are programs of the host.
    spec.set_process(Some(process))
        .set_linux(Some(linux))
        .set_mounts(Some(mounts))
        .set_root(Some(root))
        .set_hooks(None);
    Ok(spec)
}

/// Parses the process of an exec and adapts it to this guest. Processes of a helper inherit the agent's oom_score_adj
/// and limits, so the container's are set unless the exec has its own.
pub(crate) fn adapt_exec(
    json: &[u8],
    terminal: bool,
    container: &Inherited,
) -> Result<Process, serde_json::Error> {
    let mut process: Process = serde_json::from_slice(json)?;
    adapt_process(&mut process, terminal, container.score);
    let mut limits = process.rlimits().clone().unwrap_or_default();
    let missing = |limit: &&PosixRlimit| !limits.iter().any(|own| own.typ() == limit.typ());
    let more: Vec<PosixRlimit> = container.limits.iter().filter(missing).cloned().collect();
    limits.extend(more);
    process.set_rlimits(Some(limits));
    Ok(process)
}

/// Finds the first invalid entry of the environment: one without a name or value, or with a zero byte. The error is the
/// entry, shortened.
pub(crate) fn check_environment(process: &Process) -> Result<(), String> {
    let is_variable = |entry: &str| entry.find('=').is_some_and(|at| at > 0) && !entry.contains('\0');
    let bad = process.env().iter().flatten().find(|entry| !is_variable(entry));
    bad.map_or(Ok(()), |entry| Err(entry.chars().take(SHOWN).collect()))
}

fn adapt_process(process: &mut Process, terminal: bool, score: i32) {
    let score = process.oom_score_adj().unwrap_or(score).max(MIN_OOM_SCORE_ADJ);
    process
        .set_terminal(Some(terminal))
        .set_oom_score_adj(Some(score))
        // AppArmor profiles and SELinux labels exist on the host only.
        .set_apparmor_profile(None)
        .set_selinux_label(None);
}

fn adapt_linux(linux: &mut Linux, id: &str, pod: &PodView) -> Result<(), ContainerError> {
    let namespaces = linux.namespaces().clone().unwrap_or_default();
    linux
        .set_namespaces(Some(namespaces_of(namespaces, id, pod)?))
        .set_cgroups_path(Some(Path::new(GUEST_CGROUPS).join(id)))
        .set_mount_label(None);
    // runc takes both names of mount(8), libcontainer only the short one, and applies it recursively.
    if let Some(long @ ("rslave" | "rshared" | "rprivate")) = linux.rootfs_propagation().as_deref() {
        let short = long.trim_start_matches('r').to_owned();
        linux.set_rootfs_propagation(Some(short));
    }
    Ok(())
}

/// Network, IPC and UTS namespaces are those of the pod, which are the guest's own.
fn namespaces_of(
    wanted: Vec<LinuxNamespace>,
    id: &str,
    pod: &PodView,
) -> Result<Vec<LinuxNamespace>, ContainerError> {
    let of_the_pod = [LinuxNamespaceType::Network, LinuxNamespaceType::Ipc, LinuxNamespaceType::Uts];
    let mut kept: Vec<LinuxNamespace> =
        wanted.into_iter().filter(|namespace| !of_the_pod.contains(&namespace.typ())).collect();
    let shared = |namespace: &LinuxNamespace| namespace.path().as_deref() == Some(Path::new(PID_NAMESPACE));
    if kept.iter().any(shared) && !pod.pid_namespace {
        return Err(ContainerError::NoPidNamespace { id: id.to_owned() });
    }
    // Without its own cgroup namespace a container could mount the whole hierarchy.
    for own in [LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup] {
        if !kept.iter().any(|namespace| namespace.typ() == own) {
            kept.extend(LinuxNamespaceBuilder::default().typ(own).build());
        }
    }
    Ok(kept)
}

/// Adds mounts of the pod's files and shared memory where the spec has none. A `/dev/shm` that is not a bind mount is
/// replaced by the pod's.
fn mounts(mut mounts: Vec<Mount>, root: &Root, pod: &PodView) -> Vec<Mount> {
    if pod.shm {
        mounts.retain(|mount| mount.destination() != Path::new(SHM) || is_bind(mount));
    }
    let taken = |mounts: &[Mount], at: &Path| mounts.iter().any(|mount| mount.destination() == at);
    for file in &pod.files {
        let at = Path::new("/etc").join(file);
        if !taken(&mounts, &at) {
            let access = if root.readonly().unwrap_or(false) { "ro" } else { "rw" };
            mounts.push(bind(Path::new(ETC_DIR).join(file), &at, access));
        }
    }
    if pod.shm && !taken(&mounts, Path::new(SHM)) {
        let mut mount = bind(PathBuf::from(SHM_DIR), Path::new(SHM), "rw");
        add_options(&mut mount, &["nosuid", "noexec", "nodev"]);
        // After /dev, and before the mounts that the spec has below it.
        let below = mounts.iter().position(|mount| mount.destination().starts_with(SHM));
        mounts.insert(below.unwrap_or(mounts.len()), mount);
    }
    mounts
}

fn bind(source: PathBuf, destination: &Path, access: &str) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.to_path_buf())
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(source))
        .set_options(Some(["rbind", "rprivate", access].map(str::to_owned).to_vec()));
    mount
}

fn add_options(mount: &mut Mount, more: &[&str]) {
    let mut options = mount.options().clone().unwrap_or_default();
    options.extend(more.iter().map(|option| (*option).to_owned()));
    mount.set_options(Some(options));
}

/// Mounts whose source is a path of the guest.
pub(crate) fn binds(spec: &Spec) -> impl Iterator<Item = (&Path, &Path)> {
    let mounts = spec.mounts().iter().flatten().filter(|mount| is_bind(mount));
    mounts.filter_map(|mount| Some((mount.source().as_deref()?, mount.destination().as_path())))
}

pub(in crate::container) fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().iter().flatten();
    mount.typ().as_deref() == Some("bind")
        || options.into_iter().any(|option| option == "bind" || option == "rbind")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"{
        "ociVersion": "1.2.0",
        "process": {"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0},
                    "apparmorProfile": "cri", "selinuxLabel": "x"},
        "root": {"path": "rootfs", "readonly": true},
        "hooks": {"prestart": [{"path": "/bin/false"}]},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
            {"destination": "/dev/shm/sub", "type": "tmpfs", "source": "shm"},
            {"destination": "/etc/hosts", "type": "bind", "source": "/x", "options": ["rbind"]}
        ],
        "linux": {
            "cgroupsPath": "kubepods.slice:cri-containerd:c1",
            "rootfsPropagation": "rslave",
            "namespaces": [{"type": "network", "path": "/proc/1/ns/net"}, {"type": "ipc"}, {"type": "uts"},
                           {"type": "pid"}, {"type": "mount"}]
        }
    }"#;

    fn target() -> Target<'static> {
        Target { id: "c1", rootfs: Path::new("/run/bulkhead/share/c1/rootfs"), terminal: true }
    }

    fn whole_pod() -> PodView {
        PodView { files: POD_FILES.to_vec(), shm: true, pid_namespace: true }
    }

    fn adapted() -> Spec {
        adapt(SPEC.as_bytes(), target(), &whole_pod()).unwrap()
    }

    #[test]
    fn parts_for_the_host_are_removed_and_parts_of_the_guest_added() {
        let spec = adapted();
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.terminal(), Some(true));
        assert_eq!(process.oom_score_adj(), Some(0));
        assert!(process.apparmor_profile().is_none() && process.selinux_label().is_none());
        assert!(spec.hooks().is_none());
        assert_eq!(spec.root().as_ref().unwrap().path(), target().rootfs);
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/bulkhead/c1")));
        assert_eq!(linux.rootfs_propagation().as_deref(), Some("slave"));
        let kinds: Vec<_> = linux.namespaces().as_ref().unwrap().iter().map(LinuxNamespace::typ).collect();
        assert_eq!(kinds, [LinuxNamespaceType::Pid, LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup]);
    }

    #[test]
    fn the_pods_files_are_added_unless_the_spec_mounts_there() {
        let spec = adapted();
        let mounts = spec.mounts().as_ref().unwrap();
        let source = |at: &str| {
            let found: Vec<_> = mounts.iter().filter(|mount| mount.destination() == Path::new(at)).collect();
            assert_eq!(found.len(), 1, "{at}");
            found[0].source().as_deref().unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(source("/etc/hosts"), "/x");
        assert_eq!(source("/etc/hostname"), "/run/bulkhead/etc/hostname");
        assert_eq!(source("/dev/shm"), SHM_DIR);
        let resolv =
            mounts.iter().find(|mount| mount.destination() == Path::new("/etc/resolv.conf")).unwrap();
        assert!(resolv.options().as_ref().unwrap().contains(&"ro".to_owned()), "the root is read-only");
        let at =
            |wanted: &str| mounts.iter().position(|mount| mount.destination() == Path::new(wanted)).unwrap();
        assert!(at("/dev") < at("/dev/shm") && at("/dev/shm") < at("/dev/shm/sub"));
    }

    #[test]
    fn a_bind_mount_at_dev_shm_is_kept() {
        let json = SPEC.replace(
            r#"{"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}"#,
            r#"{"destination": "/dev/shm", "type": "bind", "source": "/run/bulkhead/share/c1/mounts/0"}"#,
        );
        let spec = adapt(json.as_bytes(), target(), &whole_pod()).unwrap();
        let binds: Vec<_> = binds(&spec).filter(|(_, at)| *at == Path::new("/dev/shm")).collect();
        assert_eq!(binds, [(Path::new("/run/bulkhead/share/c1/mounts/0"), Path::new("/dev/shm"))]);
    }

    #[test]
    fn a_pod_without_files_and_shared_memory_adds_no_mount() {
        let spec = adapt(SPEC.as_bytes(), target(), &PodView::default()).unwrap();
        assert_eq!(spec.mounts().as_ref().unwrap().len(), 5);
    }

    #[test]
    fn the_pods_pid_namespace_must_exist() {
        let json = SPEC.replace(r#"{"type": "pid"}"#, r#"{"type": "pid", "path": "/run/bulkhead/ns/pid"}"#);
        assert!(adapt(json.as_bytes(), target(), &whole_pod()).is_ok());
        let error = adapt(json.as_bytes(), target(), &PodView::default()).unwrap_err();
        assert!(matches!(error, ContainerError::NoPidNamespace { .. }));
        let other = SPEC.replace(r#"{"type": "pid"}"#, r#"{"type": "pid", "path": "/proc/77/ns/pid"}"#);
        assert!(adapt(other.as_bytes(), target(), &PodView::default()).is_ok());
    }

    #[test]
    fn a_missing_part_of_the_spec_is_named() {
        for (json, part) in [(r#"{"ociVersion":"1.0"}"#, "process"), ("{", "no OCI runtime spec")] {
            let error = adapt(json.as_bytes(), target(), &whole_pod()).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn an_exec_inherits_oom_score_adj_and_is_never_spared_like_the_agent() {
        let json = br#"{"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}, "terminal": true}"#;
        let container = Inherited { score: 500, limits: Vec::new() };
        let process = adapt_exec(json, false, &container).unwrap();
        assert_eq!((process.oom_score_adj(), process.terminal()), (Some(500), Some(false)));
        let json = br#"{"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}, "oomScoreAdj": 7}"#;
        assert_eq!(adapt_exec(json, true, &container).unwrap().oom_score_adj(), Some(7));
        let json = br#"{"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}, "oomScoreAdj": -1000}"#;
        assert_eq!(
            adapt_exec(json, true, &container).unwrap().oom_score_adj(),
            Some(-999),
            "only the agent is spared"
        );
    }

    #[test]
    fn an_exec_inherits_rlimits_unless_it_has_its_own() {
        let limits = r#"[{"type": "RLIMIT_NOFILE", "soft": 7, "hard": 8}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]"#;
        let with = |limits: &str| {
            format!(r#"{{"cwd": "/", "args": ["sh"], "user": {{"uid": 0, "gid": 0}}, "rlimits": {limits}}}"#)
        };
        let spec =
            SPEC.replace(r#""apparmorProfile""#, &format!(r#""rlimits": {limits}, "apparmorProfile""#));
        let container = Inherited::of(&adapt(spec.as_bytes(), target(), &whole_pod()).unwrap());
        let own = with(r#"[{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}]"#);
        let process = adapt_exec(own.as_bytes(), false, &container).unwrap();
        let seen: Vec<_> =
            process.rlimits().iter().flatten().map(|limit| (limit.soft(), limit.hard())).collect();
        assert_eq!(seen, [(1, 2), (0, 0)]);
        let none = adapt_exec(with("[]").as_bytes(), false, &container).unwrap();
        assert_eq!(none.rlimits().as_ref().unwrap().len(), 2);
    }

    #[test]
    fn an_invalid_environment_entry_is_named() {
        let with = |entry: &str| {
            let mut process = Process::default();
            process.set_env(Some(vec!["A=b".to_owned(), entry.to_owned()]));
            process
        };
        for good in ["A=", "A=b=c", "a b=c"] {
            assert_eq!(check_environment(&with(good)), Ok(()), "{good}");
        }
        for bad in ["=x", "", "x", "a=\0"] {
            assert_eq!(check_environment(&with(bad)), Err(bad.to_owned()));
        }
        let long = format!("={}", "x".repeat(1000));
        assert_eq!(check_environment(&with(&long)).unwrap_err().len(), SHOWN);
    }
}
