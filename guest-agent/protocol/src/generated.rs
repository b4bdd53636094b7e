//! Messages and services generated from `proto/` by the build script.
#![allow(missing_docs, reason = "the .proto files document every message and field")]
#![allow(missing_debug_implementations, unreachable_pub, reason = "generated code")]
#![allow(clippy::all, clippy::restriction, clippy::pedantic, reason = "generated code")]

include!(concat!(env!("OUT_DIR"), "/mod.rs"));
