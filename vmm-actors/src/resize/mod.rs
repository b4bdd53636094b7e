//! How large a VM is, and how the limits of a pod that runs change.
//!
//! `sizing.rs` reckons, [`Allotment`] is what a pod is given, `change.rs` makes it another: futures that ask `Vm`, `Agent` and
//! `Cgroup`, and own nothing. Either all of the new limits hold afterwards, or none does and the answer says why.

mod allotment;
mod change;
mod error;
mod growth;
mod sizing;

pub use allotment::Allotment;
pub use error::{GrowthError, ResizeError};
pub use sizing::Basis;

pub(crate) use change::{Actors, Change, measured};
pub(crate) use sizing::{beyond_the_pod, size_of};
