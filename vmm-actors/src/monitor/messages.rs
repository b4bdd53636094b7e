//! What the monitor hears and tells.

use actix::Message;

use super::OomKills;
use crate::cgroup::CgroupRecord;

/// Listens to what the kernel says about this cgroup, which is there. Another Watch replaces it.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Watch {
    /// The pod's cgroup.
    pub record: CgroupRecord,
}

/// Listens no more.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Unwatch;

/// The host's OOM killer has killed a process of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Oom(pub OomKills);

/// The pod's processes on the host wait for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Pressure;
