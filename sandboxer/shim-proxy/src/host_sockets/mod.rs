//! Unix sockets of the host that a container mounts: clients in the guest are connected to them.
//!
//! The sandboxer tells which sockets a container has and where they are; the guest knows them by number. For each
//! socket one stream waits in the guest for the next client. So a guest reaches what its containers were given and
//! nothing else: it dials nothing, and it names no path.
//!
//! [`HostSockets`] owns the waiting streams and the open connections; all of it ends when it is dropped.

mod dial;

use std::ffi::OsString;
use std::future::Future;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::agent::stream_header::Kind;
use bulkhead_protocol::agent::{ForwardAnswer, Knock, StreamHeader};
use bulkhead_protocol::error::chain;
use bulkhead_protocol::pod::HostSocket;
use bulkhead_protocol::relay::{RelayError, relay};
use bulkhead_protocol::{STREAM_PORT, frame};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use crate::guest::dial::guest_port;
use crate::runtime::backoff::Backoff;
use dial::{Client, DialError};

/// Most open connections of each socket; further clients wait in the queue of the guest's socket.
const MAX_CONNECTIONS: usize = 128;
/// Pauses before another stream is offered to a guest that took none.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
/// Least time between two log entries, for an administrator, about a socket that takes no client: how often clients try
/// is for the guest to decide.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Why a client was not, or no longer, served.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("cannot speak to the guest")]
    Guest(#[source] std::io::Error),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Relay(#[from] RelayError),
}

/// The sockets of one container, served until this is dropped.
#[derive(Debug)]
pub(crate) struct HostSockets(#[allow(dead_code, reason = "ends what it holds")] JoinSet<()>);

impl HostSockets {
    /// Serves a container that the guest has created.
    pub(crate) fn serve(vsock: &Path, container: &str, sockets: Vec<HostSocket>) -> Self {
        let mut served = JoinSet::new();
        for socket in sockets {
            let path: Arc<Path> = PathBuf::from(OsString::from_vec(socket.path)).into();
            let offer = Offer { vsock: vsock.into(), container: container.into(), number: socket.number };
            served.spawn(Server { offer, path, open: JoinSet::new(), logged: None }.run());
        }
        Self(served)
    }
}

/// The streams that are offered to the guest for one socket.
#[derive(Clone)]
struct Offer {
    vsock: Arc<Path>,
    container: Arc<str>,
    number: u32,
}

impl Offer {
    /// Offers a stream and waits for the next client.
    async fn next_client(&self) -> std::io::Result<(UnixStream, Knock)> {
        let mut guest = guest_port(&self.vsock, STREAM_PORT).await?;
        let header = StreamHeader {
            kind: Kind::HOST_SOCKET.into(),
            container_id: self.container.to_string(),
            socket: self.number,
            ..Default::default()
        };
        frame::write_message(&mut guest, &header).await?;
        let knock = frame::read_message(&mut guest).await?;
        Ok((guest, knock))
    }
}

/// One socket, with its open connections.
struct Server {
    offer: Offer,
    path: Arc<Path>,
    open: JoinSet<Result<(), Refusal>>,
    /// When it was last logged that the socket takes no client.
    logged: Option<Instant>,
}

impl Server {
    async fn run(mut self) {
        let mut pauses = PAUSES;
        loop {
            while self.open.len() >= MAX_CONNECTIONS {
                self.ended().await;
            }
            let offer = self.offer.clone();
            match self.while_connections_end(async move { offer.next_client().await }).await {
                Ok((guest, knock)) => {
                    pauses.reset();
                    self.open.spawn(connect(guest, knock, self.path.clone()));
                }
                Err(error) => {
                    let Offer { container, number, .. } = &self.offer;
                    debug!(container = &**container, number, %error, "the guest takes no stream");
                    self.while_connections_end(sleep(pauses.pause())).await;
                }
            }
        }
    }

    /// Does the work, and logs how connections end meanwhile.
    async fn while_connections_end<F: Future>(&mut self, work: F) -> F::Output {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.ended(), if !self.open.is_empty() => {}
            }
        }
    }

    /// Waits for the end of a connection, and logs why it was not served.
    async fn ended(&mut self) {
        if let Some(Ok(Err(refusal))) = self.open.join_next().await {
            self.log(&refusal);
        }
    }

    fn log(&mut self, refusal: &Refusal) {
        let is_due = self.logged.is_none_or(|last| last.elapsed() > LOG_INTERVAL);
        if is_due && matches!(refusal, Refusal::Dial(_)) {
            self.logged = Some(Instant::now());
            info!(path = %self.path.display(), error = chain(refusal), "a client in the guest is refused");
        } else {
            debug!(path = %self.path.display(), error = chain(refusal), "a connection of the guest ended");
        }
    }
}

/// Connects one client, and copies until both sides have ended.
async fn connect(mut guest: UnixStream, knock: Knock, path: Arc<Path>) -> Result<(), Refusal> {
    let dialled = dial::dial(&path, Client { uid: knock.uid, gid: knock.gid }).await;
    let refused = dialled.as_ref().err().map_or_else(String::new, |error| chain(error));
    let answer = ForwardAnswer { refused, ..Default::default() };
    frame::write_message(&mut guest, &answer).await.map_err(Refusal::Guest)?;
    Ok(relay(dialled?, guest).await?)
}

#[cfg(test)]
mod tests;
