//! The port for streams: each connection goes to the process, port or socket that its header names.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::agent::StreamHeader;
use bulkhead_protocol::agent::stream_header::Kind;
use bulkhead_protocol::frame;
use futures::StreamExt;
use tokio_vsock::{VsockListener, VsockStream};

use crate::forward::host_sockets::HostSockets;
use crate::forward::tcp;
use crate::stdio::{StreamKey, Streams};
use crate::vsock::listen;

/// How long a connection may take to send its header.
const HEADER_LIMIT: Duration = Duration::from_secs(10);

/// Accepts stream connections for as long as the runtime lives.
pub(crate) async fn accept(listener: VsockListener, registry: Arc<Streams>, sockets: Arc<HostSockets>) {
    let mut connections = std::pin::pin!(listen::from_host(listener));
    while let Some(connection) = connections.next().await {
        match connection {
            Ok(connection) => {
                drop(tokio::spawn(dispatch(connection, Arc::clone(&registry), Arc::clone(&sockets))))
            }
            Err(error) => tracing::warn!(%error, "a stream connection failed"),
        }
    }
}

async fn dispatch(mut connection: VsockStream, registry: Arc<Streams>, sockets: Arc<HostSockets>) {
    let header =
        tokio::time::timeout(HEADER_LIMIT, frame::read_message::<_, StreamHeader>(&mut connection)).await;
    match header {
        Ok(Ok(header)) => match header.kind.enum_value() {
            Ok(Kind::FORWARD) => tcp::serve(connection, header.port).await,
            Ok(Kind::HOST_SOCKET) => sockets.add_stream(header.container_id, header.socket, connection),
            Ok(kind @ (Kind::STDIN | Kind::STDOUT | Kind::STDERR)) => {
                let key = StreamKey { container: header.container_id, exec: header.exec_id, kind };
                tracing::trace!(%key, "connected");
                registry.offer(key, connection);
            }
            Err(kind) => tracing::warn!(kind, "a stream connection is of an unknown kind"),
        },
        Ok(Err(error)) => tracing::warn!(%error, "a stream connection has no valid header"),
        Err(_) => tracing::warn!("a stream connection sent no header in time"),
    }
}
