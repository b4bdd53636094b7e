//! What the host can ask for: the ttrpc service, the port for streams, and the codes of errors.

mod rpc;
mod status;
pub(crate) mod streams;

pub(crate) use rpc::AgentService;

/// How far the boot has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Readiness {
    /// The guest has announced itself.
    Announced,
    /// Mounts and modules for Setup and for containers are there.
    Setup,
}
