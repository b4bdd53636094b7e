//! The guest's end of a stream: a vsock connection, and how to get another one when it breaks.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::agent::StreamHeader;
use bulkhead_protocol::agent::stream_header::Kind;
use bulkhead_protocol::{STREAM_PORT, frame};
use tokio::net::UnixStream;
use tokio::time::sleep;

use crate::guest::dial;
use crate::runtime::backoff::Backoff;

/// Pauses before a broken stream is dialled again.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

/// Which stream of which process it is, and where to dial it.
#[derive(Debug)]
pub(super) struct GuestStream {
    vsock: Arc<Path>,
    header: StreamHeader,
    pauses: Backoff,
}

impl GuestStream {
    /// A stream of a process; the empty exec is the init process.
    pub(super) fn new(vsock: Arc<Path>, container: &str, exec: &str, kind: Kind) -> Self {
        let header = StreamHeader {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            kind: kind.into(),
            ..Default::default()
        };
        Self { vsock, header, pauses: PAUSES }
    }

    /// Connects, and tells the agent which stream it is.
    ///
    /// # Errors
    /// As [`dial::guest_port`].
    pub(super) async fn connect(&self) -> io::Result<UnixStream> {
        let mut stream = dial::guest_port(&self.vsock, STREAM_PORT).await?;
        frame::write_message(&mut stream, &self.header).await?;
        Ok(stream)
    }

    /// Connects again, until it succeeds. The caller sets the deadline.
    pub(super) async fn reconnect(&mut self) -> UnixStream {
        loop {
            sleep(self.pauses.pause()).await;
            if let Ok(stream) = self.connect().await {
                return stream;
            }
        }
    }

    /// The connection has carried data: after its next break the pauses start again with the first one.
    pub(super) fn works(&mut self) {
        self.pauses.reset();
    }

    /// The stream's name in the log.
    pub(super) fn name(&self) -> String {
        let StreamHeader { container_id, exec_id, kind, .. } = &self.header;
        let process = if exec_id.is_empty() { container_id } else { exec_id };
        match kind.enum_value() {
            Ok(kind) => format!("{kind:?} of {process}"),
            Err(_) => process.clone(),
        }
    }
}
