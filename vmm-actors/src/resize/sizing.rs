//! How large a VM is, from the pod's limits and the settings.
//!
//! vCPUs: the pod's CPU limit, rounded up to whole CPUs, but no fewer than `[vm] vcpus`. Memory: `[vm] memory_mib` for
//! the guest itself, plus the pod's memory limit; a pod without a limit has the guest's memory alone. The pod's
//! overhead belongs to VMM and helpers and is applied to the host cgroup only. A VM that runs grows where its driver can,
//! and never shrinks (`docs/sizing.md`).

use std::num::NonZeroU32;

use bulkhead_config::Vm;
use serde::{Deserialize, Serialize};

use crate::cgroup::{CgroupRecord, Limits};
use crate::pod_spec::{PodSpec, Resources};
use crate::vm::Size;

const MIB: i64 = 1024 * 1024;

/// What the settings say of sizes. It is recorded with a pod: settings that have changed since are not its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    /// Processors of a pod without a limit, and the fewest of any.
    pub vcpus: NonZeroU32,
    /// Memory of the guest itself, in MiB.
    pub memory_mib: NonZeroU32,
    /// Memory comes in huge pages.
    pub hugepages: bool,
}

impl From<&Vm> for Basis {
    fn from(settings: &Vm) -> Self {
        Self { vcpus: settings.vcpus, memory_mib: settings.memory_mib, hugepages: settings.hugepages }
    }
}

impl Basis {
    /// The most of this that a pod with these limits and a VM of this size can have been made by.
    pub(crate) fn within(self, size: Size, pod: &Resources) -> Self {
        let memory_mib = NonZeroU32::new(size.memory_mib.get().saturating_sub(self.limit_mib(pod)));
        Self {
            vcpus: self.vcpus.min(size.vcpus),
            memory_mib: memory_mib.map_or(NonZeroU32::MIN, |most| self.memory_mib.min(most)),
            ..self
        }
    }

    fn limit_mib(self, pod: &Resources) -> u32 {
        let limit = if pod.memory_limit_bytes > 0 { whole(pod.memory_limit_bytes, MIB) } else { 0 };
        // A huge page is two.
        if self.hugepages { limit.saturating_add(limit % 2) } else { limit }
    }
}

/// The size of the VM of a pod with these limits.
pub(crate) fn size_of(pod: &Resources, basis: Basis) -> Size {
    let cpus = if pod.cpu_quota > 0 && pod.cpu_period > 0 { whole(pod.cpu_quota, pod.cpu_period) } else { 0 };
    Size {
        vcpus: NonZeroU32::new(cpus).map_or(basis.vcpus, |cpus| cpus.max(basis.vcpus)),
        memory_mib: basis.memory_mib.saturating_add(basis.limit_mib(pod)),
    }
}

/// What an operator should know of a pod whose VM may use more of the host than the pod's limit and overhead say.
pub(crate) fn beyond_the_pod(cgroup: &CgroupRecord, pod: &PodSpec, size: Size) -> Option<String> {
    outside(cgroup, size).or_else(|| raised(pod, size))
}

/// Nothing that kubelet and the scheduler reckon with counts a VM that is not in the pod's own cgroup.
fn outside(cgroup: &CgroupRecord, size: Size) -> Option<String> {
    let directory = cgroup.directories.first().filter(|_| cgroup.outside)?;
    let needed_mib = Limits::needed_bytes(size.memory_bytes()) >> 20;
    Some(format!(
        "the pod's RuntimeClass has no overhead of memory, and the pod's limit has no room for a VM: VMM and helpers are in \
         cgroup {}, limited to {needed_mib} MiB, which the scheduler does not know of; give the RuntimeClass \
         overhead.podFixed.memory",
        directory.display()
    ))
}

/// The host allows a pod whose limit and overhead are too small for its VM more than those.
fn raised(pod: &PodSpec, size: Size) -> Option<String> {
    let limit = u64::try_from(pod.resources.memory_limit_bytes).ok().filter(|limit| *limit > 0)?;
    let asked = limit.saturating_add(u64::try_from(pod.overhead.memory_limit_bytes).unwrap_or(0));
    let needed = Limits::needed_bytes(size.memory_bytes());
    (asked < needed).then(|| {
        format!(
            "the host allows the pod {} MiB of memory instead of the {} MiB of its limit and overhead: what its VM \
             needs",
            needed >> 20,
            asked >> 20
        )
    })
}

/// How many `unit`s hold `amount`, both above zero.
fn whole(amount: i64, unit: i64) -> u32 {
    let units = amount / unit + i64::from(amount % unit != 0);
    u32::try_from(units).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(cpu_quota: i64, memory_limit_bytes: i64) -> Size {
        let pod = Resources { cpu_period: 100_000, cpu_quota, memory_limit_bytes, ..Resources::default() };
        size_of(&pod, Basis::from(&Vm::default()))
    }

    #[test]
    fn a_pod_without_limits_gets_the_default_vm() {
        let Vm { vcpus, memory_mib, .. } = Vm::default();
        assert_eq!(size(0, 0), Size { vcpus, memory_mib });
        assert_eq!(size(-1, -1), size(0, 0));
    }

    #[test]
    fn a_limit_that_is_too_small_for_the_vm_is_told() {
        let limited = |overhead_mib: i64| {
            let resources = Resources { memory_limit_bytes: 64 * MIB, ..Resources::default() };
            let overhead = Resources { memory_limit_bytes: overhead_mib * MIB, ..Resources::default() };
            let size = size_of(&resources, Basis::from(&Vm::default()));
            raised(&PodSpec { resources, overhead, ..PodSpec::default() }, size)
        };
        let needed = Vm::default().memory_mib.get() + 64 + 192;
        let text = limited(32).unwrap();
        assert!(text.contains(&format!("{needed} MiB")) && text.contains("96 MiB"), "{text}");
        assert_eq!(limited(i64::from(needed) - 64), None);
        assert_eq!(
            raised(&PodSpec::default(), size_of(&Resources::default(), Basis::from(&Vm::default()))),
            None
        );
    }

    #[test]
    fn limits_are_rounded_up_and_memory_is_added() {
        let base = Vm::default().memory_mib;
        let limited = size(250_000, MIB * 100 + 1);
        assert_eq!(limited.vcpus.get(), 3);
        assert_eq!(limited.memory_mib.get(), base.get() + 101);
        assert_eq!(size(50_000, 1).vcpus.get(), 1);
        let settings = Vm { hugepages: true, ..Vm::default() };
        let odd = Resources { memory_limit_bytes: 101 * MIB, ..Resources::default() };
        assert_eq!(
            size_of(&odd, Basis::from(&settings)).memory_mib.get(),
            base.get() + 102,
            "whole huge pages"
        );
        assert_eq!(size(i64::MAX, i64::MAX).memory_mib, NonZeroU32::MAX);
    }

    #[test]
    fn a_pod_whose_basis_nobody_wrote_down_is_not_made_larger_by_new_settings() {
        let pod = Resources {
            cpu_period: 100_000,
            cpu_quota: 200_000,
            memory_limit_bytes: 100 * MIB,
            ..Resources::default()
        };
        let old = Basis::from(&Vm::default());
        let made = size_of(&pod, old);
        let new =
            Basis { vcpus: 8.try_into().unwrap(), memory_mib: 1024.try_into().unwrap(), hugepages: false };
        assert_eq!(size_of(&pod, new.within(made, &pod)), made);
        assert_eq!(old.within(made, &pod), old);
        let tiny = Size { memory_mib: 10.try_into().unwrap(), ..made };
        assert_eq!(new.within(tiny, &pod).memory_mib.get(), 1);
    }
}
