//! How large a VM is.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// Steps in which the memory of a running VM grows, in MiB. A guest takes no smaller pieces: what its page allocator
/// keeps together, and two huge pages of the host (`virtio_mem`, Linux 5.8 to 6.x).
const STEP_MIB: u32 = 4;

/// Processors and memory of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Processors.
    pub vcpus: NonZeroU32,
    /// Memory of the guest in MiB.
    pub memory_mib: NonZeroU32,
}

impl Size {
    /// What a VM of this size becomes to be as large as `wanted`: no part of it shrinks, and memory grows in whole
    /// steps.
    #[must_use]
    pub fn grown_to(self, wanted: Self) -> Self {
        let more = wanted.memory_mib.get().saturating_sub(self.memory_mib.get());
        let more = more.checked_next_multiple_of(STEP_MIB).unwrap_or(more);
        Self { vcpus: self.vcpus.max(wanted.vcpus), memory_mib: self.memory_mib.saturating_add(more) }
    }

    /// The larger of each.
    #[must_use]
    pub fn at_least(self, other: Self) -> Self {
        Self { vcpus: self.vcpus.max(other.vcpus), memory_mib: self.memory_mib.max(other.memory_mib) }
    }

    /// Whether nothing of `other` is larger.
    #[must_use]
    pub fn holds(self, other: Self) -> bool {
        self.at_least(other) == self
    }

    /// What has to grow to be that large, for people.
    #[must_use]
    pub fn growth(self, to: Self) -> String {
        let cpus = (to.vcpus > self.vcpus).then(|| format!("CPUs from {} to {}", self.vcpus, to.vcpus));
        let memory = (to.memory_mib > self.memory_mib)
            .then(|| format!("memory from {} to {} MiB", self.memory_mib, to.memory_mib));
        let parts: Vec<String> = cpus.into_iter().chain(memory).collect();
        parts.join(" and ")
    }

    /// Guest memory in bytes.
    #[must_use]
    pub fn memory_bytes(self) -> u64 {
        u64::from(self.memory_mib.get()) << 20
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} CPUs and {} MiB", self.vcpus, self.memory_mib)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(vcpus: u32, memory_mib: u32) -> Size {
        Size { vcpus: vcpus.try_into().unwrap(), memory_mib: memory_mib.try_into().unwrap() }
    }

    #[test]
    fn memory_grows_in_steps_and_nothing_shrinks() {
        assert_eq!(size(2, 301).grown_to(size(1, 402)), size(2, 405));
        assert_eq!(size(1, 300).grown_to(size(4, 304)), size(4, 304));
        assert_eq!(size(2, 512).grown_to(size(2, 100)), size(2, 512));
        assert_eq!(size(1, 256).grown_to(size(1, u32::MAX)).memory_mib, NonZeroU32::MAX);
    }

    #[test]
    fn only_what_grows_is_told() {
        assert_eq!(size(2, 300).growth(size(4, 300)), "CPUs from 2 to 4");
        assert_eq!(size(2, 300).growth(size(3, 400)), "CPUs from 2 to 3 and memory from 300 to 400 MiB");
        assert!(size(2, 300).holds(size(2, 299)) && !size(2, 300).holds(size(3, 1)));
    }
}
