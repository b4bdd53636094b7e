//! The network of one pod: what CNI left in its namespace, led into the VM.
//!
//! - **Owns** a tap beside each link that CNI left, the tc redirects between the two, and the record of both.
//! - **Hears** [`Prepare`], [`Release`], [`Stats`].
//! - **Tells** nobody; each request carries its reply.
//! - **Ends when** its address is dropped. It holds no descriptor between commands: an open namespace would keep the
//!   links on the host alive after CNI has removed it.
//! - **Queue**: actix's default of 16. One parent speaks to it, a command at a time; Stats may come in between.
//!
//! The links keep their addresses: CNI and people look there. What arrives on such a link is taken at its ingress,
//! before the host's own IP stack sees it, and what the guest sends leaves by the link. The guest has the link's MAC
//! address, MTU, addresses, routes and permanent neighbours.
//!
//! Whatever a crash leaves is found by name, without any record of it: taps are called `tap<index>_bh` after the
//! link they belong to, and redirects have one priority and handle that nobody else uses.

mod actor;
mod describe;
mod messages;
mod prepare;
mod record;
mod session;
mod stats;
mod sysctls;
mod tc;

pub use actor::Network;
pub use describe::PodNetwork;
pub use messages::{Prepare, Prepared, PreparedLink, Release, Stats};
pub use prepare::{prepare, release, stats};
pub use record::{LinkRecord, NetworkRecord, plan};
pub use stats::LinkStats;

use std::io;
use std::path::PathBuf;

use crate::host::netns::NetnsError;
use crate::host::tap::TapError;

/// What can go wrong with a pod's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The pod's namespace cannot be used.
    #[error(transparent)]
    Netns(NetnsError),
    /// No netlink socket could be made in the namespace.
    #[error("cannot open a netlink socket in {}", netns.display())]
    OpenNetlink {
        /// The namespace.
        netns: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel would not list what is there.
    #[error("cannot list the {what} of the pod")]
    List {
        /// Links, addresses, routes, neighbours or filters.
        what: &'static str,
        /// What netlink said.
        source: rtnetlink::Error,
    },
    /// No tap could be made.
    #[error(transparent)]
    CreateTap(TapError),
    /// A tap could not be given its MTU or set up.
    #[error("cannot set {tap} up with an MTU of {mtu}")]
    SetUpTap {
        /// The tap.
        tap: String,
        /// Bytes.
        mtu: u32,
        /// What netlink said.
        source: rtnetlink::Error,
    },
    /// Traffic could not be led from one device to another.
    #[error(
        "cannot redirect the traffic of {from} to {to}; does the kernel have sch_ingress, cls_u32, act_mirred?"
    )]
    Redirect {
        /// Where it arrives.
        from: String,
        /// Where it should go.
        to: String,
        /// What netlink said.
        source: rtnetlink::Error,
    },
    /// A redirect could not be removed.
    #[error("cannot remove the redirect of {link}")]
    RemoveRedirect {
        /// The link.
        link: String,
        /// What netlink said.
        source: rtnetlink::Error,
    },
    /// A tap could not be removed.
    #[error("cannot remove {tap}")]
    RemoveTap {
        /// The tap.
        tap: String,
        /// What netlink said.
        source: rtnetlink::Error,
    },
}

#[cfg(test)]
mod tests;
