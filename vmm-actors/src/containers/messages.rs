//! What the containers actor hears.

use std::path::PathBuf;

use actix::Message;

use super::error::ContainerError;
use crate::ask::Command;
use crate::id::ContainerId;
use crate::mounts::{FileServer, HostSocket, RootfsMount};
use crate::vm::Ability;

/// Make what a container needs; answered with what the guest must know. A repeat joins the first or gets its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepare {
    /// What.
    pub request: ContainerRequest,
    /// For which pod.
    pub pod: RunningPod,
}

impl Command for Prepare {
    type Answer = PreparedContainer;
    type Error = ContainerError;
}

/// A container as the Task API's Create describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRequest {
    /// The container.
    pub id: ContainerId,
    /// containerd's bundle, with `config.json`.
    pub bundle: PathBuf,
    /// The snapshotter's mounts of the root file system, outermost last.
    pub rootfs: Vec<RootfsMount>,
    /// Stdin, stdout, stderr as containerd named them.
    pub stdio: [String; 3],
}

/// What a pod that runs has for its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningPod {
    /// Who serves the share.
    pub server: Option<FileServer>,
    /// UID of the pod, if its volumes in memory are the guest's to make.
    pub memory_of: Option<String>,
    /// Whether the VM takes disks while it runs.
    pub disk_hotplug: Ability,
}

/// What the guest needs to run a container.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedContainer {
    /// OCI runtime spec as JSON, fit for the guest.
    pub spec: Vec<u8>,
    /// Root file system as the guest sees it.
    pub rootfs: String,
    /// Unix sockets of the host that the container has.
    pub sockets: Vec<HostSocket>,
    /// Volumes in memory that the container has.
    pub memory: Vec<bulkhead_protocol::agent::MemoryVolume>,
    /// Block devices that were attached to the VM for it.
    pub disks: Vec<bulkhead_protocol::agent::Disk>,
}

/// Undo [`Prepare`]. Idempotent; an unknown container is released already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The container.
    pub id: ContainerId,
}

impl Command for Release {
    /// Nothing of it is left on the host, nor in the VM.
    type Answer = ();
    type Error = ContainerError;
}

/// The container's init runs as this pid in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Started {
    /// The container.
    pub id: ContainerId,
    /// Its pid in the guest.
    pub guest_pid: u32,
}

/// Detach the disks that no container has: a previous process may not have got to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct DetachUnused;

/// The sandbox begins to end: nothing new is attached or mounted from now on. What is under way goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Close;

/// The sandbox was released, and everything of its containers with it. Who still waits hears that it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Forget;
