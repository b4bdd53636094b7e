//! What this machine has: CPUs and memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One directory for each CPU (Linux, `Documentation/ABI/testing/sysfs-devices-system-cpu`).
pub(crate) const CPUS: &str = "/sys/devices/system/cpu";

/// The CPUs could not be listed.
#[derive(Debug, thiserror::Error)]
#[error("list the CPUs in {path}")]
pub(crate) struct ListCpus {
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}

/// CPUs that are online and memory of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) cpus: u32,
    pub(crate) memory_bytes: u64,
}

/// Capacity of this machine. Where sysfs does not tell the CPUs, they are [`u32::MAX`], which limits nothing.
pub(crate) fn capacity() -> Capacity {
    Capacity { cpus: online_cpus(Path::new(CPUS)).unwrap_or(u32::MAX), memory_bytes: memory_bytes() }
}

/// How many CPUs are online, according to the directory `dir` ([`CPUS`]).
///
/// # Errors
/// [`ListCpus`].
pub(crate) fn online_cpus(dir: &Path) -> Result<u32, ListCpus> {
    let path = dir.join("online");
    let list = fs::read_to_string(&path).map_err(|source| ListCpus { path, source })?;
    Ok(count(&list))
}

/// How many CPUs a list names, such as `0-3,7`.
fn count(list: &str) -> u32 {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        last.checked_sub(first).map(|more| more.saturating_add(1))
    };
    list.trim().split(',').filter_map(range).fold(0, u32::saturating_add)
}

/// Memory in bytes as the kernel counts it, without what it keeps for itself (sysinfo(2), totalram).
pub(crate) fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_counted() {
        for (list, number) in [("0\n", 1), ("0-3\n", 4), ("0-1,4,6-7", 5), ("", 0)] {
            assert_eq!(count(list), number, "{list:?}");
        }
    }

    #[test]
    fn a_list_that_cannot_be_read_is_named() {
        let error = online_cpus(Path::new("/nonexistent")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent"), "{error}");
    }
}
