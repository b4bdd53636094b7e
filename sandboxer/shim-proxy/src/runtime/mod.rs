//! What everything else runs on: message passing, work that outlives its caller, times, the log, traces, sockets that tell
//! when they close.

pub(crate) mod backoff;
pub(crate) mod clock;
pub(crate) mod logging;
pub(crate) mod owner;
pub(crate) mod shared_task;
pub(crate) mod socket;
pub(crate) mod trace;
