//! The life of a sandbox: the table that decides, the judgement of what a predecessor left, the way up and the way down.

pub(super) mod bring_up;
pub(super) mod release;
pub mod state;
pub(super) mod timeline;
pub mod verdict;
