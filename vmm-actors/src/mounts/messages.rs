//! What the mounts actor hears.

use std::path::PathBuf;

use super::error::MountsError;
use super::memory::MemoryVolume;
use super::request::{BindMount, RootfsMount};
use super::sockets::HostSocket;
use crate::ask::Command;
use crate::host::process::ProcessIdentity;
use crate::id::ContainerId;

/// Makes the share, before its file server starts. Finding it made is fine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open;

impl Command for Open {
    /// `shared/` may be exported.
    type Answer = ();
    type Error = MountsError;
}

/// Mounts a container's root file system and volumes into the share. Undoes itself on error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepare {
    /// Whose they are.
    pub container: ContainerId,
    /// As the snapshotter gives them, mounted one after the other; at least one.
    pub rootfs: Vec<RootfsMount>,
    /// Volumes.
    pub volumes: Volumes,
    /// Who serves the share, if somebody does already.
    pub server: Option<FileServer>,
}

impl Command for Prepare {
    /// Where the guest finds them.
    type Answer = PreparedMounts;
    type Error = MountsError;
}

/// Unmounts everything of a container. Call it after the guest has let go. As often as one likes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Whose.
    pub container: ContainerId,
}

impl Command for Release {
    /// Nothing of it is left in the share.
    type Answer = ();
    type Error = MountsError;
}

/// Unmounts everything, the share included. Call it after the file server has ended. As often as one likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close;

impl Command for Close {
    /// Nothing is mounted below the pod's directory.
    type Answer = ();
    type Error = MountsError;
}

/// The volumes of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Volumes {
    /// All of them.
    pub binds: Vec<BindMount>,
    /// UID of the pod, if its volumes in memory are the guest's to make.
    pub memory_of: Option<String>,
}

/// The process that exports the share, in a mount namespace of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileServer {
    /// Which process.
    pub process: ProcessIdentity,
    /// Where the share is for it.
    pub share: PathBuf,
}

/// Where the guest finds a container's mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedMounts {
    /// Absolute path in the guest.
    pub rootfs: PathBuf,
    /// The same for each volume, in the order in which they were given.
    pub binds: Vec<PathBuf>,
    /// Those of the volumes that are unix sockets: nothing is mounted for them.
    pub sockets: Vec<HostSocket>,
    /// Those that are in memory: nothing is mounted for them either.
    pub memory: Vec<MemoryVolume>,
    /// Numbers of those volumes that the container may only read while the share has them writable, for another.
    pub read_only_in_guest: Vec<u32>,
}
