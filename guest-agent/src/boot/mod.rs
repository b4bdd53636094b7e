//! What the agent needs before it can serve: mounts, the kernel command line, and the log on the console.

pub(crate) mod cmdline;
pub(crate) mod log;
pub(crate) mod mounts;
