//! What the cgroup actor hears.

use super::{CgroupError, Limits};
use crate::ask::Command;
use crate::host::process::CgroupProcs;

/// Makes the pod's cgroup and sets its limits. Finding it made is fine. Undoes itself on error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// What the pod may use.
    pub limits: Limits,
    /// What its VM needs, in bytes: the cgroups above have to allow it.
    pub needed_bytes: u64,
}

impl Command for Create {
    /// For every process of the pod: they join it before they run.
    type Answer = CgroupProcs;
    type Error = CgroupError;
}

/// Sets other limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// The full new set; what is not in it stays as it is.
    pub limits: Limits,
    /// What the VM needs, in bytes: the cgroups above have to allow it.
    pub needed_bytes: u64,
    /// What the limit of the cgroup right above becomes, in bytes, where it has one.
    pub planned_bytes: Option<u64>,
}

impl Command for Update {
    /// They hold.
    type Answer = ();
    type Error = CgroupError;
}

/// Reads what the pod uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats;

impl Command for Stats {
    /// Figures of this moment.
    type Answer = PodStats;
    type Error = CgroupError;
}

/// Kills whatever is still in the pod's cgroup and removes it, with empty parents that are ours. As often as one
/// likes. Gives up after 10 s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delete;

impl Command for Delete {
    /// Nothing of it is left.
    type Answer = ();
    type Error = CgroupError;
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
