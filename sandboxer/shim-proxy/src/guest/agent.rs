//! The session with the guest agent: dialled again when it breaks, given up with the VM.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::agent_ttrpc::AgentClient;
use bulkhead_protocol::error::chain;
use bulkhead_protocol::{AGENT_PORT, untrusted, version};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;

use super::answers::Answer;
use super::dial;
use crate::error::TaskError;
use crate::lifecycle::Exit;
use crate::runtime::backoff::Backoff;
use crate::runtime::socket::GuardedSocket;

/// How long the agent may be out of reach while the VMM lives before the VM counts as gone.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// The same for the first session: the guest has just booted, perhaps at the same time as others.
const FIRST_WITHIN: Duration = Duration::from_secs(30);
/// How long the agent may take for Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest pause between attempts to dial.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// Pauses between attempts to dial.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(20), MAX_PAUSE);

/// The state of the session.
#[derive(Clone)]
enum Link {
    /// The sandboxer has not called Attach yet.
    Unattached,
    /// There is no connection at the moment.
    Dialling,
    /// Calls can be made.
    Up { client: AgentClient, vsock: Arc<Path> },
    /// The VM is gone.
    Gone { exit: Exit, reason: Arc<str> },
}

/// The session, which everybody shares.
pub(crate) struct AgentLink {
    link: watch::Sender<Link>,
}

impl std::fmt::Debug for AgentLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentLink").finish_non_exhaustive()
    }
}

impl AgentLink {
    /// A link that waits for the sandboxer's Attach.
    pub(crate) fn unattached() -> Self {
        Self { link: watch::Sender::new(Link::Unattached) }
    }

    /// Takes note of the first Attach; false when there was one already, or the VM is gone.
    pub(crate) fn begin_dialling(&self) -> bool {
        self.link.send_if_modified(|link| {
            let first = matches!(link, Link::Unattached);
            if first {
                *link = Link::Dialling;
            }
            first
        })
    }

    /// Keeps a session through the hybrid vsock socket `vsock` until the VM is gone. Answers why the agent is out of
    /// reach for good.
    pub(crate) async fn keep(&self, vsock: Arc<Path>) -> Arc<str> {
        let mut limit = FIRST_WITHIN;
        loop {
            let (client, closed) = match dial_within(&vsock, limit).await {
                Ok(session) => session,
                Err(reason) => return reason,
            };
            if !self.replace(Link::Up { client, vsock: vsock.clone() }) {
                return "the VM is gone".into();
            }
            limit = LOST_AFTER;
            // Ends with an error when the socket closes: nothing is ever sent.
            drop(closed.await);
            warn!("the session with the guest agent broke, dialling again");
            self.replace(Link::Dialling);
        }
    }

    /// Nothing replaces Gone.
    fn replace(&self, next: Link) -> bool {
        self.link.send_if_modified(|link| {
            let alive = !matches!(link, Link::Gone { .. });
            if alive {
                *link = next;
            }
            alive
        })
    }

    /// Marks the VM as gone; false when it was already.
    pub(crate) fn set_gone(&self, exit: Exit, reason: &Arc<str>) -> bool {
        self.replace(Link::Gone { exit, reason: reason.clone() })
    }

    /// How the VM ended, if it has.
    pub(crate) fn gone(&self) -> Option<Exit> {
        match &*self.link.borrow() {
            Link::Gone { exit, .. } => Some(*exit),
            Link::Unattached | Link::Dialling | Link::Up { .. } => None,
        }
    }

    /// The present session, once there is one.
    ///
    /// # Errors
    /// [`TaskError::VmGone`]; [`TaskError::AgentUnreachable`] at the deadline.
    async fn session(
        &self,
        act: &'static str,
        until: Instant,
    ) -> Result<(AgentClient, Arc<Path>), TaskError> {
        let mut link = self.link.subscribe();
        let settled = link.wait_for(|link| matches!(link, Link::Up { .. } | Link::Gone { .. }));
        match timeout_at(until, settled).await {
            Ok(Ok(link)) => match &*link {
                Link::Up { client, vsock } => Ok((client.clone(), vsock.clone())),
                Link::Gone { reason, .. } => Err(TaskError::VmGone { reason: reason.clone() }),
                Link::Unattached | Link::Dialling => Err(TaskError::AgentUnreachable { act }),
            },
            Ok(Err(_)) | Err(_) => Err(TaskError::AgentUnreachable { act }),
        }
    }

    /// Waits for a session, the first one included, and answers the hybrid vsock socket of the guest.
    ///
    /// # Errors
    /// [`TaskError::VmGone`]; [`TaskError::AgentUnreachable`] at the deadline.
    pub(crate) async fn ready(&self, act: &'static str, until: Instant) -> Result<Arc<Path>, TaskError> {
        self.session(act, until).await.map(|(_client, vsock)| vsock)
    }

    async fn until_gone(&self) -> TaskError {
        let mut link = self.link.subscribe();
        match link.wait_for(|link| matches!(link, Link::Gone { .. })).await.as_deref() {
            Ok(Link::Gone { reason, .. }) => TaskError::VmGone { reason: reason.clone() },
            Ok(Link::Unattached | Link::Dialling | Link::Up { .. }) | Err(_) => TaskError::Crashed,
        }
    }

    /// Makes one call and keeps its answer within bounds. The agent gets no deadline: what it has begun it shall
    /// finish.
    ///
    /// # Errors
    /// [`TaskError::VmGone`], `Agent…` as named.
    pub(crate) async fn call<T, F, Call>(
        &self,
        act: &'static str,
        until: Instant,
        make: F,
    ) -> Result<T, TaskError>
    where
        T: Answer,
        F: FnOnce(AgentClient) -> Call,
        Call: Future<Output = ttrpc::Result<T>>,
    {
        let (client, _vsock) = self.session(act, until).await?;
        tokio::select! {
            biased;
            answer = timeout_at(until, make(client)) => match answer {
                Ok(Ok(answer)) => answer.bounded().map_err(|fault| TaskError::AgentNonsense { act, fault }),
                Ok(Err(ttrpc::Error::RpcStatus(status))) => Err(TaskError::AgentFailed { act, status }),
                Ok(Err(source)) => Err(TaskError::AgentLost { act, source }),
                Err(_elapsed) => Err(TaskError::AgentSilent { act }),
            },
            gone = self.until_gone() => Err(gone),
        }
    }
}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("cannot connect to the agent's port through {}", path.display())]
    Connect { path: PathBuf, source: std::io::Error },
    #[error("the agent did not answer Hello in time")]
    Silent,
    /// The guest's text is not a source: it is cut and cleaned here.
    #[error("the agent refused Hello: {0}")]
    Refused(String),
    #[error("the agent speaks another protocol")]
    Version { source: version::NoCommonVersion },
}

impl DialError {
    /// Whether this process, or the host, lacks a resource. That says nothing of the guest, so the guest is not lost.
    fn is_our_own(&self) -> bool {
        let lacks = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS];
        match self {
            Self::Connect { source, .. } => source.raw_os_error().is_some_and(|code| lacks.contains(&code)),
            Self::Silent | Self::Refused(_) | Self::Version { .. } => false,
        }
    }
}

/// A client, and a channel that closes with its connection.
type NewSession = (AgentClient, oneshot::Receiver<()>);

async fn dial_within(vsock: &Path, limit: Duration) -> Result<NewSession, Arc<str>> {
    let mut give_up = Instant::now() + limit;
    let mut pauses = PAUSES;
    loop {
        let error = match connect(vsock).await {
            Ok(session) => return Ok(session),
            Err(error) => error,
        };
        let first = pauses.is_fresh();
        let pause = pauses.pause();
        if error.is_our_own() {
            warn!(error = chain(&error), "cannot dial the guest agent");
            give_up = Instant::now() + limit;
            sleep(MAX_PAUSE).await;
            continue;
        }
        if Instant::now() + pause >= give_up {
            let error = chain(&error);
            return Err(format!("the guest agent is out of reach: {error}").into());
        }
        if first {
            warn!(error = chain(&error), "cannot reach the guest agent, dialling again");
        }
        sleep(pause).await;
    }
}

/// The guest's text, where it sent one.
fn refusal(error: &ttrpc::Error) -> String {
    if let ttrpc::Error::RpcStatus(status) = error {
        return untrusted::text(status.message());
    }
    error.to_string()
}

async fn connect(vsock: &Path) -> Result<NewSession, DialError> {
    let stream = dial::guest_port(vsock, AGENT_PORT)
        .await
        .map_err(|source| DialError::Connect { path: vsock.into(), source })?;
    let (guard, closed) = oneshot::channel::<()>();
    let stream = GuardedSocket::new(stream, CancellationToken::new(), guard);
    let client = AgentClient::new(Client::new(Socket::new(stream)));
    let hello = version::agent_hello("shim");
    let answer = timeout(HELLO_TIMEOUT, client.hello(context::with_timeout(0), &hello)).await;
    let answer = match answer {
        Ok(answer) => answer.map_err(|error| DialError::Refused(refusal(&error)))?,
        Err(_elapsed) => return Err(DialError::Silent),
    };
    let agreed =
        version::negotiate(answer.version, answer.version).map_err(|source| DialError::Version { source })?;
    info!(version = agreed, "session with the guest agent");
    Ok((client, closed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_descriptors_does_not_count_against_the_guest() {
        let failed =
            |code| DialError::Connect { path: "/v".into(), source: std::io::Error::from_raw_os_error(code) };
        for code in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS] {
            assert!(failed(code).is_our_own(), "{code}");
        }
        for code in [libc::ECONNREFUSED, libc::ENOENT, libc::EAGAIN, libc::ECONNRESET] {
            assert!(!failed(code).is_our_own(), "{code}");
        }
        assert!(!DialError::Silent.is_our_own());
    }
}
