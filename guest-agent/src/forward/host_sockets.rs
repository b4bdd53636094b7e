//! Unix sockets of the host that a container mounts. The agent has a listener for each, and forwards every client to
//! the host on a stream that the host has opened in advance.
//!
//! The guest never connects to the host: it cannot reach a socket that the host does not offer. Clients without a
//! stream wait in the listener's backlog.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulkhead_protocol::agent::{ForwardAnswer, HostSocket, Knock};
use bulkhead_protocol::error::chain;
use bulkhead_protocol::relay::{RelayError, relay};
use bulkhead_protocol::{SOCKET_DIR, frame};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_vsock::VsockStream;

/// How many streams may wait for clients of one socket. The host opens one at a time; more only when it has closed
/// earlier ones.
const KEPT: usize = 4;
/// How long the host may take to dial its socket.
const ANSWER: Duration = Duration::from_secs(30);
/// Pause after an accept that failed, mostly because descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Permission bits of stat(2)'s mode.
const PERMISSIONS: u32 = 0o7777;

/// A socket could not be set up for a container.
#[derive(Debug, thiserror::Error)]
#[error("listen on {}", path.display())]
pub(crate) struct HostSocketError {
    path: PathBuf,
    source: io::Error,
}

/// Why a client was not forwarded to the host, or no longer is.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("read the credentials of the client")]
    Client(#[source] io::Error),
    #[error("talk to the host")]
    Host(#[source] io::Error),
    #[error("the host did not answer")]
    NoAnswer,
    #[error("the host's socket takes no connection: {0}")]
    Refused(String),
    #[error(transparent)]
    Relay(#[from] RelayError),
}

/// The sockets of all containers.
#[derive(Debug)]
pub(crate) struct HostSockets<S = VsockStream> {
    dir: PathBuf,
    listening: Mutex<HashMap<(String, u32), Listening<S>>>,
}

/// Ends its listener and every connection when dropped.
#[derive(Debug)]
struct Listening<S> {
    waiting: mpsc::Sender<S>,
    task: AbortHandle,
}

impl<S> Drop for Listening<S> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<S> Default for HostSockets<S> {
    fn default() -> Self {
        Self { dir: SOCKET_DIR.into(), listening: Mutex::default() }
    }
}

impl<S> HostSockets<S> {
    fn lock(&self) -> MutexGuard<'_, HashMap<(String, u32), Listening<S>>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a container's sockets and closes their connections.
    pub(crate) fn close(&self, container: &str) {
        self.lock().retain(|(of, _), _| of != container);
        let dir = self.dir.join(container);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(dir = %dir.display(), %error, "sockets were not removed");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

impl<S> HostSockets<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Listens where the container's spec expects the socket. On an error the caller calls [`HostSockets::close`].
    pub(crate) fn listen(&self, container: &str, socket: &HostSocket) -> Result<(), HostSocketError> {
        let path = self.dir.join(container).join(socket.number.to_string());
        let listener = bind(&path, socket).map_err(|source| HostSocketError { path, source })?;
        let (waiting, streams) = mpsc::channel(KEPT);
        let task = tokio::spawn(serve(listener, streams)).abort_handle();
        self.lock().insert((container.to_owned(), socket.number), Listening { waiting, task });
        Ok(())
    }

    /// Adds a stream of the host, which waits for a client. It is closed when there is no such socket.
    pub(crate) fn add_stream(&self, container: String, number: u32, stream: S) {
        let listening = self.lock();
        let key = (container, number);
        let taken = listening.get(&key).is_some_and(|socket| socket.waiting.try_send(stream).is_ok());
        if !taken {
            tracing::debug!(
                container = key.0,
                number,
                "a stream for a socket that does not exist, or one too many"
            );
        }
    }
}

/// Binds the socket with the owner and mode of the host's. The container does not have it yet, so nobody can connect
/// before they are set.
fn bind(path: &Path, socket: &HostSocket) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let listener = UnixListener::bind(path)?;
    chown(path, Some(socket.uid), Some(socket.gid))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(socket.mode & PERMISSIONS))?;
    Ok(listener)
}

async fn serve<S>(listener: UnixListener, mut streams: mpsc::Receiver<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connections = JoinSet::new();
    while let Some(mut stream) = streams.recv().await {
        tokio::select! {
            biased;
            // The host sends nothing before a client connects, so it has closed the stream.
            _closed = stream.read_u8() => {}
            client = accept(&listener) => drop(connections.spawn(forward(client, stream))),
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn accept(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((client, _)) => return client,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client of a host's socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Nothing is read from the client before the host has answered: so the kernel tells a client that has sent something
/// of a reset, not of an end, when it is refused.
async fn forward<S>(client: UnixStream, mut stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let forwarded = async {
        knock(&client, &mut stream).await?;
        Ok::<(), Refusal>(relay(client, stream).await?)
    };
    if let Err(error) = forwarded.await {
        tracing::debug!(error = %chain(&error), "a connection to a host's socket ended");
    }
}

async fn knock<S>(client: &UnixStream, stream: &mut S) -> Result<(), Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let who = client.peer_cred().map_err(Refusal::Client)?;
    let knock = Knock { uid: who.uid(), gid: who.gid(), ..Knock::default() };
    frame::write_message(stream, &knock).await.map_err(Refusal::Host)?;
    let answer = tokio::time::timeout(ANSWER, frame::read_message::<_, ForwardAnswer>(stream)).await;
    let answer = answer.map_err(|_elapsed| Refusal::NoAnswer)?.map_err(Refusal::Host)?;
    if answer.refused.is_empty() { Ok(()) } else { Err(Refusal::Refused(answer.refused)) }
}

#[cfg(test)]
mod tests;
