//! One guard for each kind of kernel object, and the only place where `unsafe` may live.
//!
//! A guard is armed while its sandbox is being made: dropping it releases the object. Once the sandbox runs, the
//! guard is disarmed and the object belongs to the durable record; each kind can then be released by name, as often
//! as one likes.

pub mod block;
pub mod cgroup_events;
pub mod dir;
pub mod mount;
pub mod mount_ns;
pub mod mountinfo;
pub mod netns;
mod overlay;
pub mod process;
pub mod socket;
pub mod tap;
pub mod tsc;
