//! Names and numbers on which the programs of the host agree: sockets, inherited descriptors, exit codes.

/// Task API for containerd, in the pod's directory; the shim proxy serves it.
pub const TASK_SOCKET: &str = "task.sock";
/// Calls of the sandboxer to the shim proxy, in the pod's directory.
pub const SHIM_SOCKET: &str = "shim.sock";
/// Hybrid vsock of the VM ([`crate::hybrid_vsock`]), in the pod's directory.
pub const VSOCK_SOCKET: &str = "vsock.sock";
/// Calls of shim proxies to the sandboxer, in the runtime directory.
pub const CONTROL_SOCKET: &str = "control.sock";

/// Descriptor by which the shim proxy inherits the listening [`TASK_SOCKET`].
pub const TASK_FD: i32 = 3;
/// Descriptor by which the shim proxy inherits the listening [`SHIM_SOCKET`].
pub const SHIM_FD: i32 = 4;

/// SIGKILL, signal(7), as the agent's Signal and containerd's Kill carry it.
pub const SIGKILL: u32 = 9;
/// Exit code of a process that ended with its VM or by SIGKILL, as a shell says it: 128 + [`SIGKILL`].
pub const EXIT_KILLED: u32 = 128 + SIGKILL;
