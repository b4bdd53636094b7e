//! The ttrpc service: translate, do, translate.
//!
//! ttrpc drops a handler's future when its connection or the caller's deadline ends. What changes something
//! therefore runs as a task of its own to its end, and a call only waits for it.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use bulkhead_protocol::agent::{
    Empty, HelloRequest, HelloResponse, PingRequest, PingResponse, SetupRequest, SetupResponse,
    ShutdownRequest,
};
use bulkhead_protocol::agent_ttrpc::Agent;
use bulkhead_protocol::version;
use tokio::sync::watch;
use ttrpc::r#async::TtrpcContext;

use crate::pod::Pod;
use crate::server::Readiness;
use crate::status::CallError;
use crate::{announce, clock, shutdown};

/// Serves both callers.
pub(crate) struct AgentService {
    pod: Arc<Pod>,
    readiness: watch::Receiver<Readiness>,
}

impl AgentService {
    /// A service for this pod.
    pub(crate) fn new(pod: Arc<Pod>, readiness: watch::Receiver<Readiness>) -> Self {
        Self { pod, readiness }
    }

    /// Waits until the guest is far enough.
    async fn ready(&self, wanted: Readiness) {
        let mut readiness = self.readiness.clone();
        if readiness.wait_for(|now| *now >= wanted).await.is_err() {
            tracing::warn!(?wanted, "the rest of the boot did not finish, going on with what there is");
        }
    }
}

/// Runs a change to its end, whether or not the caller stays; a panic in it is the caller's INTERNAL.
async fn detached<T, E>(change: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T, CallError>
where
    T: Send + 'static,
    E: Into<CallError> + Send + 'static,
{
    match tokio::spawn(change).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => Err(CallError::Crashed(error)),
    }
}

#[async_trait]
impl Agent for AgentService {
    async fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> ttrpc::Result<HelloResponse> {
        let version =
            version::negotiate(request.min_version, request.max_version).map_err(CallError::from)?;
        tracing::debug!(peer = request.peer, version, "hello");
        Ok(HelloResponse {
            version,
            agent_build: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: announce::kernel_release(),
            ..Default::default()
        })
    }

    async fn setup(&self, _: &TtrpcContext, request: SetupRequest) -> ttrpc::Result<SetupResponse> {
        self.ready(Readiness::Setup).await;
        detached(Arc::clone(&self.pod).set_up(request)).await?;
        Ok(SetupResponse::default())
    }

    async fn ping(&self, _: &TtrpcContext, _: PingRequest) -> ttrpc::Result<PingResponse> {
        Ok(PingResponse { guest_time_nanos: clock::now_nanos(), ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        tokio::spawn(async { shutdown::power_off() });
        Ok(Empty::default())
    }
}
