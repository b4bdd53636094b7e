//! Processes of the guest: PID 1's reaper, and the helpers in which libcontainer makes containers and execs.

pub(crate) mod helper;
pub(crate) mod reaper;
