//! Where cgroups are mounted.

use std::path::{Path, PathBuf};

use cgroups_rs::fs::hierarchies::{UNIFIED_MOUNTPOINT, is_cgroup2_unified_mode, mountinfo_self};

use super::CgroupError;

/// The cgroup file systems of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// One root for each hierarchy.
    V1(Vec<PathBuf>),
    /// The one root.
    V2(PathBuf),
}

impl Layout {
    /// Looks where this machine has them. A hybrid set-up, which has all controllers in v1 hierarchies, is v1.
    pub(super) fn detect() -> Result<Self, CgroupError> {
        if is_cgroup2_unified_mode() {
            return Ok(Self::V2(UNIFIED_MOUNTPOINT.into()));
        }
        // A hierarchy that is mounted twice is one.
        let mut seen = Vec::new();
        let mut roots = Vec::new();
        for mount in mountinfo_self() {
            let mut controllers = mount.super_opts;
            controllers.retain(|option| is_controller(option));
            controllers.sort();
            if !controllers.is_empty() && !seen.contains(&controllers) {
                seen.push(controllers);
                roots.push(mount.mount_point);
            }
        }
        if roots.is_empty() { Err(CgroupError::NotMounted) } else { Ok(Self::V1(roots)) }
    }

    /// The directories that stand for one path.
    pub(super) fn directories(&self, path: &str) -> Vec<PathBuf> {
        let relative = path.trim_start_matches('/');
        self.roots().iter().map(|root| root.join(relative)).collect()
    }

    pub(super) fn roots(&self) -> &[PathBuf] {
        match self {
            Self::V1(roots) => roots,
            Self::V2(root) => std::slice::from_ref(root),
        }
    }
}

/// Whether this directory is of cgroup v2: every one of those has this file.
pub(super) fn is_v2(directory: &Path) -> bool {
    directory.join("cgroup.controllers").exists()
}

/// Hierarchies that a pod has a place in: those that limit or count something, and systemd's own, so that a pod is
/// no part of this service's unit.
fn is_controller(option: &str) -> bool {
    matches!(
        option,
        "cpu" | "cpuacct" | "cpuset" | "memory" | "pids" | "blkio" | "hugetlb" | "freezer" | "name=systemd"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_cgroups() {
        match Layout::detect().unwrap() {
            Layout::V2(root) => assert!(root.join("cgroup.procs").exists(), "{root:?}"),
            Layout::V1(roots) => {
                assert!(roots.iter().all(|root| root.join("cgroup.procs").exists()), "{roots:?}")
            }
        }
    }
}
