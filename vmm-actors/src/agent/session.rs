//! One connection to the guest's agent.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use bulkhead_protocol::AGENT_PORT;
use bulkhead_protocol::agent::{PingRequest, SetupRequest, ShutdownRequest};
use bulkhead_protocol::agent_ttrpc::AgentClient;
use bulkhead_protocol::version::agent_hello;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use ttrpc::r#async::{Client, transport::Socket};
use ttrpc::context::{Context, with_duration};

use super::{AgentError, Guest, dial};

/// How long Hello may take. A guest that has announced itself serves already.
const HELLO_WITHIN: Duration = Duration::from_secs(20);
/// How long becoming a pod may take: mounts, addresses, duplicate address detection.
const SETUP_WITHIN: Duration = Duration::from_secs(30);
/// What the answer to Shutdown may take beyond the grace of the containers.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(2);

/// A session with Hello behind it. Clones share the connection.
#[derive(Clone)]
pub struct Session {
    client: AgentClient,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}

impl Session {
    /// Dials the agent behind `vsock` and shakes hands.
    ///
    /// # Errors
    /// [`AgentError::Dial`], or [`AgentError::Call`] when Hello fails.
    pub async fn open(vsock: &Path) -> Result<(Self, Guest), AgentError> {
        let failed = |source| AgentError::Dial { socket: vsock.to_owned(), source };
        Self::over(dial(vsock, AGENT_PORT).await.map_err(failed)?).await
    }

    /// Shakes hands over a connection to the agent.
    ///
    /// # Errors
    /// [`AgentError::Call`] when Hello fails.
    pub async fn over<S>(stream: S) -> Result<(Self, Guest), AgentError>
    where
        S: AsyncRead + AsyncWrite + Send + Sync + 'static,
    {
        let client = AgentClient::new(Client::new(Socket::new(stream)));
        let hello = client.hello(with_duration(HELLO_WITHIN), &agent_hello("sandboxer")).await;
        let hello = hello.map_err(|source| AgentError::Call { call: "Hello", source })?;
        let guest = Guest {
            version: hello.version,
            agent_build: hello.agent_build,
            kernel_release: hello.kernel_release,
            features: hello.features,
            booted_in: None,
        };
        Ok((Self { client }, guest))
    }

    /// Makes the guest a pod.
    ///
    /// # Errors
    /// [`AgentError::Call`] with what the guest says.
    pub async fn setup(&self, request: &SetupRequest) -> Result<(), AgentError> {
        let done = self.client.setup(with_duration(SETUP_WITHIN), request).await;
        done.map(|_| ()).map_err(|source| AgentError::Call { call: "Setup", source })
    }

    /// A sign of life, within `within`; answers how long it took.
    ///
    /// # Errors
    /// [`AgentError::Call`] when none comes.
    pub async fn ping(&self, within: Duration) -> Result<Duration, AgentError> {
        let asked = Instant::now();
        let context: Context = with_duration(within);
        let pong = self.client.ping(context, &PingRequest::default()).await;
        pong.map(|_| asked.elapsed()).map_err(|source| AgentError::Call { call: "Ping", source })
    }

    /// Asks the guest to power off, its containers having `grace`. A connection that ends instead of an answer is one:
    /// the guest went faster than its word.
    ///
    /// # Errors
    /// [`AgentError::Call`] with what the guest says.
    pub async fn shutdown(&self, grace: Duration) -> Result<(), AgentError> {
        let grace_millis = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        let request = ShutdownRequest { grace_millis, ..ShutdownRequest::default() };
        let heard =
            self.client.shutdown(with_duration(grace.saturating_add(SHUTDOWN_MARGIN)), &request).await;
        match heard.map_err(|source| AgentError::Call { call: "Shutdown", source }) {
            Err(error) if error.is_broken_connection() => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }
}
