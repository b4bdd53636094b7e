//! The ttrpc service: translates calls and answers, and calls the other modules.
//!
//! ttrpc drops a handler's future when its connection or the caller's deadline ends. So every call that changes
//! something runs as a task of its own to its end, and the handler only waits for it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bulkhead_protocol::agent::{
    ContainerRef, CreateContainerRequest, CreateContainerResponse, CreateExecRequest, Empty, GrowRequest,
    GrowResponse, HelloRequest, HelloResponse, PidsResponse, PingRequest, PingResponse, ProcessRef,
    ResizePtyRequest, SetupRequest, SetupResponse, ShutdownRequest, SignalRequest, StartResponse,
    StatsResponse, UpdateRequest, WaitOomRequest, WaitOomResponse, WaitResponse,
};
use bulkhead_protocol::agent_ttrpc::Agent;
use bulkhead_protocol::error::chain;
use bulkhead_protocol::{FEATURE_DISKS, FEATURE_MEMORY_VOLUMES, FEATURE_RESIZE, version};
use tokio::sync::watch;
use ttrpc::r#async::TtrpcContext;

use super::Readiness;
use super::status::CallError;
use crate::container::{ContainerError, Containers};
use crate::pod::Pod;

use crate::hotplug::resize;
use crate::kernel::clock;
use crate::kernel::power;
use crate::vsock::announce;

/// The service, for both callers.
pub(crate) struct AgentService {
    pod: Arc<Pod>,
    containers: Arc<Containers>,
    readiness: watch::Receiver<Readiness>,
}

impl AgentService {
    /// A service for this pod and its containers.
    pub(crate) fn new(
        pod: Arc<Pod>,
        containers: Arc<Containers>,
        readiness: watch::Receiver<Readiness>,
    ) -> Self {
        Self { pod, containers, readiness }
    }

    /// Waits until the boot has come as far as `wanted`.
    async fn ready(&self, wanted: Readiness) {
        let mut readiness = self.readiness.clone();
        if readiness.wait_for(|now| *now >= wanted).await.is_err() {
            tracing::warn!(?wanted, "the rest of the boot did not finish, going on with what there is");
        }
    }

    fn containers(&self) -> Arc<Containers> {
        Arc::clone(&self.containers)
    }
}

fn to_status<T>(result: Result<T, ContainerError>) -> ttrpc::Result<T> {
    result.map_err(|error| CallError::from(error).into())
}

/// Runs a change to its end even if the caller goes away. A panic in it is answered with INTERNAL.
async fn run_detached<T, E>(
    change: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, CallError>
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
            features: [FEATURE_DISKS, FEATURE_RESIZE, FEATURE_MEMORY_VOLUMES].map(ToOwned::to_owned).into(),
            ..Default::default()
        })
    }

    async fn setup(&self, _: &TtrpcContext, request: SetupRequest) -> ttrpc::Result<SetupResponse> {
        self.ready(Readiness::Setup).await;
        run_detached(Arc::clone(&self.pod).set_up(request)).await?;
        Ok(SetupResponse::default())
    }

    async fn ping(&self, _: &TtrpcContext, request: PingRequest) -> ttrpc::Result<PingResponse> {
        if let Err(error) = clock::adjust(request.adjust_clock_nanos) {
            tracing::warn!(error = %chain(&error), "the clock stays wrong");
        }
        Ok(PingResponse { guest_time_nanos: clock::now_nanos(), ..Default::default() })
    }

    async fn grow(&self, _: &TtrpcContext, request: GrowRequest) -> ttrpc::Result<GrowResponse> {
        Ok(run_detached(resize::resize(request)).await?)
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        let grace = Duration::from_millis(request.grace_millis.into());
        let containers = self.containers();
        tokio::spawn(async move {
            containers.end_all(grace).await;
            power::power_off();
        });
        Ok(Empty::default())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        self.ready(Readiness::Setup).await;
        let pid = run_detached(self.containers().create(request)).await?;
        Ok(CreateContainerResponse { pid, ..Default::default() })
    }

    async fn create_exec(&self, _: &TtrpcContext, request: CreateExecRequest) -> ttrpc::Result<Empty> {
        run_detached(self.containers().add_exec(request)).await?;
        Ok(Empty::default())
    }

    async fn start(&self, _: &TtrpcContext, request: ProcessRef) -> ttrpc::Result<StartResponse> {
        let pid = run_detached(self.containers().start(request.container_id, request.exec_id)).await?;
        Ok(StartResponse { pid, ..Default::default() })
    }

    async fn wait(&self, _: &TtrpcContext, request: ProcessRef) -> ttrpc::Result<WaitResponse> {
        let ended = to_status(self.containers.wait(&request.container_id, &request.exec_id).await)?;
        Ok(WaitResponse {
            exit_status: ended.status,
            exited_at_nanos: ended.at_nanos,
            oom_killed: ended.oom_killed,
            ..Default::default()
        })
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        let SignalRequest { container_id, exec_id, signal, all, .. } = request;
        to_status(self.containers.signal(&container_id, &exec_id, signal, all))?;
        Ok(Empty::default())
    }

    async fn delete(&self, _: &TtrpcContext, request: ProcessRef) -> ttrpc::Result<Empty> {
        run_detached(self.containers().delete(request.container_id, request.exec_id)).await?;
        Ok(Empty::default())
    }

    async fn pids(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<PidsResponse> {
        let pids = to_status(self.containers.pids(&request.container_id))?;
        Ok(PidsResponse { pids, ..Default::default() })
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> ttrpc::Result<Empty> {
        to_status(self.containers.update(&request.container_id, &request.resources))?;
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let ResizePtyRequest { container_id, exec_id, width, height, .. } = request;
        to_status(self.containers.resize(&container_id, &exec_id, width, height))?;
        Ok(Empty::default())
    }

    async fn stats(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<StatsResponse> {
        to_status(self.containers.stats(&request.container_id))
    }

    async fn wait_oom(&self, _: &TtrpcContext, request: WaitOomRequest) -> ttrpc::Result<WaitOomResponse> {
        let count = to_status(self.containers.wait_oom(&request.container_id, request.seen).await)?;
        Ok(WaitOomResponse { count, ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        run_detached(self.containers().pause(request.container_id)).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        run_detached(self.containers().resume(request.container_id)).await?;
        Ok(Empty::default())
    }
}
