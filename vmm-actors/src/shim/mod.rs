//! The shim proxy of one pod, as a process and as a peer.
//!
//! | | |
//! |---|---|
//! | Owns | the shim proxy's process and the sockets it serves: `task.sock` for containerd, `shim.sock` for us |
//! | Hears | [`Spawn`], [`Keep`], [`Attach`], [`VmGone`], [`Observe`], [`Shutdown`] |
//! | Tells | [`ShimExited`], once, to its parent |
//! | Ends when | its parent drops the address; it answers for an ended process until then |
//! | Queue | 16: one parent that has at most a few commands under way |
//!
//! Both sockets listen before the process runs, so neither containerd nor we wait for it. Until [`Keep`] the end of
//! this actor is the end of the process.

mod actor;
mod messages;
mod peer;

pub use actor::Shim;
pub use messages::{
    Attach, ContainerView, EndCause, Keep, Observe, ShimError, ShimExited, ShimRecord, ShimSpec, ShimView,
    Shutdown, Spawn, VmGone,
};
