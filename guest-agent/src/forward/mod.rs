//! Connections that are forwarded between host and guest: TCP connections of the host to the pod's loopback, and
//! connections of containers to unix sockets of the host.

pub(crate) mod host_sockets;
pub(crate) mod tcp;
