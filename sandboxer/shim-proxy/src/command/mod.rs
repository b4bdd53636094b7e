//! The command line: `serve` for the sandboxer, and containerd's shim protocol (`delete`, `start`, `-info`, `-v`).

pub(crate) mod argv;
pub(crate) mod delete;
pub(crate) mod info;
