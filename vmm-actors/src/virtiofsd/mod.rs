//! The file server of one pod's share.
//!
//! | | |
//! |---|---|
//! | Owns | the `virtiofsd` process, with the socket that its VMM connects to |
//! | Hears | [`Spawn`], [`Keep`], [`Kill`], [`Observe`] |
//! | Tells | [`VirtiofsdExited`], once, to its parent |
//! | Ends when | its parent drops the address; it answers for an ended process until then |
//! | Queue | 16: one parent that has at most a few commands under way |
//!
//! The socket listens before the process runs, so nobody waits for it. The daemon serves one VMM and ends when that
//! disconnects. Until [`Keep`] the end of this actor is the end of the process.

mod actor;
mod messages;

pub use actor::Virtiofsd;
pub use messages::{
    EndCause, Keep, Kill, Observe, Spawn, VirtiofsdError, VirtiofsdExited, VirtiofsdRecord, VirtiofsdView,
};
