//! The host's ends over containerd's streaming service, in place of FIFOs.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::connection::{Heard, Line};
use super::registry::Claim;

/// Room for input that nobody has asked for yet, in bytes.
const AHEAD: i32 = 32 * 1024;

/// The host's end of stdout or stderr. While containerd is away it waits.
#[derive(Debug)]
pub(crate) struct Outlet(Arc<Claim>);

impl Outlet {
    /// Over a claimed id.
    pub(crate) fn new(claim: Arc<Claim>) -> Self {
        Self(claim)
    }

    /// Writes all of it, waiting while containerd has no room or is not connected.
    pub(crate) async fn write_all(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let line = self.0.line().await;
            // What a line that broke has not taken goes to the next one.
            let sent = line.send(rest).await.unwrap_or_default();
            rest = rest.get(sent..).unwrap_or_default();
        }
    }

    /// Ends it, also for whoever connects later.
    pub(crate) fn finish(self) {
        self.0.end();
    }
}

/// The host's end of stdin.
#[derive(Debug)]
pub(crate) struct Inlet {
    claim: Arc<Claim>,
    current: Option<(Arc<Line>, UnboundedReceiver<Heard>)>,
    rest: Vec<u8>,
}

impl Inlet {
    /// Over a claimed id.
    pub(crate) fn new(claim: Arc<Claim>) -> Self {
        Self { claim, current: None, rest: Vec::new() }
    }

    /// Waits for bytes, or for the end of the input (an empty answer), and takes at most `limit` of them. A line that
    /// is lost is no end. Can be dropped while it waits.
    pub(crate) async fn read(&mut self, limit: usize) -> Vec<u8> {
        while self.rest.is_empty() {
            let Some((line, heard)) = &mut self.current else {
                let line = self.claim.line().await;
                if let Some(heard) = line.heard() {
                    line.grant(AHEAD);
                    self.current = Some((line, heard));
                }
                continue;
            };
            match heard.recv().await {
                Some(Heard::Data(bytes)) => {
                    line.grant(i32::try_from(bytes.len()).unwrap_or(AHEAD));
                    self.rest = bytes;
                }
                Some(Heard::End) => return Vec::new(),
                None => self.current = None,
            }
        }
        let after = self.rest.split_off(limit.min(self.rest.len()));
        std::mem::replace(&mut self.rest, after)
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        self.claim.end();
    }
}
