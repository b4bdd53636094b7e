//! What a pod is given of its host.

use super::sizing::{Basis, size_of};
use crate::cgroup::Limits;
use crate::pod_spec::Resources;
use crate::vm::Size;

/// The limits of a pod, the size of its VM, and what both are reckoned from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allotment {
    /// Sum of what the pod's containers may use.
    pub resources: Resources,
    /// What the sandbox itself may use beside them.
    pub overhead: Resources,
    /// What the VM's size is reckoned from.
    pub basis: Basis,
    /// The VM's size.
    pub size: Size,
    /// VMM and helpers are in a cgroup beside the pod's own.
    pub outside: bool,
    /// The pod has a cgroup of its own, which kubelet makes.
    pub has_parent: bool,
}

impl Allotment {
    /// With other limits. What they do not set keeps what it is. A VM keeps what it `has`: it grows with its pod, and
    /// never shrinks.
    #[must_use]
    pub fn updated(&self, resources: &Resources, overhead: &Resources, has: Size) -> Self {
        let resources = self.resources.updated(resources);
        let size = has.grown_to(size_of(&resources, self.basis));
        Self { resources, overhead: self.overhead.updated(overhead), size, ..self.clone() }
    }

    /// Whether the VM is larger than a new pod's would be.
    #[must_use]
    pub fn is_beyond(&self) -> bool {
        !size_of(&self.resources, self.basis).holds(self.size)
    }

    /// What the host must give the pod's VM, in bytes.
    #[must_use]
    pub fn needed_bytes(&self) -> u64 {
        Limits::needed_bytes(self.size.memory_bytes())
    }

    /// What kubelet makes, or is about to make, of the memory limit of the cgroup right above, in bytes. None where that
    /// is not the pod's own, or nobody has named the limit.
    #[must_use]
    pub fn planned_bytes(&self) -> Option<u64> {
        let limit = u64::try_from(self.resources.memory_limit_bytes).ok().filter(|limit| *limit > 0)?;
        let overhead = u64::try_from(self.overhead.memory_limit_bytes).unwrap_or(0);
        let below_the_pods = self.has_parent && !self.outside;
        below_the_pods.then_some(limit.saturating_add(overhead))
    }

    /// What the pod may use of the host.
    #[must_use]
    pub fn host_limits(&self) -> Limits {
        let guest = self.size.memory_bytes();
        let limits = Limits::for_pod(&self.resources, &self.overhead, guest);
        // Beside the pod's cgroup, nothing that was made for the pod bounds it.
        if self.outside { limits.bounded_for(guest) } else { limits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: i64 = 1 << 20;

    fn allotment(memory_mib: i64) -> Allotment {
        let basis =
            Basis { vcpus: 1.try_into().unwrap(), memory_mib: 128.try_into().unwrap(), hugepages: false };
        let resources = Resources { memory_limit_bytes: memory_mib * MIB, ..Resources::default() };
        let size = size_of(&resources, basis);
        let overhead = Resources { memory_limit_bytes: 32 * MIB, ..Resources::default() };
        Allotment { resources, overhead, basis, size, outside: false, has_parent: true }
    }

    #[test]
    fn a_vm_grows_with_its_pod_and_does_not_shrink() {
        let (small, large) = (allotment(64), allotment(256));
        let grown = small.updated(&large.resources, &Resources::default(), small.size);
        assert_eq!((grown.size, grown.is_beyond()), (large.size, false));
        assert_eq!(grown.overhead, small.overhead, "what is not set stays");
        let shrunk = grown.updated(&small.resources, &Resources::default(), grown.size);
        assert_eq!((shrunk.size, shrunk.is_beyond()), (large.size, true));
        assert_eq!(shrunk.resources, small.resources);
    }

    #[test]
    fn only_the_limit_of_the_pods_own_cgroup_is_known_before_it_is_made() {
        let inside = allotment(64);
        assert_eq!(inside.planned_bytes(), Some(96 << 20));
        assert_eq!(Allotment { outside: true, ..inside.clone() }.planned_bytes(), None);
        assert_eq!(Allotment { has_parent: false, ..inside }.planned_bytes(), None);
        assert_eq!(allotment(0).planned_bytes(), None, "nobody has named one");
    }
}
