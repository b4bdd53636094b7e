//! The host's ends over containerd's streaming service, in place of FIFOs.

use super::connection::{Received, StreamConnection};
use super::registry::Claim;

/// Bytes of input that containerd may send before the process reads any.
const READ_AHEAD: i32 = 32 * 1024;

/// The host's end of stdout or stderr. While containerd is away, writing waits.
#[derive(Debug)]
pub(crate) struct StreamWriter {
    claim: Claim,
    current: Option<StreamConnection>,
}

impl StreamWriter {
    /// A writer to the connections of a claimed id.
    pub(crate) fn new(claim: Claim) -> Self {
        Self { claim, current: None }
    }

    /// Writes all of it, waiting while containerd takes nothing or is not connected.
    pub(crate) async fn write_all(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if let Some(newest) = self.claim.newest() {
                self.current = Some(newest);
            }
            let Some(connection) = self.current.as_ref().filter(|connection| !connection.is_over()) else {
                self.current = Some(self.claim.next().await);
                continue;
            };
            // What a broken connection has not taken goes to the next one.
            let sent = connection.send(rest).await.unwrap_or_default();
            rest = rest.get(sent..).unwrap_or_default();
        }
    }

    /// Ends the output, also for a connection that comes later.
    pub(crate) fn finish(self) {
        self.claim.end();
    }
}

/// The host's end of stdin.
#[derive(Debug)]
pub(crate) struct StreamReader {
    claim: Claim,
    current: Option<StreamConnection>,
    rest: Vec<u8>,
}

impl StreamReader {
    /// A reader of the connections of a claimed id.
    pub(crate) fn new(claim: Claim) -> Self {
        Self { claim, current: None, rest: Vec::new() }
    }

    /// Waits for bytes, or for the end of the input (an empty answer), and takes at most `limit` of them. The loss of a
    /// connection is not the end. Can be dropped while it waits.
    pub(crate) async fn read(&mut self, limit: usize) -> Vec<u8> {
        while self.rest.is_empty() {
            let Some(connection) = &mut self.current else {
                let connection = self.claim.next().await;
                connection.grant(READ_AHEAD);
                self.current = Some(connection);
                continue;
            };
            match connection.receive().await {
                Some(Received::Data(bytes)) => {
                    connection.grant(i32::try_from(bytes.len()).unwrap_or(READ_AHEAD));
                    self.rest = bytes;
                }
                Some(Received::End) => return Vec::new(),
                None => self.current = None,
            }
        }
        let after = self.rest.split_off(limit.min(self.rest.len()));
        std::mem::replace(&mut self.rest, after)
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        self.claim.end();
    }
}
