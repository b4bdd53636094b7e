//! One connection to the guest's agent.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bulkhead_protocol::agent::{GrowRequest, PingRequest, SetupRequest, ShutdownRequest};
use bulkhead_protocol::agent_ttrpc::AgentClient;
use bulkhead_protocol::hybrid_vsock::dial;
use bulkhead_protocol::version::agent_hello;
use bulkhead_protocol::{AGENT_PORT, untrusted};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use ttrpc::r#async::{Client, transport::Socket};
use ttrpc::context::{Context, with_duration};

use super::{AgentError, Capacity, Guest, clock};

/// How long the connection may take, and then Hello. A guest that has announced itself serves already.
const HELLO_WITHIN: Duration = Duration::from_secs(20);
/// How long becoming a pod may take: mounts, addresses, duplicate address detection.
const SETUP_WITHIN: Duration = Duration::from_secs(30);
/// How long a guest may take to use what its VM was given.
const GROW_WITHIN: Duration = Duration::from_secs(15);
/// What the answer may take beyond that: a module is loaded.
const GROW_MARGIN: Duration = Duration::from_secs(10);
/// What the answer to Shutdown may take beyond the grace of the containers.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(2);

/// Most features of an agent that are kept: there are a handful.
const MAX_FEATURES: usize = 64;

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
        Self::over(dial(vsock, AGENT_PORT, HELLO_WITHIN).await.map_err(failed)?).await
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
        let request = agent_hello("sandboxer");
        let hello = client.hello(context(HELLO_WITHIN), &request);
        let hello = answered("Hello", HELLO_WITHIN, hello).await?;
        let guest = Guest {
            version: hello.version,
            agent_build: untrusted::text(&hello.agent_build),
            kernel_release: untrusted::text(&hello.kernel_release),
            features: hello.features.iter().take(MAX_FEATURES).map(|each| untrusted::text(each)).collect(),
            booted_in: None,
        };
        Ok((Self { client }, guest))
    }

    /// Makes the guest a pod.
    ///
    /// # Errors
    /// [`AgentError::Call`] with what the guest says.
    pub async fn setup(&self, request: &SetupRequest) -> Result<(), AgentError> {
        let done = self.client.setup(context(SETUP_WITHIN), request);
        answered("Setup", SETUP_WITHIN, done).await.map(|_| ())
    }

    /// Asks what the guest uses, or has it use `to` and waits until it does.
    ///
    /// # Errors
    /// [`AgentError::NotTaken`] when it uses less, [`AgentError::Call`] with what the guest says.
    pub async fn grow(&self, to: Option<Capacity>) -> Result<Capacity, AgentError> {
        let request = GrowRequest {
            cpus: to.map_or(0, |to| to.cpus),
            memory_bytes: to.map_or(0, |to| to.memory_bytes),
            wait_millis: u32::try_from(GROW_WITHIN.as_millis()).unwrap_or(u32::MAX),
            ..GrowRequest::default()
        };
        let within = GROW_WITHIN.saturating_add(GROW_MARGIN);
        let grown = answered("Grow", within, self.client.grow(context(within), &request)).await?;
        let has = Capacity { cpus: grown.cpus, memory_bytes: grown.memory_bytes };
        match to {
            Some(wanted) if has.cpus < wanted.cpus || has.memory_bytes < wanted.memory_bytes => {
                let refused = untrusted::text(&grown.refused);
                let refused = if refused.is_empty() { refused } else { format!(": {refused}") };
                Err(AgentError::NotTaken { wanted, has, refused })
            }
            Some(_) | None => Ok(has),
        }
    }

    /// A sign of life, within `within`; answers how long it took.
    ///
    /// # Errors
    /// [`AgentError::CallTimedOut`] or [`AgentError::Call`] when none comes.
    pub async fn ping(&self, within: Duration) -> Result<Duration, AgentError> {
        let asked = Instant::now();
        self.ask_time(within, 0).await.map(|_| asked.elapsed())
    }

    /// A sign of life within `within`, and a guest whose clock is the host's again: it runs by another crystal than
    /// the host's time service knows, stands still while its VM does, and a container may set it.
    ///
    /// # Errors
    /// [`AgentError::CallTimedOut`] or [`AgentError::Call`] when no answer comes.
    pub async fn keep_time(&self, within: Duration) -> Result<(), AgentError> {
        let (now, asked) = (SystemTime::now(), Instant::now());
        let guest = self.ask_time(within, 0).await?;
        match clock::turn(now, asked.elapsed(), guest) {
            0 => Ok(()),
            by_nanos => self.ask_time(within, by_nanos).await.map(drop),
        }
    }

    /// The guest's time in nanoseconds since the epoch, once its clock has been turned by `by_nanos`.
    async fn ask_time(&self, within: Duration, by_nanos: i64) -> Result<i64, AgentError> {
        let request = PingRequest { adjust_clock_nanos: by_nanos, ..PingRequest::default() };
        let pong = self.client.ping(context(within), &request);
        answered("Ping", within, pong).await.map(|pong| pong.guest_time_nanos)
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
        match heard.map_err(|source| AgentError::Call { call: "Shutdown", source: bounded(source) }) {
            Err(error) if error.is_broken_connection() => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }
}

/// A refusal in the guest's words, as long as a log line may be.
fn bounded(mut error: ttrpc::Error) -> ttrpc::Error {
    if let ttrpc::Error::RpcStatus(status) = &mut error {
        status.message = untrusted::text(&status.message);
        status.details.clear();
    }
    error
}

/// The deadline that the guest is told: a little later than ours, which decides.
fn context(within: Duration) -> Context {
    with_duration(within.saturating_add(Duration::from_secs(1)))
}

/// Waits for an answer. The deadline is kept here, because ttrpc's own end of patience cannot be told from a broken
/// connection.
async fn answered<T>(
    call: &'static str,
    within: Duration,
    answer: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, AgentError> {
    match tokio::time::timeout(within, answer).await {
        Ok(answer) => answer.map_err(|source| AgentError::Call { call, source: bounded(source) }),
        Err(_elapsed) => Err(AgentError::CallTimedOut { call, after: within }),
    }
}
