//! Sandboxes from Create to nothing left, with a fake VMM and a fake guest: quick, and every process, cgroup, mount, tap
//! and record is real. Needs root; says aloud what it skips for the want of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a rig that does not come up is a failed test"
)]

mod audit;
mod containers;
mod crowd;
mod deaths;
mod disks;
mod failures;
mod hangs;
mod interruptions;
mod life;
mod memory;
mod node;
mod predecessor;
mod profiles;
mod resources;
mod restarts;

/// The shim proxy of every test here.
#[tokio::test]
async fn be_a_shim_proxy_when_told_to() {
    vmm_actors::testing::serve_as_shim_when_told_to().await.unwrap();
}

/// The service whose sudden end `restarts` is about.
#[actix::test]
async fn be_a_service_when_told_to() {
    predecessor::serve_when_told_to().await;
}
