//! What the shim proxies ask for: the Pod service on `control.sock`.
//!
//! ttrpc drops a handler with its connection, so everything that changes something runs in a task of its own.

use std::future::Future;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use async_trait::async_trait;
use bulkhead_protocol::pod::{
    ContainerKey, ContainerStartedRequest, HostSocket, Nothing, PrepareContainerRequest,
    PrepareContainerResponse, UpdateContainerRequest, Version,
};
use bulkhead_protocol::pod_ttrpc::{Pod, create_pod};
use bulkhead_protocol::version;
use containerd_sandbox::{Code, Failure, incoming};
use protobuf::Message;
use tokio::net::UnixListener;
use tracing::Instrument;
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, TtrpcContext};
use vmm_actors::Sandboxes;
use vmm_actors::containers::ContainerRequest;
use vmm_actors::id::{ContainerId, SandboxId};
use vmm_actors::mounts::RootfsMount;
use vmm_actors::sandbox::SandboxError;

use crate::status::{failure, invalid, ttrpc};
use crate::traces;

/// Serves the shim proxies until the server is shut down or dropped.
///
/// # Errors
/// What ttrpc says when it cannot begin.
pub(crate) async fn serve(sandboxes: Sandboxes, listener: UnixListener) -> ttrpc::Result<Server> {
    let service: Arc<dyn Pod + Send + Sync> = Arc::new(Traced(Pods { sandboxes }));
    let listener = Listener::new(incoming(listener));
    let mut server = Server::new().add_listener(listener).register_service(create_pod(service));
    server.start().await?;
    Ok(server)
}

#[derive(Debug)]
struct Pods {
    sandboxes: Sandboxes,
}

#[async_trait]
impl Pod for Pods {
    async fn hello(&self, _: &TtrpcContext, peer: Version) -> ttrpc::Result<Version> {
        let common = version::negotiate(peer.min_version, peer.max_version).map_err(|error| {
            let text = format!("{error}; the shim proxy is of another release");
            ttrpc(Failure::new(Code::FailedPrecondition, text))
        })?;
        tracing::debug!(build = peer.build, version = common, "a shim proxy says hello");
        Ok(version::pod_hello())
    }

    async fn prepare_container(
        &self,
        _: &TtrpcContext,
        request: PrepareContainerRequest,
    ) -> ttrpc::Result<PrepareContainerResponse> {
        const CALL: &str = "prepare container";
        let (sandbox, container) = ids(CALL, &request.sandbox_id, &request.container_id)?;
        let sandboxes = self.sandboxes.clone();
        let request = container_request(container, request);
        let prepared =
            detached(CALL, async move { sandboxes.prepare_container(&sandbox, request).await }).await?;
        let unwritable = |error: protobuf::Error| {
            ttrpc(Failure::new(Code::Internal, format!("a volume cannot be described to the guest: {error}")))
        };
        Ok(PrepareContainerResponse {
            guest_spec: prepared.spec,
            guest_rootfs: prepared.rootfs,
            host_sockets: prepared.sockets.into_iter().map(host_socket).collect(),
            guest_disks: for_agent(&prepared.disks).map_err(unwritable)?,
            guest_memory_volumes: for_agent(&prepared.memory).map_err(unwritable)?,
            ..Default::default()
        })
    }

    async fn release_container(&self, _: &TtrpcContext, key: ContainerKey) -> ttrpc::Result<Nothing> {
        const CALL: &str = "release container";
        let (sandbox, container) = ids(CALL, &key.sandbox_id, &key.container_id)?;
        let sandboxes = self.sandboxes.clone();
        detached(CALL, async move { sandboxes.release_container(&sandbox, container).await }).await?;
        Ok(Nothing::default())
    }

    /// The host bounds the pod as a whole, and CRI changes that through the Controller's Update: of one container
    /// there is nothing to change here. The sandbox must exist, so that a slip in the ids is not taken for success.
    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<Nothing> {
        const CALL: &str = "update container";
        let (sandbox, _) = ids(CALL, &request.sandbox_id, &request.container_id)?;
        let known = self.sandboxes.status(&sandbox).await;
        known.map(|_| Nothing::default()).map_err(|error| ttrpc(failure(CALL, &error)))
    }

    async fn container_started(
        &self,
        _: &TtrpcContext,
        request: ContainerStartedRequest,
    ) -> ttrpc::Result<Nothing> {
        const CALL: &str = "container started";
        let (sandbox, container) = ids(CALL, &request.sandbox_id, &request.container_id)?;
        let sandboxes = self.sandboxes.clone();
        let started =
            async move { sandboxes.container_started(&sandbox, container, request.guest_pid).await };
        detached(CALL, started).await?;
        Ok(Nothing::default())
    }
}

/// The same, each call but the greeting of a connection within a span.
#[derive(Debug)]
struct Traced(Pods);

#[async_trait]
impl Pod for Traced {
    async fn hello(&self, context: &TtrpcContext, peer: Version) -> ttrpc::Result<Version> {
        self.0.hello(context, peer).await
    }

    async fn prepare_container(
        &self,
        context: &TtrpcContext,
        request: PrepareContainerRequest,
    ) -> ttrpc::Result<PrepareContainerResponse> {
        let ids = (request.sandbox_id.clone(), request.container_id.clone());
        let answer = self.0.prepare_container(context, request);
        traces::of_shim_proxy(context, "PrepareContainer", ids, answer).await
    }

    async fn release_container(&self, context: &TtrpcContext, key: ContainerKey) -> ttrpc::Result<Nothing> {
        let ids = (key.sandbox_id.clone(), key.container_id.clone());
        let answer = self.0.release_container(context, key);
        traces::of_shim_proxy(context, "ReleaseContainer", ids, answer).await
    }

    async fn update_container(
        &self,
        context: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<Nothing> {
        let ids = (request.sandbox_id.clone(), request.container_id.clone());
        let answer = self.0.update_container(context, request);
        traces::of_shim_proxy(context, "UpdateContainer", ids, answer).await
    }

    async fn container_started(
        &self,
        context: &TtrpcContext,
        request: ContainerStartedRequest,
    ) -> ttrpc::Result<Nothing> {
        let ids = (request.sandbox_id.clone(), request.container_id.clone());
        let answer = self.0.container_started(context, request);
        traces::of_shim_proxy(context, "ContainerStarted", ids, answer).await
    }
}

/// Messages of the agent's contract, as the shim proxy hands them on.
fn for_agent<M: Message>(messages: &[M]) -> protobuf::Result<Vec<Vec<u8>>> {
    messages.iter().map(Message::write_to_bytes).collect()
}

/// Runs to the end, caller or no caller.
async fn detached<T: Send + 'static>(
    call: &'static str,
    work: impl Future<Output = Result<T, SandboxError>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(work.in_current_span()).await {
        Ok(result) => result.map_err(|error| ttrpc(failure(call, &error))),
        Err(error) => {
            tracing::error!(call, %error, "a call panicked");
            Err(ttrpc(Failure::new(Code::Internal, format!("the sandboxer met a bug in {call}"))))
        }
    }
}

fn ids(call: &'static str, sandbox: &str, container: &str) -> ttrpc::Result<(SandboxId, ContainerId)> {
    let sandbox = SandboxId::new(sandbox).map_err(|error| ttrpc(invalid(call, error.to_string())))?;
    let container = ContainerId::new(container).map_err(|error| ttrpc(invalid(call, error.to_string())))?;
    Ok((sandbox, container))
}

fn container_request(id: ContainerId, request: PrepareContainerRequest) -> ContainerRequest {
    let rootfs = request.rootfs.into_iter().map(|mount| RootfsMount {
        kind: mount.type_,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    });
    ContainerRequest {
        id,
        bundle: request.bundle.into(),
        rootfs: rootfs.collect(),
        stdio: [request.stdin, request.stdout, request.stderr],
    }
}

fn host_socket(socket: vmm_actors::mounts::HostSocket) -> HostSocket {
    HostSocket {
        number: socket.number,
        path: socket.path.into_os_string().into_vec(),
        uid: socket.uid,
        gid: socket.gid,
        mode: socket.mode,
        ..Default::default()
    }
}
