//! The mounts of a container: those that the agent makes in the guest, volumes of the share and in memory, and the
//! places of mounts and working directory in the container's file tree.

pub(super) mod guest;
pub(super) mod memory;
pub(super) mod share;
pub(super) mod targets;
pub(super) mod workdir;
