//! The session with the guest agent: dialled again when it breaks, given up with the VM.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::agent_ttrpc::AgentClient;
use bulkhead_protocol::{AGENT_PORT, untrusted, version};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;

use crate::error::{TaskError, chain};
use crate::guest::answers::Answer;
use crate::guest::dial;
use crate::lifecycle::Exit;
use crate::runtime::socket::Watched;

/// How long the agent may be out of reach while the VMM lives before the VM counts as gone.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// The same for the first session: the guest has just booted, among others perhaps.
const FIRST_WITHIN: Duration = Duration::from_secs(30);
/// How long the agent may take for Hello.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between attempts to dial, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Where the session stands.
#[derive(Clone)]
enum Link {
    /// The sandboxer has not said yet that the VM is up.
    Unattached,
    /// Between two connections.
    Dialling,
    /// In use.
    Up(AgentClient),
    /// The VM is gone.
    Gone { exit: Exit, reason: Arc<str> },
}

/// The session, as everybody shares it.
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

    /// Takes the first Attach; false when there was one already, or the VM is gone.
    pub(crate) fn begin(&self) -> bool {
        self.link.send_if_modified(|link| {
            let first = matches!(link, Link::Unattached);
            if first {
                *link = Link::Dialling;
            }
            first
        })
    }

    /// Keeps a session until the VM is gone. Answers why the agent is out of reach for good.
    pub(crate) async fn keep(&self, vsock: &Path) -> Arc<str> {
        let mut patience = FIRST_WITHIN;
        loop {
            let (client, closed) = match dial_within(vsock, patience).await {
                Ok(session) => session,
                Err(reason) => return reason,
            };
            if !self.replace(Link::Up(client)) {
                return "the VM is gone".into();
            }
            patience = LOST_AFTER;
            // Ends with an error when the socket is dropped: there is nothing else to hear.
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
            Link::Unattached | Link::Dialling | Link::Up(_) => None,
        }
    }

    /// The present session, waiting for one if need be.
    ///
    /// # Errors
    /// [`TaskError::VmGone`]; [`TaskError::AgentUnreachable`] at the deadline.
    async fn client(&self, act: &'static str, until: Instant) -> Result<AgentClient, TaskError> {
        let mut link = self.link.subscribe();
        let settled = link.wait_for(|link| matches!(link, Link::Up(_) | Link::Gone { .. }));
        match timeout_at(until, settled).await {
            Ok(Ok(link)) => match &*link {
                Link::Up(client) => Ok(client.clone()),
                Link::Gone { reason, .. } => Err(TaskError::VmGone { reason: reason.clone() }),
                Link::Unattached | Link::Dialling => Err(TaskError::AgentUnreachable { act }),
            },
            Ok(Err(_)) | Err(_) => Err(TaskError::AgentUnreachable { act }),
        }
    }

    /// Waits for a session, the first one included.
    ///
    /// # Errors
    /// [`TaskError::VmGone`]; [`TaskError::AgentUnreachable`] at the deadline.
    pub(crate) async fn ready(&self, act: &'static str, until: Instant) -> Result<(), TaskError> {
        self.client(act, until).await.map(drop)
    }

    async fn until_gone(&self) -> TaskError {
        let mut link = self.link.subscribe();
        match link.wait_for(|link| matches!(link, Link::Gone { .. })).await.as_deref() {
            Ok(Link::Gone { reason, .. }) => TaskError::VmGone { reason: reason.clone() },
            Ok(Link::Unattached | Link::Dialling | Link::Up(_)) | Err(_) => TaskError::Crashed,
        }
    }

    /// Makes one call, and keeps its answer within bounds. The agent gets no deadline: what it has begun it shall finish.
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
        let client = self.client(act, until).await?;
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
    /// Its words are no source: they are the guest's.
    #[error("the agent refused Hello: {0}")]
    Refused(String),
    #[error("the agent speaks another protocol")]
    Version { source: version::NoCommonVersion },
}

impl DialError {
    /// Whether this process, or the host, lacks something, which says nothing of the guest: it is not lost by that.
    fn is_our_own(&self) -> bool {
        let lacks = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS];
        match self {
            Self::Connect { source, .. } => source.raw_os_error().is_some_and(|code| lacks.contains(&code)),
            Self::Silent | Self::Refused(_) | Self::Version { .. } => false,
        }
    }
}

/// A session, and what ends when its connection does.
type Session = (AgentClient, oneshot::Receiver<()>);

async fn dial_within(vsock: &Path, patience: Duration) -> Result<Session, Arc<str>> {
    let mut give_up = Instant::now() + patience;
    let mut pause = PAUSES.0;
    loop {
        match connect(vsock).await {
            Ok(session) => return Ok(session),
            Err(error) if error.is_our_own() => {
                warn!(error = chain(&error), "cannot dial the guest agent");
                give_up = Instant::now() + patience;
                sleep(PAUSES.1).await;
            }
            Err(error) if Instant::now() + pause >= give_up => {
                let error = chain(&error);
                return Err(format!("the guest agent is out of reach: {error}").into());
            }
            Err(error) => {
                if pause == PAUSES.0 {
                    warn!(error = chain(&error), "cannot reach the guest agent, dialling again");
                }
                sleep(pause).await;
            }
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// The guest's words, where it has said something.
fn refusal(error: &ttrpc::Error) -> String {
    if let ttrpc::Error::RpcStatus(status) = error {
        return untrusted::text(status.message());
    }
    error.to_string()
}

async fn connect(vsock: &Path) -> Result<Session, DialError> {
    let stream = dial::guest_port(vsock, AGENT_PORT)
        .await
        .map_err(|source| DialError::Connect { path: vsock.into(), source })?;
    let (witness, closed) = oneshot::channel::<()>();
    let stream = Watched::new(stream, CancellationToken::new(), witness);
    let client = AgentClient::new(Client::new(Socket::new(stream)));
    let hello = version::agent_hello("shim");
    let answer = timeout(HELLO_PATIENCE, client.hello(context::with_timeout(0), &hello)).await;
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
    fn a_lack_of_descriptors_is_not_the_guests() {
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
