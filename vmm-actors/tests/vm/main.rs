//! Real VMs through the actors and the product's own drivers, and the agent in them as it is spoken to over vsock.
//!
//! Needs QEMU, the peers (`BULKHEAD_PEERS`, else `.peers` of the workspace) and the guest (`BULKHEAD_GUEST_DIR`, else
//! `out` of the workspace); says aloud what it skips for the want of one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a rig that does not come up is a failed test"
)]

mod agent;
mod boot;
mod cloud_hypervisor;
mod guest;
mod rig;
