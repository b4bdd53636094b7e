//! containerd's Sandbox Controller API (`containerd.services.sandbox.v1.Controller`, containerd 2.x) as a Rust trait
//! and a gRPC server around it.
//!
//! Implement [`Sandboxer`], bind a unix socket, and hand both to [`serve`]. What the server takes off its
//! implementation, because containerd's use of the API needs it:
//!
//! - Ids are checked before the implementation sees them: they become file names.
//! - Calls that change something run to their end even if the client goes away; a client that leaves Create or Start
//!   is reported by [`Sandboxer::abandoned`], because containerd calls nothing else after a failed or cancelled one.
//! - A panic in the implementation is an answer (`INTERNAL`), not a broken stream.
//! - Wait ends with an exit, `NOT_FOUND` or `UNAVAILABLE`: containerd repeats it on `UNAVAILABLE` only and takes
//!   anything else for the end of the sandbox.
//! - Each call is served within a `tracing` span that the caller of [`serve`] makes ([`SpanOf`]), with its outcome in it.
//! - When the service ends, pending Waits are answered `UNAVAILABLE` first.
//!
//! The messages are those of `containerd-client` 0.9 (containerd API 1.8). containerd 2.3 added one field that they
//! lack: `ControllerStartResponse.spec` (7), used for NRI only.

mod detached;
mod failure;
mod generated;
mod id;
mod model;
mod sandboxer;
mod serve;
mod service;
#[cfg(test)]
mod tests;
mod time;
mod traced;

pub use failure::{Code, Failure};
pub use id::{InvalidId, MAX_ID_LENGTH, check_id};
pub use model::{Create, Exit, Metric, Platform, Started, State, Status, Step, Update};
pub use prost_types::Any;
pub use sandboxer::Sandboxer;
pub use serve::{ServeError, incoming, serve};
pub use traced::SpanOf;
