//! Connections to ports of the guest, with the deadline of this process.

use std::io;
use std::path::Path;
use std::time::Duration;

use bulkhead_protocol::hybrid_vsock::dial;
use tokio::net::UnixStream;

/// How long the guest may take to accept.
const DEADLINE: Duration = Duration::from_secs(5);

/// Connects to a port of the guest.
///
/// # Errors
/// As [`dial`], within 5 s.
pub(crate) async fn guest_port(vsock: &Path, port: u32) -> io::Result<UnixStream> {
    dial(vsock, port, DEADLINE).await
}
