//! Mounts of the container: which the guest makes, and which host paths must come in through the pod's share.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;

use super::error::SpecError;
use super::note::Note;

/// File systems that a container gets from the kernel it runs on.
const KERNEL_FILE_SYSTEMS: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];

/// Host directories that describe the host's kernel and hardware: the guest's own stand in for them.
const KERNEL_DIRS: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Options that the host has heeded when the guest gets the mount.
const READ_ONLY: [&str; 2] = ["ro", "rro"];

/// The pod's shared memory, bound by the agent.
const SHM: &str = "/dev/shm";

/// A host path that a container wants at a place of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Number within the container: the path in the share is `<container id>/mounts/<index>`.
    pub index: u32,
    /// Absolute path on the host.
    pub source: PathBuf,
    /// The same in the guest.
    pub guest_path: PathBuf,
    /// Where the container sees it, for messages.
    pub destination: PathBuf,
    /// What of it the container may not write to.
    pub read_only: ReadOnly,
    /// Mounts below the source belong to it.
    pub recursive: bool,
    /// Whether mounts that come later on the host appear too.
    pub propagation: Propagation,
}

/// What of a volume is read-only. The host sees to it, but where another container may write to the same volume and
/// nothing can be mounted below it: a read-only mount in the guest would make those that appear below it read-only
/// too, which only [`ReadOnly::Below`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOnly {
    /// Nothing.
    Nothing,
    /// The volume without what is mounted below it (`ro`).
    Top,
    /// All of it (`rro`).
    Below,
}

/// Mount propagation from the host (mount_namespaces(7)). Towards the host there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// What is mounted at the start is all there is.
    Private,
    /// Later mounts on the host appear (`HostToContainer`).
    FromHost,
}

/// The container's mounts for the guest, and what the host binds for them.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) mounts: Vec<Mount>,
    pub(super) binds: Vec<Bind>,
}

/// Sorts the mounts.
///
/// # Errors
/// The [`SpecError`]s about mounts.
pub(super) fn plan(mounts: Vec<Mount>, share: &Path, notes: &mut Vec<Note>) -> Result<Plan, SpecError> {
    let mut plan = Plan { mounts: Vec::with_capacity(mounts.len()), binds: Vec::new() };
    for mount in mounts {
        let id_maps = [mount.uid_mappings(), mount.gid_mappings()];
        if id_maps.into_iter().flatten().any(|maps| !maps.is_empty()) || has(&mount, &["idmap", "ridmap"]) {
            return Err(SpecError::IdMappedMount { destination: mount.destination().clone() });
        }
        if is_bind(&mount) {
            plan.take_bind(mount, share, notes)?;
        } else {
            plan.take_kernel_file_system(mount)?;
        }
    }
    Ok(plan)
}

impl Plan {
    fn take_kernel_file_system(&mut self, mount: Mount) -> Result<(), SpecError> {
        let kind = mount.typ().as_deref().unwrap_or_default();
        if !KERNEL_FILE_SYSTEMS.contains(&kind) {
            let (kind, destination) = (kind.to_owned(), mount.destination().clone());
            return Err(SpecError::MountType { kind, destination });
        }
        if mount.destination() != Path::new(SHM) {
            self.mounts.push(mount);
        }
        Ok(())
    }

    fn take_bind(&mut self, mut mount: Mount, share: &Path, notes: &mut Vec<Note>) -> Result<(), SpecError> {
        let destination = mount.destination().clone();
        let source = mount.source().clone().unwrap_or_default();
        if !is_absolute_and_plain(&source) {
            return Err(SpecError::BindSource { source_path: source, destination });
        }
        if source.starts_with(SHM) {
            return Err(SpecError::HostShm);
        }
        if has(&mount, &["shared", "rshared"]) {
            return Err(SpecError::PropagationToHost { destination });
        }
        if KERNEL_DIRS.iter().any(|dir| source.starts_with(dir)) {
            notes.push(Note::FromGuest { source });
            self.mounts.push(mount);
            return Ok(());
        }
        let index = u32::try_from(self.binds.len()).unwrap_or(u32::MAX);
        let guest_path = share.join("mounts").join(index.to_string());
        let bind = Bind {
            index,
            source,
            guest_path: guest_path.clone(),
            destination,
            read_only: read_only(&mount),
            recursive: has(&mount, &["rbind"]),
            propagation: propagation(&mount),
        };
        mount.set_source(Some(guest_path));
        let mut options = mount.options().clone().unwrap_or_default();
        options.retain(|option| !READ_ONLY.contains(&option.as_str()));
        mount.set_options(Some(options));
        self.mounts.push(mount);
        self.binds.push(bind);
        Ok(())
    }
}

fn read_only(mount: &Mount) -> ReadOnly {
    if has(mount, &["rro"]) {
        ReadOnly::Below
    } else if has(mount, &["ro"]) {
        ReadOnly::Top
    } else {
        ReadOnly::Nothing
    }
}

fn propagation(mount: &Mount) -> Propagation {
    if has(mount, &["slave", "rslave"]) { Propagation::FromHost } else { Propagation::Private }
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has(mount, &["bind", "rbind"])
}

fn has(mount: &Mount, names: &[&str]) -> bool {
    mount.options().iter().flatten().any(|option| names.contains(&option.as_str()))
}

fn is_absolute_and_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}
