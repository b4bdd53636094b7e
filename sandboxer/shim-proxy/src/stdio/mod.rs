//! The stdio of one process: containerd's end on this host (fact 4), and a vsock connection to the guest for each
//! stream.
//!
//! Each stream is one task, which copies, and which stops reading one side while the other is full.

pub(crate) mod connection;
mod deadlines;
mod ends;
mod fifo;
mod guest_stream;
mod input;
mod output;
mod registry;
mod request;
mod streamed;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

#[cfg(test)]
pub(crate) use connection::Direction;
pub(crate) use connection::StreamConnection;
use deadlines::{Deadlines, Phase};
pub(crate) use ends::{GuestEnds, HostEnds, Owner};
#[cfg(test)]
pub(crate) use registry::Claim;
use registry::Hold;
pub(crate) use registry::StreamRegistry;
pub(crate) use request::Request;
#[cfg(test)]
pub(crate) use streamed::{StreamReader, StreamWriter};

/// The running streams of a process. Dropping them closes both ends at once.
#[derive(Debug)]
pub(crate) struct Streams {
    phase: watch::Sender<Phase>,
    /// The extra write end that keeps stdin open while containerd is away.
    stdin_hold: Option<OwnedFd>,
    /// Holds on streaming ids. They are kept after the end of the streams: containerd may connect once more.
    _holds: Vec<Arc<Hold>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Streams {
    /// Starts copying.
    pub(crate) fn start(host: HostEnds, guest: GuestEnds) -> Self {
        let phase = watch::Sender::new(Phase::Alive);
        let deadlines = || Deadlines::new(phase.subscribe());
        let mut tasks = Vec::with_capacity(3);
        for (sink, from) in [(host.stdout, guest.stdout), (host.stderr, guest.stderr)] {
            if let (Some(sink), Some((stream, from))) = (sink, from) {
                tasks.push(tokio::spawn(output::output(stream, from, sink, deadlines())));
            }
        }
        let mut stdin_hold = None;
        if let (Some((source, hold)), Some((stream, to))) = (host.stdin, guest.stdin) {
            stdin_hold = hold;
            tasks.push(tokio::spawn(input::input(stream, source, to, deadlines())));
        }
        Self { phase, stdin_hold, _holds: host.holds, tasks }
    }

    /// From now on the process sees the end of stdin as soon as containerd has closed its end.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin_hold = None;
    }

    /// The process has ended: its input stops, and only output that is under way is still copied.
    pub(crate) fn end(&mut self) {
        self.stdin_hold = None;
        self.phase.send_if_modified(|phase| {
            let first = *phase == Phase::Alive;
            if first {
                *phase = Phase::Ending;
            }
            first
        });
    }

    /// The VM is gone: output that has reached the host is still delivered, but not waited for.
    pub(crate) fn cut(&mut self) {
        self.stdin_hold = None;
        self.phase.send_replace(Phase::Cut);
    }

    /// Waits until every stream has ended; false when that takes longer than `limit`.
    pub(crate) async fn finished(&mut self, limit: Duration) -> bool {
        // A stream's task has no result, and a panic in it is an end, too.
        let all = timeout(limit, join_all(self.tasks.iter_mut())).await;
        if all.is_ok() {
            self.tasks.clear();
        }
        all.is_ok()
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[cfg(test)]
mod relay_tests;
