//! Unix sockets of the host that a container mounts: here stands a listener for each, and every client is led to the
//! host on a stream that the host keeps waiting for it.
//!
//! The guest never dials: it cannot ask for a socket that the host does not offer. Clients for whom no stream waits
//! yet stay in the listener's queue.

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

/// Streams kept waiting for one socket. The host offers one at a time; of those that it has given up, the end is seen.
const KEPT: usize = 4;
/// How long the host may take to dial its socket.
const ANSWER: Duration = Duration::from_secs(30);
/// Pause after an accept that failed, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Permission bits of stat(2)'s mode.
const PERMISSIONS: u32 = 0o7777;

/// A socket could not be shown to a container.
#[derive(Debug, thiserror::Error)]
#[error("listen on {}", path.display())]
pub(crate) struct ShowError {
    path: PathBuf,
    source: io::Error,
}

/// Why a client was not, or no longer, carried to the host.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("tell who has connected")]
    Client(#[source] io::Error),
    #[error("speak to the host")]
    Host(#[source] io::Error),
    #[error("the host did not answer")]
    Silent,
    #[error("the host's socket takes no connection: {0}")]
    Refused(String),
    #[error(transparent)]
    Relay(#[from] RelayError),
}

/// The sockets of all containers.
#[derive(Debug)]
pub(crate) struct HostSockets<S = VsockStream> {
    dir: PathBuf,
    shown: Mutex<HashMap<(String, u32), Shown<S>>>,
}

/// Ends its listener and every connection when dropped.
#[derive(Debug)]
struct Shown<S> {
    waiting: mpsc::Sender<S>,
    task: AbortHandle,
}

impl<S> Drop for Shown<S> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<S> Default for HostSockets<S> {
    fn default() -> Self {
        Self { dir: SOCKET_DIR.into(), shown: Mutex::default() }
    }
}

impl<S> HostSockets<S> {
    fn lock(&self) -> MutexGuard<'_, HashMap<(String, u32), Shown<S>>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a container's sockets away. Their clients see the connections end.
    pub(crate) fn hide(&self, container: &str) {
        self.lock().retain(|(of, _), _| of != container);
        let dir = self.dir.join(container);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(dir = %dir.display(), %error, "sockets are left");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

impl<S> HostSockets<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Listens where the container's spec expects the socket. On an error [`HostSockets::hide`] takes away what there
    /// is.
    pub(crate) fn show(&self, container: &str, socket: &HostSocket) -> Result<(), ShowError> {
        let path = self.dir.join(container).join(socket.number.to_string());
        let listener = listen(&path, socket).map_err(|source| ShowError { path, source })?;
        let (waiting, streams) = mpsc::channel(KEPT);
        let task = tokio::spawn(serve(listener, streams)).abort_handle();
        self.lock().insert((container.to_owned(), socket.number), Shown { waiting, task });
        Ok(())
    }

    /// A stream of the host waits for a client from now on. One for a socket that is not there is closed.
    pub(crate) fn offer(&self, container: String, number: u32, stream: S) {
        let shown = self.lock();
        let key = (container, number);
        let taken = shown.get(&key).is_some_and(|socket| socket.waiting.try_send(stream).is_ok());
        if !taken {
            tracing::debug!(
                container = key.0,
                number,
                "a stream for a socket that is not there, or one too many"
            );
        }
    }
}

/// Whoever may reach the host's socket may reach this one: the mode is set before anybody can see it.
fn listen(path: &Path, socket: &HostSocket) -> io::Result<UnixListener> {
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
            // Nothing is said before a client comes: the host has closed it.
            _closed = stream.read_u8() => {}
            client = accept(&listener) => drop(connections.spawn(carry(client, stream))),
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

/// Nothing is read of the client before the host has answered: what it has said already makes the kernel tell it of a
/// reset when it is refused, instead of an end.
async fn carry<S>(client: UnixStream, mut stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let carried = async {
        knock(&client, &mut stream).await?;
        Ok::<(), Refusal>(relay(client, stream).await?)
    };
    if let Err(error) = carried.await {
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
    let answer = answer.map_err(|_elapsed| Refusal::Silent)?.map_err(Refusal::Host)?;
    if answer.refused.is_empty() { Ok(()) } else { Err(Refusal::Refused(answer.refused)) }
}

#[cfg(test)]
mod tests;
