//! The guest's end of a stream: a vsock connection, and how to get another when it breaks.

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

/// Pause before a broken stream is dialled again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Which stream of which process, and where it is dialled.
#[derive(Debug)]
pub(super) struct Port {
    vsock: Arc<Path>,
    header: StreamHeader,
    pause: Duration,
}

impl Port {
    /// A stream of a process; the empty exec is the init process.
    pub(super) fn new(vsock: Arc<Path>, container: &str, exec: &str, kind: Kind) -> Self {
        let header = StreamHeader {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            kind: kind.into(),
            ..Default::default()
        };
        Self { vsock, header, pause: PAUSES.0 }
    }

    /// Connects, and says which stream it is.
    ///
    /// # Errors
    /// As [`dial::guest_port`].
    pub(super) async fn connect(&self) -> io::Result<UnixStream> {
        let mut stream = dial::guest_port(&self.vsock, STREAM_PORT).await?;
        frame::write_message(&mut stream, &self.header).await?;
        Ok(stream)
    }

    /// Connects again, until it succeeds. The caller bounds it.
    pub(super) async fn reconnect(&mut self) -> UnixStream {
        loop {
            sleep(self.pause).await;
            self.pause = (self.pause * 2).min(PAUSES.1);
            if let Ok(stream) = self.connect().await {
                return stream;
            }
        }
    }

    /// The connection carries data: the next break is a new one.
    pub(super) fn works(&mut self) {
        self.pause = PAUSES.0;
    }

    /// For the log.
    pub(super) fn name(&self) -> String {
        let StreamHeader { container_id, exec_id, kind, .. } = &self.header;
        let process = if exec_id.is_empty() { container_id } else { exec_id };
        match kind.enum_value() {
            Ok(kind) => format!("{kind:?} of {process}"),
            Err(_) => process.clone(),
        }
    }
}
