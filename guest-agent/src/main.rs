//! `bulkhead-agent`: PID 1 of the guest.
//!
//! It boots the guest, announces itself to the host once, and then runs OCI containers for two callers: the
//! sandboxer (setup, health, shutdown) and the pod's shim proxy (everything about containers).
//!
//! ```text
//!  kernel ─▶ boot ─▶ modules (vsock) ─▶ listen ─▶ announce ─▶ serve ──┬─▶ pod        hostname, network, share, clock
//!                                          │                          ├─▶ container  libcontainer in a child of ours
//!                     modules (the rest) ──┘ in a thread              ├─▶ stdio      one vsock connection per stream
//!                                                                     └─▶ shutdown   end everything, power off
//! ```
//!
//! | file | concept |
//! |---|---|
//! | `boot` | mounts and a root that pivot_root(2) accepts |
//! | `cmdline`, `log` | what the kernel command line says; the console log |
//! | `modules` | kernel modules, in the stages in which they are needed |
//! | `listen`, `announce` | vsock: who may speak to us, and how we say that we are there |
//! | `service`, `status` | the ttrpc service; which error is which code |
//! | `pod`, `network`, `clock`, `sysctl` | Setup |
//! | `container/` | containers, their processes, the reaper of PID 1, cgroup v2 |
//! | `stdio/`, `pty` | pipes and terminals to streams |
//! | `growth` | CPUs and memory that are added while the VM runs |
//! | `forward` | TCP connections of the host to the pod's loopback |
//! | `host_sockets` | unix sockets of the host that containers mount |
//! | `shutdown` | the end of the VM |
//!
//! PID 1 must not end: no function here panics on purpose, a panic in a task ends that task and is logged, and the
//! answer to its caller is INTERNAL. libcontainer only ever runs in a short-lived single-threaded child, this
//! binary executed again (see `container/child.rs`): it forks with raw clone calls and changes what it finds.

mod announce;
mod boot;
mod cgroup;
mod clock;
mod cmdline;
mod container;
mod forward;
mod growth;
mod helper;
mod host_sockets;
mod listen;
mod log;
mod modules;
mod network;
mod pidns;
mod pod;
mod pty;
mod reaper;
mod server;
mod service;
mod shutdown;
mod status;
mod stdio;
mod sys;
mod sysctl;

use std::process::ExitCode;

fn main() -> ExitCode {
    server::run()
}
