//! Volumes in memory (`emptyDir` with `medium: Memory`) among a container's volumes. They are not mounted: what a pod
//! writes into such a volume is nobody else's, so the guest has a tmpfs of its own for it, of the same size, mode and
//! owner. Other tmpfs of the host (Secrets, projected volumes) are written by the node, and stay shared with it.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use rustix::fs::statfs;

use super::error::MountsError;
use super::request::BindMount;
use crate::host::mountinfo::{self, Mounted};
use crate::id::ContainerId;

/// Magic number of tmpfs, statfs(2).
const TMPFS: i64 = 0x0102_1994;
/// Permission bits of stat(2)'s mode.
const PERMISSIONS: u32 = 0o7777;

/// A volume in memory, as the guest makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryVolume {
    /// [`BindMount::number`].
    pub number: u32,
    /// The volume's, within its pod. All containers that name it have the same.
    pub name: String,
    /// In bytes; 0: no limit of its own.
    pub size_bytes: u64,
    /// Owner and permission bits of the volume's root.
    pub root: Ownership,
    /// What the container gets of the volume (`subPath`), without a slash at either end; empty: all of it.
    pub sub_path: String,
    /// Owner and permission bits of that.
    pub sub: Ownership,
}

/// Owner, group and permission bits of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits, set-group-ID and its like included.
    pub mode: u32,
}

impl From<&Metadata> for Ownership {
    fn from(metadata: &Metadata) -> Self {
        Self { uid: metadata.uid(), gid: metadata.gid(), mode: metadata.mode() & PERMISSIONS }
    }
}

/// Describes the volume in memory of the pod with this UID that a bind mount shows, wholly or in part; `None` if it shows
/// anything else. kubelet mounts such a volume at `…/pods/<uid>/volumes/kubernetes.io~empty-dir/<name>`, and its sub-paths
/// elsewhere: those are known by their device.
pub(super) fn describe(
    bind: &BindMount,
    metadata: &Metadata,
    pod_uid: &str,
    container: &ContainerId,
) -> Result<Option<MemoryVolume>, MountsError> {
    if !metadata.is_dir() || !statfs(&bind.source).is_ok_and(|found| found.f_type == TMPFS) {
        return Ok(None);
    }
    let mounts = mountinfo::of_device(metadata.dev()).map_err(|source| MountsError::ListMounts { source })?;
    let named = mounts.iter().find_map(|mount| Some((&mount.point, name(&mount.point, pod_uid)?)));
    let Some((point, name)) = named else { return Ok(None) };
    let described = describe_at(bind, metadata, &mounts, point, name);
    described.map_err(|source| MountsError::FindSource {
        source_path: bind.source.clone(),
        number: bind.number,
        container: container.clone(),
        source,
    })
}

fn describe_at(
    bind: &BindMount,
    metadata: &Metadata,
    mounts: &[Mounted],
    point: &Path,
    name: &str,
) -> io::Result<Option<MemoryVolume>> {
    let source = fs::canonicalize(&bind.source)?;
    let Some(sub_path) = mounts.iter().filter_map(|mount| mount.inside(&source)).next_back() else {
        return Ok(None);
    };
    let size = statfs(point)?;
    let size_bytes = size.f_blocks.saturating_mul(u64::try_from(size.f_bsize).unwrap_or(0));
    let sub_path = sub_path.into_os_string().into_string();
    Ok(Some(MemoryVolume {
        number: bind.number,
        name: name.to_owned(),
        size_bytes,
        root: Ownership::from(&fs::metadata(point)?),
        sub_path: sub_path.map_err(|_bytes| io::Error::other("a sub-path that is no text"))?,
        sub: Ownership::from(metadata),
    }))
}

/// The name of the volume that kubelet mounts here, if it is an `emptyDir` of this pod.
fn name<'a>(point: &'a Path, pod_uid: &str) -> Option<&'a str> {
    let mut parts = point.components().rev().map(|part| match part {
        Component::Normal(name) => name.to_str(),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
    });
    let name = parts.next()??;
    let above = ["kubernetes.io~empty-dir", "volumes", pod_uid, "pods"];
    above.into_iter().all(|wanted| parts.next() == Some(Some(wanted))).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_dir_of_the_pod_has_a_name() {
        let dir = "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~empty-dir";
        assert_eq!(name(&Path::new(dir).join("cache"), "u-1"), Some("cache"));
        for other in [
            format!("{dir}/cache/deeper"),
            "/var/lib/kubelet/pods/u-2/volumes/kubernetes.io~empty-dir/cache".to_owned(),
            "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~secret/token".to_owned(),
            "/var/lib/kubelet/pods/u-1/volume-subpaths/cache/main/0".to_owned(),
            "/cache".to_owned(),
        ] {
            assert_eq!(name(Path::new(&other), "u-1"), None, "{other}");
        }
    }
}
