//! How long a connection lives: until its peer closes it, or we do.

use tokio_util::sync::CancellationToken;

/// The lifetime of a connection that is served.
#[derive(Debug, Clone, Default)]
pub(super) struct Lifetime {
    closed: CancellationToken,
    closing: CancellationToken,
}

impl Lifetime {
    /// Is cancelled when the connection has closed.
    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Is cancelled when we close the connection.
    pub(super) fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// Closes the connection, once what is under way has been sent.
    pub(super) fn close(&self) {
        self.closing.cancel();
    }
}
