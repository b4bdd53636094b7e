//! What the cgroup actor hears.

use actix::Message;

use super::{CgroupError, CgroupRecord, Limits};
use crate::ask::Reply;
use crate::host::process::CgroupProcs;

/// Makes the pod's cgroup and sets its limits. Finding it made is fine. Undoes itself on error.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Create {
    /// From [`plan`](super::plan), already in the durable record.
    pub record: CgroupRecord,
    /// What the pod may use.
    pub limits: Limits,
    /// What its VM needs, in bytes: the cgroups above have to allow it.
    pub needed_bytes: u64,
    /// For every process of the pod: they join it before they run.
    pub reply: Reply<CgroupProcs, CgroupError>,
}

/// Puts a process that runs already into the pod's cgroup.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Place {
    /// From [`plan`](super::plan).
    pub record: CgroupRecord,
    /// With all its threads, without its children.
    pub pid: u32,
    /// It is in every hierarchy.
    pub reply: Reply<(), CgroupError>,
}

/// Sets other limits.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Update {
    /// From [`plan`](super::plan).
    pub record: CgroupRecord,
    /// The full new set; what is not in it stays as it is.
    pub limits: Limits,
    /// What the VM needs, in bytes: the cgroups above have to allow it.
    pub needed_bytes: u64,
    /// What the limit of the cgroup right above becomes, in bytes, where it has one.
    pub planned_bytes: Option<u64>,
    /// They hold.
    pub reply: Reply<(), CgroupError>,
}

/// Reads what the pod uses.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Stats {
    /// From [`plan`](super::plan).
    pub record: CgroupRecord,
    /// Figures of this moment.
    pub reply: Reply<PodStats, CgroupError>,
}

/// Kills whatever is still in the pod's cgroup and removes it, with empty parents that are ours. As often as one
/// likes. Gives up after 10 s.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Delete {
    /// From [`plan`](super::plan).
    pub record: CgroupRecord,
    /// Nothing of it is left.
    pub reply: Reply<(), CgroupError>,
}

/// What a pod uses of the host. A figure whose controller is missing is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodStats {
    /// CPU time since the cgroup was made, in nanoseconds.
    pub cpu_usage_nanos: u64,
    /// Bytes, page cache included.
    pub memory_usage: u64,
    /// Bytes without the page cache that is easily given back (`inactive_file`): what kubelet calls working set.
    pub memory_working_set: u64,
    /// The limit in bytes; `u64::MAX` for none.
    pub memory_limit: u64,
    /// Page faults that were served from memory.
    pub minor_faults: u64,
    /// Page faults that had to read.
    pub major_faults: u64,
    /// Processes and threads.
    pub pids: u64,
}
