//! Connections that are carried between host and guest: TCP connections from the host to the pod's loopback, and clients in
//! the guest of unix sockets of the host.

pub(crate) mod host_sockets;
pub(crate) mod tcp;
