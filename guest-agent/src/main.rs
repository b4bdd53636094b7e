//! `bulkhead-agent`: PID 1 of the guest.
//!
//! It boots the guest, announces itself to the host once, and then runs OCI containers for two callers: the
//! sandboxer (setup, health, shutdown) and the pod's shim proxy (everything about containers).
//!
//! ```text
//!  kernel ─▶ boot ─▶ modules (vsock) ─▶ listen ─▶ announce ─▶ serve ──┬─▶ pod        hostname, network, share, clock
//!                                          │                          ├─▶ container  libcontainer in a helper process
//!                     modules (the rest) ──┘ in a thread              ├─▶ stdio      one vsock connection per stream
//!                                                                     └─▶ shutdown   end all containers, power off
//! ```
//!
//! | folder or file | what it is for |
//! |---|---|
//! | `server` | the life of the agent: boot, announce, serve |
//! | `boot/` | mounts and a root that pivot_root(2) accepts; the kernel command line; the log |
//! | `vsock/` | the listeners that only the host can reach, and the announcement |
//! | `service/` | what the host can ask for: the ttrpc service, the port for streams, the codes of errors |
//! | `pod/` | Setup: the pod's files, share, network and pid namespace |
//! | `container/` | containers and their processes, from create to delete |
//! | `cgroup/` | a container's cgroup v2: limits, statistics, OOM kills |
//! | `process/` | the reaper of PID 1, and the helpers in which libcontainer runs |
//! | `stdio/` | pipes and terminals of processes, and their streams to the host |
//! | `forward/` | TCP connections to the pod's loopback, and clients of unix sockets of the host |
//! | `hotplug/` | disks, CPUs and memory that the host adds while the VM runs |
//! | `kernel/` | interfaces of the kernel: clocks, sysctls, modules, mounts, power, system calls |
//!
//! PID 1 must not end: no function here panics on purpose. A panic in a task ends that task and is logged, and its
//! caller gets INTERNAL. libcontainer runs only in a short-lived, single-threaded helper process, this binary executed
//! again (see `process/helper/`), because it forks with raw clone calls and changes the state of its own process.

mod boot;
mod cgroup;
mod container;
mod forward;
mod hotplug;
mod kernel;
mod pod;
mod process;
mod server;
mod service;
mod stdio;
mod vsock;

use std::process::ExitCode;

fn main() -> ExitCode {
    server::run()
}
