//! vsock, the one way between host and guest: listeners that only the host can reach, and the announcement that the guest
//! is up.

pub(crate) mod announce;
pub(crate) mod listen;
