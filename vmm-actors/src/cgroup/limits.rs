//! What a pod may use of the host, and writing it down where the kernel reads it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::error::Error;
use cgroups_rs::fs::memory::MemController;
use serde::{Deserialize, Serialize};

use super::CgroupError;
use super::layout::is_v2;
use crate::Resources;

/// What a VMM, a file server and a shim proxy use beside the guest's memory, at most: without this room the host
/// would kill a VM whose guest uses all it has.
const HELPERS_BYTES: u64 = 192 * 1024 * 1024;

/// The weight of a cgroup that nobody gave one.
const DEFAULT_SHARES: u64 = 1024;

/// Limits of the pod's cgroup. `None` and empty: none is set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// CFS period in microseconds.
    pub cpu_period: Option<u64>,
    /// CFS quota in microseconds per period; negative: no limit.
    pub cpu_quota: Option<i64>,
    /// Relative weight as cgroup v1 has it, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// Bytes.
    pub memory: Option<i64>,
    /// Memory plus swap, bytes.
    pub memory_and_swap: Option<i64>,
    /// In the list format of cpuset(7).
    pub cpuset_cpus: String,
    /// In the list format of cpuset(7).
    pub cpuset_mems: String,
    /// Huge pages in bytes by page size, as the kernel spells it in file names (`2MB`, `1GB`).
    pub hugepages: BTreeMap<String, u64>,
    /// Raw files of cgroup v2 and what to write into them.
    pub unified: BTreeMap<String, String>,
}

impl Limits {
    /// Containers and sandbox together. A memory limit is never below what the VM needs when its guest uses all of
    /// its `vm_memory_bytes`.
    #[must_use]
    pub fn for_pod(containers: &Resources, overhead: &Resources, vm_memory_bytes: u64) -> Self {
        let memory = sum(containers.memory_limit_bytes, overhead.memory_limit_bytes)
            .map(|limit| limit.max(to_i64(Self::needed_bytes(vm_memory_bytes))));
        let swap = positive(containers.memory_swap_limit_bytes.saturating_sub(containers.memory_limit_bytes))
            .filter(|_| containers.memory_swap_limit_bytes > 0);
        Self {
            cpu_period: positive(containers.cpu_period).and_then(|period| u64::try_from(period).ok()),
            cpu_quota: quota(containers, overhead),
            cpu_shares: sum(containers.cpu_shares, overhead.cpu_shares)
                .and_then(|shares| u64::try_from(shares).ok())
                .map(|shares| shares.clamp(2, 262_144)),
            memory,
            memory_and_swap: memory.zip(swap).map(|(memory, swap)| memory.saturating_add(swap)),
            cpuset_cpus: containers.cpuset_cpus.clone(),
            cpuset_mems: containers.cpuset_mems.clone(),
            hugepages: hugepages(containers, overhead),
            unified: overhead.unified.clone().into_iter().chain(containers.unified.clone()).collect(),
        }
    }

    /// These limits, with a memory limit of what the VM needs if they have none.
    #[must_use]
    pub fn bounded_for(self, vm_memory_bytes: u64) -> Self {
        Self { memory: self.memory.or(Some(to_i64(Self::needed_bytes(vm_memory_bytes)))), ..self }
    }

    /// These limits again, after `other` ones: what only those have is lifted. The kernel keeps a CPU list that nothing
    /// takes the place of.
    #[must_use]
    pub fn instead_of(mut self, other: &Self) -> Self {
        self.cpu_quota = self.cpu_quota.or(other.cpu_quota.and(Some(-1)));
        self.cpu_shares = self.cpu_shares.or(other.cpu_shares.and(Some(DEFAULT_SHARES)));
        self.memory = self.memory.or(other.memory.and(Some(-1)));
        self.memory_and_swap = self.memory_and_swap.or(other.memory_and_swap.and(Some(-1)));
        self
    }

    /// What the host must give a VM when its guest uses all of its `vm_memory_bytes`.
    #[must_use]
    pub fn needed_bytes(vm_memory_bytes: u64) -> u64 {
        vm_memory_bytes.saturating_add(HELPERS_BYTES)
    }

    /// Writes the limits into the files of a cgroup: those that this directory's hierarchy has. A limit without a
    /// file is one without a controller, and is logged by whoever looks at all directories.
    pub(super) fn apply(&self, directory: &Path) -> Result<(), CgroupError> {
        let v2 = is_v2(directory);
        let set = Setter { directory, v2 };
        self.apply_cpu(&set)?;
        self.apply_memory(&set)?;
        self.apply_hugepages(&set)?;
        let cpuset = CpuSetController::new(directory.into(), PathBuf::new(), v2);
        if !self.cpuset_cpus.is_empty() && set.has("cpuset.cpus") {
            set.check(&format!("CPUs to {}", self.cpuset_cpus), cpuset.set_cpus(&self.cpuset_cpus))?;
        }
        if !self.cpuset_mems.is_empty() && set.has("cpuset.mems") {
            set.check(&format!("memory nodes to {}", self.cpuset_mems), cpuset.set_mems(&self.cpuset_mems))?;
        }
        // Last, because they may say more precisely what is set above.
        self.apply_unified(&set)
    }

    /// Pages of a size that has no file are none that a process of the pod could use.
    fn apply_hugepages(&self, set: &Setter<'_>) -> Result<(), CgroupError> {
        let suffix = if set.v2 { "max" } else { "limit_in_bytes" };
        for (size, bytes) in &self.hugepages {
            let file = format!("hugetlb.{size}.{suffix}");
            if is_file_name(&file) && set.has(&file) {
                set.write(&file, &bytes.to_string())?;
            }
        }
        Ok(())
    }

    fn apply_unified(&self, set: &Setter<'_>) -> Result<(), CgroupError> {
        for (key, value) in &self.unified {
            if let Some(reason) = refused(key, set) {
                return Err(CgroupError::Unified { key: key.clone(), reason });
            }
            set.write(key, value)?;
        }
        Ok(())
    }

    fn apply_cpu(&self, set: &Setter<'_>) -> Result<(), CgroupError> {
        let cpu = CpuController::new(set.directory.into(), PathBuf::new(), set.v2);
        if (self.cpu_quota.is_some() || self.cpu_period.is_some())
            && set.has_either("cpu.cfs_quota_us", "cpu.max")
        {
            // Two steps: v1 refuses a quota that is too large for the period it finds.
            if let Some(period) = self.cpu_period {
                set.check(&format!("CPU period to {period} µs"), cpu.set_cfs_period(period))?;
            }
            if let Some(quota) = self.cpu_quota {
                set.check(&format!("CPU quota to {quota} µs"), cpu.set_cfs_quota(quota))?;
            }
        }
        if let Some(shares) = self.cpu_shares
            && set.has_either("cpu.shares", "cpu.weight")
        {
            let value = if set.v2 { weight(shares) } else { shares };
            set.check(&format!("CPU weight to {value}"), cpu.set_shares(value))?;
        }
        Ok(())
    }

    fn apply_memory(&self, set: &Setter<'_>) -> Result<(), CgroupError> {
        let Some(limit) = self.memory.filter(|_| set.has_either("memory.limit_in_bytes", "memory.max"))
        else {
            return Ok(());
        };
        let memory = MemController::new(set.directory.into(), PathBuf::new(), set.v2);
        let text = format!("memory limit to {limit} bytes");
        let with_swap =
            self.memory_and_swap.filter(|_| set.has_either("memory.memsw.limit_in_bytes", "memory.swap.max"));
        let Some(both) = with_swap else {
            return set.check(&text, memory.set_limit(limit));
        };
        let swap = if set.v2 && both >= 0 { both.saturating_sub(limit) } else { both };
        let swap_text = format!("swap limit to {swap} bytes");
        // v1 keeps memory ≤ memory and swap at every moment: growing goes one way round, shrinking the other.
        if memory.set_limit(limit).is_ok() {
            return set.check(&swap_text, memory.set_memswap_limit(swap));
        }
        set.check(&swap_text, memory.set_memswap_limit(swap))?;
        set.check(&text, memory.set_limit(limit))
    }
}

struct Setter<'a> {
    directory: &'a Path,
    v2: bool,
}

impl Setter<'_> {
    fn has(&self, file: &str) -> bool {
        self.directory.join(file).exists()
    }

    fn has_either(&self, v1: &str, v2: &str) -> bool {
        self.has(if self.v2 { v2 } else { v1 })
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.directory.join(file);
        std::fs::write(&path, value).map_err(|source| CgroupError::Write {
            path,
            value: value.to_owned(),
            source,
        })
    }

    fn check(&self, what: &str, result: Result<(), Error>) -> Result<(), CgroupError> {
        let wrap =
            |source| CgroupError::Limit { what: what.to_owned(), path: self.directory.to_owned(), source };
        result.map_err(wrap)
    }
}

/// Why a raw file is not written for a pod.
fn refused(key: &str, set: &Setter<'_>) -> Option<&'static str> {
    if !set.v2 {
        Some("this host has cgroup v1, and unified resources are files of cgroup v2")
    } else if !is_file_name(key) || key.starts_with("cgroup.") {
        Some("it is no file of a controller")
    } else if key == "memory.max" {
        Some("the pod's memory limit says it, and its VM is sized by that")
    } else if !set.has(key) {
        Some("the pod's cgroup on this host has no such file")
    } else {
        None
    }
}

fn is_file_name(name: &str) -> bool {
    name.contains('.')
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn hugepages(containers: &Resources, overhead: &Resources) -> BTreeMap<String, u64> {
    let mut sum = containers.hugepage_limits.clone();
    for (size, bytes) in &overhead.hugepage_limits {
        let limit = sum.entry(size.clone()).or_default();
        *limit = limit.saturating_add(*bytes);
    }
    sum
}

fn positive(value: i64) -> Option<i64> {
    (value > 0).then_some(value)
}

/// Zero means "not set": no limit of the containers means none of the pod.
fn sum(containers: i64, overhead: i64) -> Option<i64> {
    Some(positive(containers)?.saturating_add(overhead.max(0)))
}

/// The overhead's share is brought to the containers' period.
fn quota(containers: &Resources, overhead: &Resources) -> Option<i64> {
    if containers.cpu_quota < 0 {
        return Some(-1);
    }
    let quota = positive(containers.cpu_quota)?;
    let period = positive(containers.cpu_period).unwrap_or(100_000);
    let extra = positive(overhead.cpu_quota).zip(positive(overhead.cpu_period)).map_or(0, |(quota, own)| {
        let scaled = i128::from(quota) * i128::from(period) / i128::from(own);
        i64::try_from(scaled).unwrap_or(i64::MAX)
    });
    Some(quota.saturating_add(extra))
}

/// From v1's shares (2 to 262144) to v2's weight (1 to 10000), linear as the OCI runtimes do it.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: i64 = 1024 * 1024;

    #[test]
    fn containers_and_overhead_add_up() {
        let containers = Resources {
            cpu_period: 100_000,
            cpu_quota: 150_000,
            cpu_shares: 1024,
            memory_limit_bytes: 1024 * MIB,
            memory_swap_limit_bytes: 1536 * MIB,
            ..Resources::default()
        };
        let overhead = Resources {
            cpu_period: 50_000,
            cpu_quota: 12_500,
            cpu_shares: 256,
            memory_limit_bytes: 128 * MIB,
            ..Resources::default()
        };
        let limits = Limits::for_pod(&containers, &overhead, 1);
        assert_eq!(
            limits,
            Limits {
                cpu_period: Some(100_000),
                cpu_quota: Some(175_000),
                cpu_shares: Some(1280),
                memory: Some(1152 * MIB),
                memory_and_swap: Some(1664 * MIB),
                ..Limits::default()
            }
        );
    }

    #[test]
    fn a_pod_without_limits_has_none_whatever_the_overhead() {
        let overhead = Resources {
            cpu_quota: 1,
            cpu_period: 1,
            cpu_shares: 9,
            memory_limit_bytes: 9,
            ..Default::default()
        };
        assert_eq!(Limits::for_pod(&Resources::default(), &overhead, 1 << 30), Limits::default());
        let unlimited = Resources { cpu_quota: -1, ..Default::default() };
        assert_eq!(Limits::for_pod(&unlimited, &overhead, 0).cpu_quota, Some(-1));
    }

    #[test]
    fn the_host_never_kills_a_vm_that_uses_what_it_has() {
        let containers = Resources { memory_limit_bytes: 64 * MIB, ..Default::default() };
        let limits = Limits::for_pod(&containers, &Resources::default(), 320 << 20);
        assert_eq!(limits.memory, Some((320 + 192) * MIB));
        assert_eq!(Limits::default().bounded_for(320 << 20).memory, limits.memory);
        assert_eq!(limits.clone().bounded_for(1), limits);
    }

    #[test]
    fn the_way_back_lifts_what_was_not_there() {
        let before = Limits { memory: Some(7), ..Limits::default() };
        let other =
            Limits { cpu_quota: Some(5), memory: Some(9), memory_and_swap: Some(9), ..Limits::default() };
        let back = before.instead_of(&other);
        let expected =
            Limits { cpu_quota: Some(-1), memory: Some(7), memory_and_swap: Some(-1), ..Limits::default() };
        assert_eq!(back, expected);
    }

    #[test]
    fn huge_pages_add_up_and_raw_files_are_the_containers_first() {
        let containers = Resources {
            hugepage_limits: [("2MB".into(), 4 << 20), ("1GB".into(), 1 << 30)].into(),
            unified: [("memory.high".into(), "1".into())].into(),
            ..Resources::default()
        };
        let overhead = Resources {
            hugepage_limits: [("2MB".into(), 2 << 20)].into(),
            unified: [("memory.high".into(), "2".into()), ("memory.low".into(), "3".into())].into(),
            ..Resources::default()
        };
        let limits = Limits::for_pod(&containers, &overhead, 0);
        assert_eq!(limits.hugepages, [("2MB".into(), 6 << 20), ("1GB".into(), 1 << 30)].into());
        let unified =
            [("memory.high", "1"), ("memory.low", "3")].map(|(key, value)| (key.into(), value.into()));
        assert_eq!(limits.unified, unified.into());
    }

    #[test]
    fn the_readme_names_the_overhead_that_the_defaults_need() {
        let memory_bytes = u64::from(bulkhead_config::Vm::default().memory_mib.get()) << 20;
        let overhead = format!("{} MiB with the shipped settings", Limits::needed_bytes(memory_bytes) >> 20);
        assert!(include_str!("../../../README.md").contains(&overhead), "no {overhead} in it");
    }

    #[test]
    fn shares_become_weights_over_the_whole_range() {
        assert_eq!([2, 1024, 262_144, 0, u64::MAX].map(weight), [1, 39, 10_000, 1, 10_000]);
    }
}
