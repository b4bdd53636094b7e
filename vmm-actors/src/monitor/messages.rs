//! What the monitor hears and tells.

use actix::Message;

use super::OomKills;

/// Listens to what the kernel says about the pod's cgroup, which is there. A repeat replaces the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Watch;

/// The host's OOM killer has killed a process of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Oom(pub OomKills);

/// The pod's processes on the host wait for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Pressure;
