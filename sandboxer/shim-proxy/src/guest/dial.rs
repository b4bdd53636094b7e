//! Connections to ports of the guest.

use std::io;
use std::path::Path;
use std::time::Duration;

use bulkhead_protocol::hybrid_vsock::dial;
use tokio::net::UnixStream;

/// How long the guest may take to accept.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to a port of the guest behind the hybrid vsock socket `vsock`.
///
/// # Errors
/// As [`dial`]; `TimedOut` after 5 s.
pub(crate) async fn guest_port(vsock: &Path, port: u32) -> io::Result<UnixStream> {
    dial(vsock, port, TIMEOUT).await
}
