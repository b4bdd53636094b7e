//! The shim proxy as a process of its own, between a containerd, a sandboxer and a guest agent that the tests play.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so"
)]

mod command_line;
mod containers;
mod execs;
mod fake_agent;
mod fake_containerd;
mod fake_sandboxer;
mod faults;
mod rig;
mod size;
mod sockets;
mod stdio;
