//! The guest: the session with its agent, connections to its ports, the process of its VMM, and the bounds of what its
//! answers may hold.

pub(crate) mod agent;
pub(crate) mod answers;
pub(crate) mod dial;
pub(crate) mod vmm;
