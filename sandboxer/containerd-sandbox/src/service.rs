//! The nine calls: check, translate, ask, translate.

use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::sandbox::{
    ControllerCreateRequest, ControllerCreateResponse, ControllerMetricsRequest, ControllerMetricsResponse,
    ControllerPlatformRequest, ControllerPlatformResponse, ControllerShutdownRequest,
    ControllerShutdownResponse, ControllerStartRequest, ControllerStartResponse, ControllerStatusRequest,
    ControllerStatusResponse, ControllerStopRequest, ControllerStopResponse, ControllerUpdateRequest,
    ControllerUpdateResponse, ControllerWaitRequest, ControllerWaitResponse,
};
use containerd_client::types;
use tokio::sync::watch;
use tonic::{Request, Response};

use tonic::transport::server::UdsConnectInfo;

use crate::detached::{contained, detached, undone_if_unheard};
use crate::generated::controller_server::Controller;
use crate::time::{from_wire, to_wire};
use crate::traced::SANDBOX;
use crate::{Code, Create, Failure, Sandboxer, Step, Update, check_id};

/// gRPC metadata key of containerd's namespace (containerd, `pkg/namespaces/grpc.go`).
const NAMESPACE: &str = "containerd-namespace";

type Answer<T> = Result<Response<T>, tonic::Status>;

/// The server side of the API.
pub(crate) struct Service<S> {
    sandboxer: Arc<S>,
    /// True once the service ends.
    ending: watch::Receiver<bool>,
}

impl<S: Sandboxer> Service<S> {
    pub(crate) fn new(sandboxer: Arc<S>, ending: watch::Receiver<bool>) -> Self {
        Self { sandboxer, ending }
    }

    /// Runs Create or Start, undone if its client leaves.
    async fn make<T, F>(&self, id: String, step: Step, work: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let sandboxer = Arc::clone(&self.sandboxer);
        let undo = async move {
            tracing::info!(sandbox = id, ?step, "the client left before it was answered");
            sandboxer.abandoned(&id, step).await;
        };
        undone_if_unheard(work, undo).await
    }
}

#[async_trait::async_trait]
impl<S: Sandboxer> Controller for Service<S> {
    async fn create(&self, request: Request<ControllerCreateRequest>) -> Answer<ControllerCreateResponse> {
        let create = create_from_wire(request);
        checked(&create.id)?;
        let id = create.id.clone();
        let sandboxer = Arc::clone(&self.sandboxer);
        self.make(id.clone(), Step::Create, async move { sandboxer.create(create).await }).await?;
        Ok(Response::new(ControllerCreateResponse { sandbox_id: id }))
    }

    async fn start(&self, request: Request<ControllerStartRequest>) -> Answer<ControllerStartResponse> {
        let id = request.into_inner().sandbox_id;
        checked(&id)?;
        let (sandboxer, named) = (Arc::clone(&self.sandboxer), id.clone());
        let started =
            self.make(id.clone(), Step::Start, async move { sandboxer.start(&named).await }).await?;
        Ok(Response::new(ControllerStartResponse {
            sandbox_id: id,
            pid: started.pid,
            created_at: Some(to_wire(started.created_at)),
            labels: started.labels.into_iter().collect(),
            address: started.address,
            version: started.version,
        }))
    }

    async fn platform(
        &self,
        request: Request<ControllerPlatformRequest>,
    ) -> Answer<ControllerPlatformResponse> {
        let id = request.into_inner().sandbox_id;
        checked(&id)?;
        let platform = contained(self.sandboxer.platform(&id)).await?;
        let platform = types::Platform {
            os: platform.os,
            architecture: platform.architecture,
            variant: platform.variant,
            ..types::Platform::default()
        };
        Ok(Response::new(ControllerPlatformResponse { platform: Some(platform) }))
    }

    async fn stop(&self, request: Request<ControllerStopRequest>) -> Answer<ControllerStopResponse> {
        let ControllerStopRequest { sandbox_id: id, timeout_secs, .. } = request.into_inner();
        checked(&id)?;
        let timeout = (timeout_secs > 0).then(|| Duration::from_secs(timeout_secs.into()));
        let sandboxer = Arc::clone(&self.sandboxer);
        let stopped = detached(async move { sandboxer.stop(&id, timeout).await }).await;
        fine_if_unknown(stopped)?;
        Ok(Response::new(ControllerStopResponse {}))
    }

    async fn wait(&self, request: Request<ControllerWaitRequest>) -> Answer<ControllerWaitResponse> {
        let id = request.into_inner().sandbox_id;
        checked(&id)?;
        let mut ending = self.ending.clone();
        let exit = tokio::select! {
            biased;
            exit = contained(self.sandboxer.wait(&id)) => exit.map_err(only_wait_errors)?,
            _ = ending.wait_for(|ending| *ending) => {
                return Err(tonic::Status::unavailable("the sandboxer is ending; the sandbox goes on"));
            }
        };
        Ok(Response::new(ControllerWaitResponse {
            exit_status: exit.status,
            exited_at: Some(to_wire(exit.at)),
        }))
    }

    async fn status(&self, request: Request<ControllerStatusRequest>) -> Answer<ControllerStatusResponse> {
        let ControllerStatusRequest { sandbox_id: id, verbose, .. } = request.into_inner();
        checked(&id)?;
        let status = contained(self.sandboxer.status(&id, verbose)).await?;
        Ok(Response::new(ControllerStatusResponse {
            sandbox_id: id,
            pid: status.pid,
            state: status.state.as_str().to_owned(),
            info: status.info.into_iter().collect(),
            created_at: status.created_at.map(to_wire),
            exited_at: status.exited_at.map(to_wire),
            extra: None,
            address: status.address,
            version: status.version,
        }))
    }

    async fn shutdown(
        &self,
        request: Request<ControllerShutdownRequest>,
    ) -> Answer<ControllerShutdownResponse> {
        let id = request.into_inner().sandbox_id;
        checked(&id)?;
        let sandboxer = Arc::clone(&self.sandboxer);
        fine_if_unknown(detached(async move { sandboxer.shutdown(&id).await }).await)?;
        Ok(Response::new(ControllerShutdownResponse {}))
    }

    async fn metrics(&self, request: Request<ControllerMetricsRequest>) -> Answer<ControllerMetricsResponse> {
        let id = request.into_inner().sandbox_id;
        checked(&id)?;
        let metric = contained(self.sandboxer.metrics(&id)).await?;
        let metric = types::Metric { timestamp: Some(to_wire(metric.at)), id, data: Some(metric.data) };
        Ok(Response::new(ControllerMetricsResponse { metrics: Some(metric) }))
    }

    async fn update(&self, request: Request<ControllerUpdateRequest>) -> Answer<ControllerUpdateResponse> {
        let ControllerUpdateRequest { sandbox_id: id, sandbox, fields, .. } = request.into_inner();
        checked(&id)?;
        let extensions = sandbox.unwrap_or_default().extensions.into_iter().collect();
        let sandboxer = Arc::clone(&self.sandboxer);
        detached(async move { sandboxer.update(Update { id, fields, extensions }).await }).await?;
        Ok(Response::new(ControllerUpdateResponse {}))
    }
}

/// Checks an id, and has it in the call's span.
fn checked(id: &str) -> Result<(), Failure> {
    check_id(id)?;
    tracing::Span::current().record(SANDBOX, id);
    Ok(())
}

fn create_from_wire(request: Request<ControllerCreateRequest>) -> Create {
    let namespace =
        request.metadata().get(NAMESPACE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let namespace = namespace.to_owned();
    let caller = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    let request = request.into_inner();
    let sandbox = request.sandbox.unwrap_or_default();
    Create {
        id: request.sandbox_id,
        namespace,
        caller_pid: caller.and_then(|caller| caller.pid()),
        options: request.options,
        netns_path: (!request.netns_path.is_empty()).then(|| request.netns_path.into()),
        runtime: sandbox.runtime.map(|runtime| runtime.name).unwrap_or_default(),
        created_at: from_wire(sandbox.created_at.as_ref()),
        labels: sandbox.labels.into_iter().collect(),
        extensions: sandbox.extensions.into_iter().collect(),
    }
}

/// containerd repeats Stop and Shutdown until they succeed: an id nobody knows needs neither.
fn fine_if_unknown(result: Result<(), Failure>) -> Result<(), Failure> {
    match result {
        Err(failure) if failure.code == Code::NotFound => Ok(()),
        Ok(()) | Err(_) => result,
    }
}

/// containerd takes any error of Wait but `Unavailable` for the end of the sandbox. Only "there is none" is that.
fn only_wait_errors(failure: Failure) -> Failure {
    if failure.code == Code::NotFound { failure } else { Failure::new(Code::Unavailable, failure.message) }
}
