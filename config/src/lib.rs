//! Typed, validated settings of Bulkhead.
//!
//! [`Settings`] is the one TOML file of the node, every key with its default. [`Settings::load`] reports every fault
//! at once: unknown keys, wrong types, impossible values, and what the host lacks. A node can have several profiles, each
//! with a socket and with settings of its own for the VMs that are made there.

mod check;
mod fault;
mod finding;
mod host;
mod load;
mod nearest;
mod profile;
mod profile_name;
mod settings;
#[cfg(test)]
mod tests;
mod vmm;

pub use check::{MAX_RUN_DIR, MAX_SOCKET_PATH};
pub use fault::{Fault, Faults};
pub use load::Scope;
pub use profile_name::{InvalidProfileName, ProfileName};
pub use settings::{
    CacheMode, Cgroup, Guest, LogFormat, Metrics, Sandboxer, Settings, Shim, Traces, Virtiofsd, Vm,
    WithoutOverhead,
};
pub use vmm::{Accelerator, CloudHypervisor, Hypervisor, Machine, Qemu};
