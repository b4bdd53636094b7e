//! The host's memory, as far as one pod is concerned.
//!
//! | | |
//! |---|---|
//! | Owns | the kernel's notifications about the memory of the pod's cgroup |
//! | Hears | [`Watch`] |
//! | Tells | [`Oom`], each time the host has killed something of the pod; [`Pressure`], at most once a minute |
//! | Ends when | its parent drops the address, at the latest with the cgroup |
//! | Queue | actix's default of 16: its parent speaks to it once or twice |
//!
//! Notifications are for the log and for Status; the reason of a pod's end is found where the end is noticed, by
//! [`oom_kills`]: the kernel counts a kill before it sends it, so the count is there when the process is not. It also is
//! there when no service ran in between.

mod actor;
mod messages;
mod tally;

pub use actor::Monitor;
pub use messages::{Oom, Pressure, Watch};
pub use tally::{OomKills, oom_kills};

#[cfg(test)]
mod tests;
