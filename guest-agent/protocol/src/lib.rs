//! The wire contract of guest agent, shim proxy and sandboxer.
//!
//! | link | transport | service |
//! |---|---|---|
//! | guest → host, once | vsock to CID 2, port [`ANNOUNCE_PORT`], one [frame] | [`agent::Announce`] |
//! | sandboxer → agent, shim → agent | vsock port [`AGENT_PORT`], ttrpc | [`agent_ttrpc::Agent`] |
//! | shim → agent, one per stream | vsock port [`STREAM_PORT`], [frames](stream) | stdin, stdout, stderr, forwarded TCP, the host's unix sockets |
//! | shim → sandboxer | [`CONTROL_SOCKET`], ttrpc | [`pod_ttrpc::Pod`] |
//! | sandboxer → shim | [`SHIM_SOCKET`], ttrpc | [`shim_ttrpc::Shim`] |
//!
//! Every session starts with Hello: each side names the range of versions it speaks, and the newest common one holds.

pub mod accept;
pub mod error;
pub mod forward;
pub mod frame;
pub mod hybrid_vsock;
pub mod relay;
pub mod stream;
pub mod untrusted;
pub mod version;

mod contract;
mod generated;

pub use contract::{
    AGENT_PORT, ANNOUNCE_PORT, CONTROL_SOCKET, FEATURE_DISKS, FEATURE_MEMORY_VOLUMES, FEATURE_RESIZE,
    GUEST_CGROUPS, KILLED_STATUS, MEMORY_DIR, MIN_OOM_SCORE_ADJ, PID_NAMESPACE, SHARE_DIR, SHARE_TAG,
    SHARE_VOLUMES, SHIM_SOCKET, SHIM_SOCKET_FD, SIGKILL, SOCKET_DIR, STREAM_PORT, TASK_SOCKET,
    TASK_SOCKET_FD, VSOCK_SOCKET,
};
pub use generated::{agent, agent_ttrpc, pod, pod_ttrpc, shim, shim_ttrpc};
