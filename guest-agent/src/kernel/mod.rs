//! Interfaces of the guest's kernel, each behind a few functions: clocks, sysctls, modules, mounts, power, and the system
//! calls that have no safe wrapper elsewhere. Nothing here knows of pods or containers.

pub(crate) mod blocking;
pub(crate) mod capacity;
pub(crate) mod clock;
pub(crate) mod modules;
pub(crate) mod mount;
pub(crate) mod power;
pub(crate) mod syscalls;
pub(crate) mod sysctl;
