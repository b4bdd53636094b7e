//! The actors that own virtual machines and what belongs to them.
//!
//! ```text
//! Registry ── one for the process, the map of sandboxes
//! └─ Sandbox ── one per pod: life cycle, durable record, its children
//!    ├─ Cgroup      the pod's host cgroup
//!    ├─ Monitor     the host's memory: OOM kills and pressure in that cgroup
//!    ├─ Network     taps and tc redirects in the pod's network namespace
//!    ├─ Containers  what a container needs before the guest runs it: its record, disks, mounts
//!    ├─ Mounts      the tree exported to the guest
//!    ├─ Virtiofsd   its file server
//!    ├─ Vm          the VMM and its vsock helper, through a driver
//!    ├─ Agent       the session to PID 1 of the guest
//!    └─ Shim        the shim proxy
//! ```

pub mod agent;
pub mod ask;
mod cause;
pub mod cgroup;
pub mod containers;
pub mod guest_spec;
pub mod host;
pub mod id;
pub mod monitor;
pub mod mounts;
pub mod network;
pub mod orphan;
mod pod_spec;
pub mod record_part;
pub mod registry;
pub mod resize;
pub mod runtime_dir;
pub mod sandbox;
mod sandboxes;
pub mod shim;
mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod trace;
pub mod virtiofsd;
pub mod vm;
mod waiters;

pub use pod_spec::{PodSpec, PortMapping, ResourceLimit, Resources};
pub use sandboxes::Sandboxes;
pub use telemetry::Telemetry;
