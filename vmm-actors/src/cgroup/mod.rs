//! The host cgroup of one pod: VMM, virtiofsd, helpers and shim proxy are in it, so its figures are the pod's.
//!
//! - **Owns** one directory below the pod's `cgroup_parent`, or beside that where the VM has no room below it, in every
//!   hierarchy of cgroup v1 or in that of v2; and its record, which does not change.
//! - **Hears** [`Create`], [`Update`], [`Stats`], [`Delete`].
//! - **Tells** nobody; each request carries its reply.
//! - **Ends when** its address is dropped. The directory belongs to the record: only Delete removes it.
//! - **Queue**: actix's default of 16. One parent speaks to it; Stats may come in between.
//!
//! The parent is kubelet's and is never changed, except that on cgroup v2 its controllers are passed on to children.
//! Every path is decided by [`plan`] and written down before anything is made, so that a successor can find and end
//! whatever runs in it, known or not.

mod actor;
mod layout;
mod limits;
mod messages;
mod orphans;
mod record;
mod room;
mod tree;

pub use actor::Cgroup;
pub use limits::Limits;
pub use messages::{Create, Delete, PodStats, Stats, Update};
pub use orphans::find_by_name;
pub use record::{CgroupRecord, plan, plan_outside};
pub use room::{Bound, bounds, check_room};
pub use tree::{create, delete, find_pids, place, stats, update};

use std::io;
use std::path::PathBuf;

/// What can go wrong with a pod's cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup file system is there.
    #[error("no cgroup file system is mounted below /sys/fs/cgroup")]
    NotMounted,
    /// The parent's name could leave the cgroup tree, or is no systemd slice though it looks like one.
    #[error("{parent:?} is no cgroup path: neither absolute without '..' nor the name of a slice")]
    Parent {
        /// As the pod or the settings name it.
        parent: String,
    },
    /// A directory could not be made.
    #[error("cannot create cgroup {}", path.display())]
    CreateDirectory {
        /// The directory.
        path: PathBuf,
        /// What mkdir(2) said.
        source: io::Error,
    },
    /// A new cpuset has to be given its parent's CPUs and memory nodes, and could not.
    #[error("cannot initialise {}", path.display())]
    InheritCpuset {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A limit could not be set.
    #[error("cannot set {what} of cgroup {}", path.display())]
    Limit {
        /// Which limit, with its value.
        what: String,
        /// The cgroup.
        path: PathBuf,
        /// What the kernel said.
        source: cgroups_rs::fs::error::Error,
    },
    /// The cgroups above do not allow what the VM needs.
    #[error(
        "cgroup {} allows the pod {allowed_mib} MiB of memory, and its VM needs {needed_mib} MiB: guest, and VMM and \
         helpers beside it; let overhead.podFixed.memory of the pod's RuntimeClass be {missing_mib} MiB more, or \
         lower [vm] memory_mib",
        path.display()
    )]
    TooSmall {
        /// The cgroup with the smallest limit.
        path: PathBuf,
        /// Its limit, rounded down.
        allowed_mib: u64,
        /// What the VM needs when its guest uses all it has, rounded up.
        needed_mib: u64,
        /// The difference.
        missing_mib: u64,
    },
    /// A raw cgroup file that cannot be written for a pod.
    #[error("the pod's unified resource {key:?} cannot be set: {reason}")]
    Unified {
        /// As the pod names it.
        key: String,
        /// Why not.
        reason: &'static str,
    },
    /// The kernel does not take a value.
    #[error("cannot write {value:?} to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the pod asks for.
        value: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A process could not be put into the cgroup.
    #[error("cannot put process {pid} into cgroup {}", path.display())]
    PlaceProcess {
        /// The process.
        pid: u32,
        /// The cgroup.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of the cgroup could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A process in the cgroup could not be killed.
    #[error("cannot kill process {pid} of cgroup {}", path.display())]
    KillProcess {
        /// The process.
        pid: u32,
        /// The cgroup.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A directory could not be removed.
    #[error("cannot remove cgroup {}", path.display())]
    RemoveDirectory {
        /// The directory.
        path: PathBuf,
        /// What rmdir(2) said.
        source: io::Error,
    },
    /// Killed processes do not go: they hang in the kernel.
    #[error("processes {pids:?} of cgroup {} do not go", path.display())]
    StillBusy {
        /// The cgroup.
        path: PathBuf,
        /// What is in it.
        pids: Vec<u32>,
    },
    /// The work was cut off by a panic or the end of the runtime.
    #[error("the work on the cgroup was cut off")]
    CutOff,
}

impl CgroupError {
    /// Whether the pod asks for what this host does not give it, so that a repeat cannot help.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::TooSmall { .. } | Self::Unified { .. } | Self::Parent { .. } => true,
            Self::NotMounted
            | Self::CreateDirectory { .. }
            | Self::InheritCpuset { .. }
            | Self::Limit { .. }
            | Self::Write { .. }
            | Self::PlaceProcess { .. }
            | Self::Read { .. }
            | Self::KillProcess { .. }
            | Self::RemoveDirectory { .. }
            | Self::StillBusy { .. }
            | Self::CutOff => false,
        }
    }
}

#[cfg(test)]
mod tests;
