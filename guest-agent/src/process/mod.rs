//! Processes of the guest: the reaper of PID 1, and the helpers in which libcontainer creates containers and execs.

pub(crate) mod helper;
pub(crate) mod reaper;
