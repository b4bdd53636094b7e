//! Black-box tests: the built binaries under real containerd, seen as kubelet and an operator see them.
//!
//! `BULKHEAD_TEST_CONTROL=1` runs what does not depend on a VM against containerd's own runc instead: a test that
//! fails there is wrong itself.
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
mod containers;
mod deaths;
mod floods;
mod harness;
mod host_memory;
mod lifecycle;
mod namespaces;
mod old_containerd;
mod oom;
mod orphans;
mod pods;
mod port_forward;
mod resources;
mod restarts;
mod security;
mod sharing;
mod shm;
mod stats;
mod stdio;
mod streams;
mod volumes;
