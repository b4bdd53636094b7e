//! The wire contract of guest agent, shim proxy and sandboxer.
//!
//! | link | transport | service |
//! |---|---|---|
//! | guest → host, once | vsock to CID 2, port [`ANNOUNCE_PORT`], one [frame] | [`agent::Announce`] |
//! | sandboxer → agent, shim → agent | vsock port [`AGENT_PORT`], ttrpc | [`agent_ttrpc::Agent`] |
//! | shim → agent, one per stream | vsock port [`STREAM_PORT`], [frames](stream) | stdin, stdout, stderr, forwarded TCP, the host's unix sockets |
//! | shim → sandboxer | `control.sock`, ttrpc | [`pod_ttrpc::Pod`] |
//! | sandboxer → shim | `shim.sock`, ttrpc | [`shim_ttrpc::Shim`] |
//!
//! Every session starts with Hello: each side names the range of versions it speaks, the newest common one holds.

pub mod forward;
pub mod frame;
pub mod relay;
pub mod stream;
pub mod untrusted;
pub mod version;

mod generated;
pub use generated::{agent, agent_ttrpc, pod, pod_ttrpc, shim, shim_ttrpc};

/// vsock port on the host (CID 2) that the guest dials once, to announce itself. With hybrid vsock the listener is
/// the unix socket `<vsock socket>_1023`.
pub const ANNOUNCE_PORT: u32 = 1023;
/// vsock port of the guest on which the agent serves ttrpc.
pub const AGENT_PORT: u32 = 1024;
/// vsock port of the guest that takes one connection for each stream.
pub const STREAM_PORT: u32 = 1025;
/// Feature of an agent that gives containers the [`agent::Disk`]s it is told of.
pub const FEATURE_DISKS: &str = "disks";
/// Feature of an agent that makes the [`agent::MemoryVolume`]s it is told of.
pub const FEATURE_MEMORY_VOLUMES: &str = "memory-volumes";
/// Where the guest mounts the pod's virtiofs share.
pub const SHARE_DIR: &str = "/run/bulkhead/share";
/// virtiofs tag of the pod's share.
pub const SHARE_TAG: &str = "bulkhead";
/// Where the agent listens for the host's unix sockets: `<container id>/<number>` below it.
pub const SOCKET_DIR: &str = "/run/bulkhead/sockets";
/// Where the agent binds the parts of its volumes in memory that containers have: `<container id>/<number>` below it.
pub const MEMORY_DIR: &str = "/run/bulkhead/memory";
/// Feature of an agent that takes CPUs and memory which are added while its VM runs.
pub const FEATURE_GROWTH: &str = "growth";
