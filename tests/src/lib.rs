//! Black-box harness: starts real containerd, the built sandboxer, QEMU and CNI in a private directory and in
//! namespaces of their own, and looks at them from outside as a kubelet and an operator do.
//!
//! Everything here serves tests, the demo and the bench: a step that cannot be done ends the run by a panic that
//! names the step. Only what a test wants to see failing is a `Result`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_errors_doc,
    reason = "a harness: a step that fails is a test that fails, and says so by panicking"
)]

pub mod audit;
pub mod conformance;
pub mod controller;
pub mod cri;
pub mod image;
pub mod logs;
pub mod loop_device;
pub mod node;
pub mod node_pool;
pub mod otlp;
pub mod peers;
pub mod port_forward;
pub mod processes;
pub mod remote_command;
pub mod report;
pub mod resize;
pub mod slots;
pub mod spdy;
pub mod steps;
pub mod task;
pub mod wait;
pub mod websocket;
