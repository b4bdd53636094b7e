//! The memory limits that a pod is under, and whether its VM has room below them.

use std::fs;
use std::path::{Path, PathBuf};

use super::{CgroupError, CgroupRecord};

const MIB: u64 = 1024 * 1024;

/// A memory limit that a pod is under: its cgroup's own, or that of one above it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The cgroup.
    pub cgroup: PathBuf,
    /// Its limit in bytes.
    pub limit_bytes: u64,
}

/// Every memory limit that holds for processes in this cgroup, the nearest first. Blocks.
#[must_use]
pub fn bounds(directory: &Path) -> Vec<Bound> {
    let bound = |cgroup: &Path| {
        // `max` is no number.
        let limits = ["memory.max", "memory.limit_in_bytes"]
            .map(|file| fs::read_to_string(cgroup.join(file)).ok()?.trim().parse().ok());
        let limit_bytes = limits.into_iter().flatten().find(|limit| *limit < UNLIMITED)?;
        Some(Bound { cgroup: cgroup.to_owned(), limit_bytes })
    };
    directory.ancestors().filter_map(bound).collect()
}

/// What v1 says where there is no limit: the largest multiple of a page, whatever its size.
const UNLIMITED: u64 = (i64::MAX as u64) & !0xffff;

/// Looks whether a VM that needs this many bytes fits below the limits of the cgroups above it, which are kubelet's
/// to set. A VM that does not would be killed as soon as its guest uses what it was promised.
///
/// For a pod that is resized in place, kubelet sets the limit of the pod's own cgroup, the nearest, before it asks us
/// (up to 1.35) or afterwards (from 1.36): `planned_bytes` takes the place of that limit. Blocks.
///
/// # Errors
/// [`CgroupError::TooSmall`] with the smallest of those limits.
pub fn check_room(
    record: &CgroupRecord,
    needed_bytes: u64,
    planned_bytes: Option<u64>,
) -> Result<(), CgroupError> {
    let parents = record.directories.iter().filter_map(|directory| directory.parent());
    let above = parents.flat_map(|parent| {
        bounds(parent).into_iter().map(move |bound| match planned_bytes {
            Some(limit_bytes) if bound.cgroup == parent => Bound { limit_bytes, ..bound },
            Some(_) | None => bound,
        })
    });
    match above.min_by_key(|bound| bound.limit_bytes) {
        Some(Bound { cgroup, limit_bytes }) if limit_bytes < needed_bytes => Err(CgroupError::TooSmall {
            path: cgroup,
            allowed_mib: limit_bytes / MIB,
            needed_mib: needed_bytes.div_ceil(MIB),
            missing_mib: (needed_bytes - limit_bytes).div_ceil(MIB),
        }),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(limits: &[(&str, &str, &str)]) -> (tempfile::TempDir, CgroupRecord) {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("kubepods/pod1/bulkhead-x");
        for (below, file, value) in limits {
            let cgroup = dir.path().join(below);
            fs::create_dir_all(&cgroup).unwrap();
            fs::write(cgroup.join(file), format!("{value}\n")).unwrap();
        }
        (dir, CgroupRecord { directories: vec![pod], ..CgroupRecord::default() })
    }

    #[test]
    fn the_smallest_limit_above_decides() {
        let (dir, record) = tree(&[
            ("kubepods", "memory.limit_in_bytes", "1073741824"),
            ("kubepods/pod1", "memory.limit_in_bytes", "536870912"),
            ("kubepods/pod1/bulkhead-x", "memory.limit_in_bytes", "1"),
        ]);
        check_room(&record, 512 << 20, None).unwrap();
        let error = check_room(&record, (512 << 20) + 1, None).unwrap_err();
        let CgroupError::TooSmall { path, allowed_mib, needed_mib, missing_mib } = &error else {
            panic!("{error}")
        };
        assert_eq!(*path, dir.path().join("kubepods/pod1"), "not its own, which is ours to raise");
        assert_eq!((*allowed_mib, *needed_mib, *missing_mib), (512, 513, 1));
        assert!(error.to_string().contains("overhead"), "{error}");
    }

    #[test]
    fn no_limit_is_room_enough() {
        let (_v2, record) = tree(&[("kubepods/pod1", "memory.max", "max")]);
        check_room(&record, u64::MAX, None).unwrap();
        let (_v1, record) = tree(&[("kubepods/pod1", "memory.limit_in_bytes", "9223372036854771712")]);
        check_room(&record, u64::MAX, None).unwrap();
        let (_none, record) = tree(&[]);
        check_room(&record, u64::MAX, None).unwrap();
    }

    #[test]
    fn what_kubelet_makes_of_the_pods_own_cgroup_counts_and_not_what_it_was() {
        let (dir, record) =
            tree(&[("kubepods", "memory.max", "1073741824"), ("kubepods/pod1", "memory.max", "536870912")]);
        check_room(&record, 800 << 20, Some(800 << 20)).unwrap();
        let refused = |needed, planned| {
            let error = check_room(&record, needed, Some(planned)).unwrap_err();
            let CgroupError::TooSmall { path, .. } = error else { panic!("{error}") };
            path
        };
        assert_eq!(refused(300 << 20, 256 << 20), dir.path().join("kubepods/pod1"), "it is about to shrink");
        assert_eq!(
            refused(2 << 30, 4 << 30),
            dir.path().join("kubepods"),
            "what is above does not grow with it"
        );
        let (_none, free) = tree(&[("kubepods/pod1", "memory.max", "max")]);
        check_room(&free, 2 << 30, Some(1)).unwrap();
    }
}
