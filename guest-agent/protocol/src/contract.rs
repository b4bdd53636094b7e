//! Names and numbers on which two of the programs must agree beside the messages: ports, paths, descriptors, exit codes.
//! They are written down here once. Changing one breaks pods that run across an upgrade.

/// vsock port on the host (CID 2) that the guest dials once, to announce itself. With hybrid vsock the listener is the
/// unix socket `<vsock socket>_1023`.
pub const ANNOUNCE_PORT: u32 = 1023;
/// vsock port of the guest on which the agent serves ttrpc.
pub const AGENT_PORT: u32 = 1024;
/// vsock port of the guest that takes one connection for each stream.
pub const STREAM_PORT: u32 = 1025;

/// Feature of an agent that gives containers the [`Disk`](crate::agent::Disk)s it is told of.
pub const FEATURE_DISKS: &str = "disks";
/// Feature of an agent that makes the [`MemoryVolume`](crate::agent::MemoryVolume)s it is told of.
pub const FEATURE_MEMORY_VOLUMES: &str = "memory-volumes";
/// Feature of an agent that takes CPUs and memory into use that are added while its VM runs.
pub const FEATURE_RESIZE: &str = "growth";

/// virtiofs tag of the pod's share.
pub const SHARE_TAG: &str = "bulkhead";
/// Guest path at which the pod's share is mounted.
pub const SHARE_DIR: &str = "/run/bulkhead/share";
/// Directory of the share in which the host mounts volumes, each once for all containers.
pub const SHARE_VOLUMES: &str = ".volumes";
/// Guest path below which the agent listens for the host's unix sockets: `<container id>/<number>`.
pub const SOCKET_DIR: &str = "/run/bulkhead/sockets";
/// Guest path below which the agent binds the parts of its volumes in memory that containers mount: `<container
/// id>/<number>`.
pub const MEMORY_DIR: &str = "/run/bulkhead/memory";
/// Guest path of the pid namespace that the pod's containers share. A container joins it by this path in its spec.
pub const PID_NAMESPACE: &str = "/run/bulkhead/ns/pid";
/// Parent of every container's cgroup, from the root of the guest's cgroup hierarchy.
pub const GUEST_CGROUPS: &str = "/bulkhead";
/// Smallest oom_score_adj (proc(5)) of a container's process. The agent has -1000, so that the guest's OOM killer reaches
/// every container before it.
pub const MIN_OOM_SCORE_ADJ: i32 = -999;

/// Name of the sandboxer's socket for shim proxies, in its runtime directory.
pub const CONTROL_SOCKET: &str = "control.sock";
/// Name of the shim proxy's Task API socket, in the pod's directory.
pub const TASK_SOCKET: &str = "task.sock";
/// Name of the shim proxy's socket for the sandboxer, in the pod's directory.
pub const SHIM_SOCKET: &str = "shim.sock";
/// Name of the VM's hybrid vsock socket ([`crate::hybrid_vsock`]), in the VM's directory.
pub const VSOCK_SOCKET: &str = "vsock.sock";
/// Descriptor under which a shim proxy inherits the listener of [`TASK_SOCKET`].
pub const TASK_SOCKET_FD: i32 = 3;
/// Descriptor under which a shim proxy inherits the listener of [`SHIM_SOCKET`].
pub const SHIM_SOCKET_FD: i32 = 4;

/// SIGKILL (signal(7)), as the agent's Signal and containerd's Kill carry it.
pub const SIGKILL: u32 = 9;
/// Exit status of a process that was killed, by SIGKILL or with its VM: 128 + 9, as a shell says it.
pub const KILLED_STATUS: u32 = 128 + SIGKILL;
