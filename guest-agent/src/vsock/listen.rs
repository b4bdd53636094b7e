//! vsock listeners that hear the host and nobody else.
//!
//! vsock is not namespaced: a container may dial these ports too (through a loopback transport, or the guest's own
//! CID). Such a peer has another CID than the host's and is dropped before a byte of it is read.

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

/// The connections that come from the host. Never ends; an accept that failed is logged and the next one awaited.
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
                    // Out of descriptors or memory: give others the time to free some.
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
    fn only_cid_2_is_heard() {
        assert!(is_host(VsockAddr::new(2, 40_000)));
        for cid in [0, 1, 3, 4, VMADDR_CID_ANY] {
            assert!(!is_host(VsockAddr::new(cid, 40_000)), "{cid}");
        }
    }
}
