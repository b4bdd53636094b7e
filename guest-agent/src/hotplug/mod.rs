//! What the host adds while the VM runs: CPUs and memory.

pub(crate) mod resize;
