//! The mounts of a container: what the agent mounts for it in the guest, volumes of the share and in memory, and where in
//! the container's file tree mounts and the working directory lie.

pub(super) mod guest;
pub(super) mod memory;
pub(super) mod share;
pub(super) mod targets;
pub(super) mod workdir;
