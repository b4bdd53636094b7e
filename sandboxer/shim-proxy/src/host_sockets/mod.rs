//! Unix sockets of the host that a container mounts: its clients in the guest are led to them.
//!
//! The sandboxer says which sockets a container has, and where they are; the guest knows them by number. For each one
//! stream waits in the guest for the next client. So a guest reaches what its containers were given and nothing else:
//! it dials nothing, and it names no path.
//!
//! Owns the waiting streams and every connection under way; all of it ends when [`Sockets`] is dropped.

mod dial;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_protocol::agent::stream_header::Kind;
use bulkhead_protocol::agent::{ForwardAnswer, Knock, StreamHeader};
use bulkhead_protocol::pod::HostSocket;
use bulkhead_protocol::relay::{RelayError, relay};
use bulkhead_protocol::{STREAM_PORT, frame};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use crate::error::chain;
use crate::runtime::lock::locked;
use dial::{Client, DialError};

/// Connections under way at once for each socket; more wait in the queue of the guest's.
const MOST: usize = 128;
/// Pause before another stream is offered to a guest that took none, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A socket that takes nobody is told of no more often than this.
const COMPLAINTS: Duration = Duration::from_secs(60);

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
pub(crate) struct Sockets(#[allow(dead_code, reason = "ends what it holds")] JoinSet<()>);

impl Sockets {
    /// Serves a container that the guest has created.
    pub(crate) fn serve(vsock: &Path, container: &str, sockets: Vec<HostSocket>) -> Self {
        let mut served = JoinSet::new();
        for socket in sockets {
            let door = Door { vsock: vsock.into(), container: container.into(), number: socket.number };
            served.spawn(serve(door, PathBuf::from(OsString::from_vec(socket.path))));
        }
        Self(served)
    }
}

/// Where the clients of a socket come from.
struct Door {
    vsock: PathBuf,
    container: String,
    number: u32,
}

impl Door {
    /// Waits for the next client.
    async fn next(&self) -> std::io::Result<(UnixStream, Knock)> {
        let mut guest = crate::guest::dial::guest_port(&self.vsock, STREAM_PORT).await?;
        let header = StreamHeader {
            kind: Kind::HOST_SOCKET.into(),
            container_id: self.container.clone(),
            socket: self.number,
            ..Default::default()
        };
        frame::write_message(&mut guest, &header).await?;
        let knock = frame::read_message(&mut guest).await?;
        Ok((guest, knock))
    }
}

/// Where the clients of a socket are led.
struct Target {
    path: PathBuf,
    /// When an administrator last heard that it takes nobody: how often is for the guest to decide.
    complained: Mutex<Option<Instant>>,
}

impl Target {
    fn complain(&self, refusal: &Refusal) {
        let mut complained = locked(&self.complained);
        let is_due = complained.is_none_or(|last| last.elapsed() > COMPLAINTS);
        if is_due && matches!(refusal, Refusal::Dial(_)) {
            *complained = Some(Instant::now());
            info!(path = %self.path.display(), error = chain(refusal), "a client in the guest is refused");
        } else {
            debug!(path = %self.path.display(), error = chain(refusal), "a connection of the guest ended");
        }
    }
}

async fn serve(door: Door, path: PathBuf) {
    let target = Arc::new(Target { path, complained: Mutex::default() });
    let room = Arc::new(Semaphore::new(MOST));
    let mut connections = JoinSet::new();
    let mut pause = PAUSES.0;
    // Never closed.
    while let Ok(place) = room.clone().acquire_owned().await {
        match door.next().await {
            Ok((guest, knock)) => {
                pause = PAUSES.0;
                connections.spawn(connect(guest, knock, target.clone(), place));
            }
            Err(error) => {
                debug!(container = door.container, number = door.number, %error, "the guest takes no stream");
                sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connect(guest: UnixStream, knock: Knock, target: Arc<Target>, _place: OwnedSemaphorePermit) {
    if let Err(refusal) = carry(guest, knock, &target.path).await {
        target.complain(&refusal);
    }
}

async fn carry(mut guest: UnixStream, knock: Knock, path: &Path) -> Result<(), Refusal> {
    let dialled = dial::dial(path, Client { uid: knock.uid, gid: knock.gid }).await;
    let refused = dialled.as_ref().err().map_or_else(String::new, |error| chain(error));
    let answer = ForwardAnswer { refused, ..Default::default() };
    frame::write_message(&mut guest, &answer).await.map_err(Refusal::Guest)?;
    Ok(relay(dialled?, guest).await?)
}

#[cfg(test)]
mod tests;
