//! vsock listeners that accept connections of the host only.
//!
//! vsock has no namespaces: a container can connect to these ports, too (through a loopback transport, or the guest's
//! own CID). Such a peer has another CID than the host, and its connection is dropped before anything is read from it.

use std::io;

use futures::{Stream, stream};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// A port could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("listen on vsock port {port}")]
pub(crate) struct ListenError {
    port: u32,
    source: io::Error,
}

/// Binds a port of the guest.
pub(crate) fn bind(port: u32) -> Result<VsockListener, ListenError> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).map_err(|source| ListenError { port, source })
}

/// The connections of the host. The stream never ends; a failed accept is logged.
pub(crate) fn from_host(listener: VsockListener) -> impl Stream<Item = io::Result<VsockStream>> + Send {
    stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) if is_host(peer) => return Some((Ok(stream), listener)),
                Ok((_, peer)) => {
                    tracing::warn!(cid = peer.cid(), "refused a connection that is not the host's")
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    // Out of descriptors or memory: others may free some meanwhile.
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    })
}

fn is_host(peer: VsockAddr) -> bool {
    peer.cid() == VMADDR_CID_HOST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hosts_cid_is_accepted() {
        assert!(is_host(VsockAddr::new(2, 40_000)));
        for cid in [0, 1, 3, 4, VMADDR_CID_ANY] {
            assert!(!is_host(VsockAddr::new(cid, 40_000)), "{cid}");
        }
    }
}
