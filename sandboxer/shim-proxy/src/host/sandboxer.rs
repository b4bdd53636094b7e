//! The link to the sandboxer: a connection for each call, which waits out a restart of the sandboxer.

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

/// Pause between attempts, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Where the sandboxer listens.
#[derive(Debug)]
pub(crate) struct Control {
    /// Path of `control.sock`.
    pub(crate) path: PathBuf,
}

impl Control {
    /// Makes one call, again and again while the sandboxer is away. Its calls are idempotent: a repeat joins what
    /// is under way or finds it done.
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
        let mut pause = PAUSES.0;
        loop {
            let source = match timeout_at(until, self.once(&make)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(ttrpc::Error::RpcStatus(status))) if status.code() != Code::UNAVAILABLE => {
                    return Err(TaskError::SandboxerFailed { act, status });
                }
                Ok(Err(away)) => away,
                Err(_elapsed) => return Err(TaskError::SandboxerSilent { act }),
            };
            if Instant::now() + pause >= until {
                return Err(TaskError::SandboxerUnreachable { act, path: self.path.clone(), source });
            }
            if pause == PAUSES.1 {
                info!(act, %source, "waiting for the sandboxer");
            }
            sleep_until(Instant::now() + pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn once<T, F, Answer>(&self, make: &F) -> ttrpc::Result<T>
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
