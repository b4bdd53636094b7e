//! Black-box tests: the built binaries under real containerd, seen as kubelet and an operator see them.
//!
//! `BULKHEAD_TEST_CONTROL=1` runs what does not depend on a VM against containerd's own runc instead: a test that
//! fails there is wrong itself.
//!
//! Tests in a module `reported` are about failures that users of other sandboxed runtimes have reported, and are named after
//! project and number (`kata_10969_…`). The first column is the number in the list that they were taken from:
//!
//! | N | reported as | what failed |
//! |---|---|---|
//! | 1 | kata-containers#10969 | a VM killed by the host's OOM killer left its pod terminating for days |
//! | 2 | kata-containers#5246 | containerd restarted before Create returned, and the pod stayed for ever |
//! | 3 | kata-containers#13453 | a read of figures kept every other call of the pod waiting |
//! | 4 | kata-containers#12748 | a crash loop grew accounting until the VM or the host gave up |
//! | 5 | kata-containers#11599 | directories and cgroups were left after removal |
//! | 6 | kata-containers#6455 | execs and crash loops piled up open files |
//! | 7 | kata-containers#2198 | one process of a pod outlived another that was killed |
//! | 8 | kata-containers#6129 | the pod's cgroup was smaller than the VM and its helpers need |
//! | 9 | kata-containers#1369 | OOMKilled was not said, or said of the wrong container |
//! | 10 | kata-containers#1111 | the guest's OOM killer took the agent |
//! | 11 | kata-containers#10843 | ports could not be forwarded into the VM |
//! | 12 | kata-containers#13640 | an exec without stdin was cut at the first flush, output was lost |
//! | 13 | kata-containers#2464 | the process of an exec lived on after its timeout |
//! | 14 | kata-containers#8150 | dials were lost in the first moments of a guest, and starts stalled, many at once above all |
//! | 17 | kata-containers#2438 | size limits of volumes were ignored |
//! | 18 | kata-containers#10487 | mounts of the node did not reach the container |
//! | 19 | kata-containers#12689 | a block volume was unplugged between init and app container |
//! | 20 | kata-containers#6339 | what a killed pod left in its network namespace made the next one fail |
//! | 22 | kata-containers#9902 | a resize said success and changed nothing |
//! | 23 | kata-runtime#1279 | the guest's clock was off by minutes |
//! | 24 | kuasar#49 | devices were forgotten over a restart, a broken sandbox held up the service, a first start failed |
//! | 25 | kuasar#85 | no cgroup v2, a forked containerd, root file systems shared, races of execs, a stop that failed twice |
//!
//! Not there: 15 (200 pods and more on a node need a machine of their own), 16 (memory that a guest frees does not go back
//! to the host) and 21 (VFIO devices, which are refused by name).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests: a step that fails panics"
)]

mod stage;

mod bad_calls;
mod bad_containers;
mod bad_peers;
mod bad_settings;
mod bad_tasks;
mod block_volumes;
mod containerd_lines;
mod containers;
mod crowds;
mod deaths;
mod first_hour;
mod floods;
mod harness;
mod host_memory;
mod host_sockets;
mod lifecycle;
mod limits;
mod metrics;
mod namespaces;
mod oom;
mod orphans;
mod pods;
mod port_forward;
mod profiles;
mod recovery;
mod resizing;
mod resources;
mod restarts;
mod security;
mod sharing;
mod shm;
mod stats;
mod stdio;
mod streams;
mod traces;
mod upgrades;
mod volumes;
