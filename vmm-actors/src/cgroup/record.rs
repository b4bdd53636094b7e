//! What the durable record holds of the cgroup that Bulkhead makes for a pod, and how its path is found. Looks at what
//! exists, and changes nothing.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::CgroupError;
use super::layout::Layout;
use crate::id::SandboxId;

/// Enough to find everything in a pod's cgroup and to remove it, be it half made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CgroupRecord {
    /// The directory that we make: one for each hierarchy of v1, or the one of v2.
    pub directories: Vec<PathBuf>,
    /// Directories above it that are ours to remove when they are empty, the uppermost first.
    #[serde(default)]
    pub parents: Vec<PathBuf>,
    /// It lies beside kubelet's cgroup of the pod instead of in it.
    #[serde(default)]
    pub outside: bool,
}

/// Decides where the cgroup of a sandbox is: a child of `parent`, or of `default_parent` when that is empty.
/// Nothing is made. A parent that is not there yet, and the default one, is removed with its last pod.
///
/// # Errors
/// [`CgroupError::Parent`] for a name that is no path of a cgroup, [`CgroupError::NotMounted`] without cgroups.
pub fn plan(parent: &str, default_parent: &str, id: &SandboxId) -> Result<CgroupRecord, CgroupError> {
    plan_in(&Layout::detect()?, parent, default_parent, id)
}

/// As [`plan`], for a VM that has no room in the pod's own cgroup, `pod`: a sibling of that, so that whatever the
/// cgroups above share out and limit (kubelet's QoS class and what is allocatable) holds for the VM too. At the top of the
/// tree there is nothing above, and `default_parent` takes it.
///
/// # Errors
/// As [`plan`].
pub fn plan_outside(pod: &str, default_parent: &str, id: &SandboxId) -> Result<CgroupRecord, CgroupError> {
    plan_outside_in(&Layout::detect()?, pod, default_parent, id)
}

pub(super) fn plan_in(
    layout: &Layout,
    parent: &str,
    default_parent: &str,
    id: &SandboxId,
) -> Result<CgroupRecord, CgroupError> {
    let (named, is_default) = if parent.is_empty() { (default_parent, true) } else { (parent, false) };
    Ok(below(layout, &expand(named)?, is_default, id))
}

fn plan_outside_in(
    layout: &Layout,
    pod: &str,
    default_parent: &str,
    id: &SandboxId,
) -> Result<CgroupRecord, CgroupError> {
    let pod = expand(pod)?;
    let record = match pod.rsplit_once('/') {
        Some((parent, _)) if !parent.is_empty() => below(layout, parent, false, id),
        Some(_) | None => below(layout, &expand(default_parent)?, true, id),
    };
    Ok(CgroupRecord { outside: true, ..record })
}

/// The cgroup of a sandbox below an expanded parent.
fn below(layout: &Layout, parent: &str, is_default: bool, id: &SandboxId) -> CgroupRecord {
    let directories = layout.directories(&format!("{parent}/{}", directory_name(id)));
    let mut parents = Vec::new();
    for root in layout.roots() {
        let mut directory = root.clone();
        let mut names = parent.split('/').filter(|name| !name.is_empty()).peekable();
        while let Some(name) = names.next() {
            directory.push(name);
            // What is above the default parent belongs to whoever made it.
            let is_default_parent = is_default && names.peek().is_none();
            if is_default_parent || !directory.exists() {
                parents.push(directory.clone());
            }
        }
    }
    CgroupRecord { directories, parents, outside: false }
}

/// Name of the pod's own directory.
pub(super) fn directory_name(id: &SandboxId) -> String {
    format!("bulkhead-{id}")
}

/// The path of a parent: as it is, or, for the name of a systemd slice, below the slices that its name implies
/// (systemd.slice(5)): `a-b.slice` is `a.slice/a-b.slice`.
fn expand(parent: &str) -> Result<String, CgroupError> {
    let refuse = || CgroupError::Parent { parent: parent.to_owned() };
    if parent.split('/').any(|name| name == ".." || name == ".") || parent.contains('\0') {
        return Err(refuse());
    }
    if parent.starts_with('/') && !parent.ends_with(".slice") {
        return Ok(parent.trim_end_matches('/').to_owned());
    }
    let name = Path::new(parent).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(stem) = name.strip_suffix(".slice") else { return Err(refuse()) };
    if stem == "-" {
        return Ok(String::new());
    }
    if stem.split('-').any(str::is_empty) {
        return Err(refuse());
    }
    let mut path = String::new();
    let mut prefix = String::new();
    for part in stem.split('-') {
        if !prefix.is_empty() {
            prefix.push('-');
        }
        prefix.push_str(part);
        path.push('/');
        path.push_str(&prefix);
        path.push_str(".slice");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_paths_or_slices() {
        for (parent, path) in [
            ("/kubepods/burstable/pod1", "/kubepods/burstable/pod1"),
            ("/bulkhead/", "/bulkhead"),
            ("/", ""),
            ("system.slice", "/system.slice"),
            (
                "kubepods-burstable-podx_1.slice",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx_1.slice",
            ),
            ("/kubepods.slice/kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice"),
            ("-.slice", ""),
        ] {
            assert_eq!(expand(parent).unwrap(), path, "{parent}");
        }
        for parent in
            ["kubepods", "../x", "/a/../b", "/a/./b", "a--b.slice", ".slice", "-a.slice", "a:b:c", "/x\0"]
        {
            assert!(expand(parent).is_err(), "{parent} was taken");
        }
    }

    #[test]
    fn outside_is_beside_the_pods_own_cgroup_or_below_the_default_parent() {
        let dir = tempfile::TempDir::new().unwrap();
        let layout = Layout::V2(dir.path().into());
        let id = SandboxId::new("x1").unwrap();
        std::fs::create_dir_all(dir.path().join("kubepods/burstable/pod7")).unwrap();
        for (pod, place) in [
            ("/kubepods/burstable/pod7", "kubepods/burstable/bulkhead-x1"),
            ("/kubepods/pod7", "kubepods/bulkhead-x1"),
            ("kubepods-burstable-pod7.slice", "kubepods.slice/kubepods-burstable.slice/bulkhead-x1"),
            ("/pod7", "own/bulkhead-x1"),
            ("/", "own/bulkhead-x1"),
        ] {
            let record = plan_outside_in(&layout, pod, "/own", &id).unwrap();
            assert_eq!(record.directories, [dir.path().join(place)], "{pod}");
            assert!(record.outside, "{pod}");
        }
        let kept = plan_outside_in(&layout, "/kubepods/burstable/pod7", "/own", &id).unwrap();
        assert_eq!(kept.parents, Vec::<PathBuf>::new(), "kubelet's own");
        assert!(plan_outside_in(&layout, "kubepods", "/own", &id).is_err());
    }

    #[test]
    fn only_what_was_not_there_and_the_default_parent_is_ours() {
        let dir = tempfile::TempDir::new().unwrap();
        let roots: Vec<_> = ["cpu", "memory"].iter().map(|name| dir.path().join(name)).collect();
        let layout = Layout::V1(roots.clone());
        let id = SandboxId::new("x1").unwrap();
        std::fs::create_dir_all(roots[0].join("kubepods")).unwrap();
        let record = plan_in(&layout, "/kubepods/pod7", "/bulkhead", &id).unwrap();
        assert_eq!(
            record.directories,
            [roots[0].join("kubepods/pod7/bulkhead-x1"), roots[1].join("kubepods/pod7/bulkhead-x1"),]
        );
        assert_eq!(
            record.parents,
            [roots[0].join("kubepods/pod7"), roots[1].join("kubepods"), roots[1].join("kubepods/pod7"),]
        );
        std::fs::create_dir_all(roots[0].join("bulkhead")).unwrap();
        let record = plan_in(&layout, "", "/bulkhead", &id).unwrap();
        assert_eq!(record.parents, [roots[0].join("bulkhead"), roots[1].join("bulkhead")]);
    }
}
