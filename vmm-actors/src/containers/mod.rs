//! What the host makes for the containers of one pod before its guest runs them.
//!
//! - **Owns**: which containers there are, from Prepare to Release, and which block devices of the host are attached to the
//!   VM for them; the part of the sandbox's record that says so ([`ContainersRecord`]).
//! - **Hears**: [`Prepare`], [`Release`], [`Started`], [`DetachUnused`], [`Close`], [`Forget`]; the requests reach it through
//!   its parent, which knows whether the pod runs.
//! - **Tells**: `Mounts` to mount and unmount, `Vm` to attach and detach; its parent each new version of its part of the
//!   record, through [`RecordHandle`](crate::record_part::RecordHandle).
//! - **Ends when**: its parent drops the address. What is mounted and attached belongs to the record.
//! - **Queue**: 256, as its parent's: no handler waits.
//!
//! A container is recorded before anything is made for it: first its disks, then its mounts. What is to become of a
//! container when a request comes is decided by the table in `table.rs`.

mod actor;
mod attachments;
pub mod disks;
mod error;
mod hotplug;
mod messages;
mod record;
mod steps;
mod table;

pub use actor::{Containers, PodContext};
pub use error::{AttachError, ContainerError};
pub use messages::{
    Close, ContainerRequest, DetachUnused, Forget, Prepare, PreparedContainer, Release, RunningPod, Started,
};
pub use record::{ContainerRecord, ContainersRecord};
