//! Typed, validated settings of Bulkhead.
//!
//! [`Settings`] is the one TOML file of the node, every key with its default. Loading reports every fault at once.

mod settings;

pub use settings::{
    Accelerator, CacheMode, Cgroup, Guest, Hypervisor, LogFormat, Machine, Qemu, Sandboxer, Settings, Shim,
    Virtiofsd, Vm,
};
