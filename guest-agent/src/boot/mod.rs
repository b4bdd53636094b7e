//! From the kernel's first instruction for the agent until it can serve: the mounts that it needs, what the kernel command
//! line says, the log on the console.

pub(crate) mod cmdline;
pub(crate) mod log;
pub(crate) mod mounts;
