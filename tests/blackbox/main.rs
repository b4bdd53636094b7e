//! Black-box tests: the built binaries under real containerd, seen as kubelet and an operator see them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests: a step that fails panics"
)]

mod harness;
