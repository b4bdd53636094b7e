//! Calls to the sandboxer: a connection for each, tried again while the sandboxer restarts.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_protocol::pod_ttrpc::PodClient;
use bulkhead_protocol::version;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::info;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::{Code, context};

use crate::error::TaskError;
use crate::runtime::backoff::Backoff;

/// Pauses between attempts.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));

/// The sandboxer, at its control socket.
#[derive(Debug)]
pub(crate) struct Sandboxer {
    /// Path of `control.sock`.
    pub(crate) path: PathBuf,
}

impl Sandboxer {
    /// Makes one call, and repeats it while the sandboxer is away. The sandboxer's calls are idempotent: a repeated
    /// call joins the one under way, or answers what that one did.
    ///
    /// # Errors
    /// `Sandboxer…` as named.
    pub(crate) async fn call<T, F, Answer>(
        &self,
        act: &'static str,
        until: Instant,
        make: F,
    ) -> Result<T, TaskError>
    where
        F: Fn(PodClient) -> Answer,
        Answer: Future<Output = ttrpc::Result<T>>,
    {
        let mut pauses = PAUSES;
        loop {
            let source = match timeout_at(until, self.call_once(&make)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(ttrpc::Error::RpcStatus(status))) if status.code() != Code::UNAVAILABLE => {
                    return Err(TaskError::SandboxerFailed { act, status });
                }
                Ok(Err(away)) => away,
                Err(_elapsed) => return Err(TaskError::SandboxerSilent { act }),
            };
            let long_away = pauses.is_exhausted();
            let next = Instant::now() + pauses.pause();
            if next >= until {
                return Err(TaskError::SandboxerUnreachable { act, path: self.path.clone(), source });
            }
            if long_away {
                info!(act, %source, "waiting for the sandboxer");
            }
            sleep_until(next).await;
        }
    }

    async fn call_once<T, F, Answer>(&self, make: &F) -> ttrpc::Result<T>
    where
        F: Fn(PodClient) -> Answer,
        Answer: Future<Output = ttrpc::Result<T>>,
    {
        let stream = UnixStream::connect(&self.path).await;
        let stream = stream.map_err(|error| ttrpc::Error::Socket(error.to_string()))?;
        let client = PodClient::new(Client::new(Socket::from(stream)));
        let theirs = client.hello(context::with_timeout(0), &version::pod_hello()).await?;
        version::negotiate(theirs.min_version, theirs.max_version)
            .map_err(|error| ttrpc::Error::RpcStatus(ttrpc::get_status(Code::FAILED_PRECONDITION, error)))?;
        make(client).await
    }
}
