//! What the network actor hears.

use std::os::fd::OwnedFd;

use super::stats::LinkStats;
use super::{NetworkError, NetworkRecord, PodNetwork};
use crate::ask::Command;

/// Puts a tap beside every link of the namespace and leads traffic both ways. What an earlier attempt left is
/// replaced. Undoes itself on error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepare;

impl Command for Prepare {
    /// What the VM and its guest need.
    type Answer = Prepared;
    type Error = NetworkError;
}

/// Removes taps and redirects. As often as one likes; a namespace that is gone has been released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release;

impl Command for Release {
    /// Nothing of ours is left in the namespace, nor does it still have an open descriptor here.
    type Answer = ();
    type Error = NetworkError;
}

/// Reads the counters of the pod's links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats;

impl Command for Stats {
    /// One entry a link.
    type Answer = Vec<LinkStats>;
    type Error = NetworkError;
}

/// A pod's network, ready for its VM.
#[derive(Debug)]
pub struct Prepared {
    /// One network device each, in the order of their interface indices.
    pub links: Vec<PreparedLink>,
    /// What the agent sets up in the guest.
    pub description: PodNetwork,
    /// For the durable record.
    pub record: NetworkRecord,
}

/// One network device of the VM.
#[derive(Debug)]
pub struct PreparedLink {
    /// For the VMM: one queue, frames behind a `virtio_net_hdr`. The tap goes with its last copy.
    pub tap: OwnedFd,
    /// MAC address of the VM's device: that of the link, or of links with one and the same another that the guest
    /// replaces.
    pub mac: [u8; 6],
    /// Bytes.
    pub mtu: u32,
    /// What the guest calls the device: the same name as the link.
    pub guest_name: String,
}
