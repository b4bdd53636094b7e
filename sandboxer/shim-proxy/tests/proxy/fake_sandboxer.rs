//! The sandboxer's side of control.sock.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bulkhead_protocol::pod::*;
use bulkhead_protocol::pod_ttrpc::{Pod, create_pod};
use bulkhead_protocol::version;
use tokio::sync::watch;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, get_status};

#[derive(Default)]
struct World {
    calls: Vec<String>,
    prepared: BTreeSet<String>,
    failing: Option<Code>,
    sockets: Vec<HostSocket>,
}

/// The service, as the test sees it; it outlives its server, as records outlive a sandboxer.
#[derive(Clone)]
pub(crate) struct FakeSandboxer {
    path: PathBuf,
    world: Arc<Mutex<World>>,
    held: watch::Sender<bool>,
    server: Arc<tokio::sync::Mutex<Option<Server>>>,
}

impl FakeSandboxer {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.into(),
            world: Arc::default(),
            held: watch::Sender::new(false),
            server: Arc::default(),
        }
    }

    /// Comes up.
    pub(crate) async fn start(&self) {
        let address = format!("unix://{}", self.path.display());
        let service = create_pod(Arc::new(self.clone()));
        let mut server = Server::new().bind(&address).unwrap().register_service(service);
        server.start().await.unwrap();
        *self.server.lock().await = Some(server);
    }

    /// Goes away, with its socket.
    pub(crate) async fn stop(&self) {
        if let Some(mut server) = self.server.lock().await.take() {
            server.shutdown().await.unwrap();
        }
        std::fs::remove_file(&self.path).unwrap();
    }

    /// PrepareContainer is not answered until it is let go.
    pub(crate) fn hold(&self, hold: bool) {
        self.held.send_replace(hold);
    }

    /// The next PrepareContainer fails.
    pub(crate) fn fail(&self, code: Code) {
        self.world.lock().unwrap().failing = Some(code);
    }

    /// Every container from now on has these.
    pub(crate) fn give(&self, sockets: Vec<HostSocket>) {
        self.world.lock().unwrap().sockets = sockets;
    }

    /// What has been called, in order, with the container.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.world.lock().unwrap().calls.clone()
    }

    /// Whose mounts it holds.
    pub(crate) fn prepared(&self) -> Vec<String> {
        self.world.lock().unwrap().prepared.iter().cloned().collect()
    }

    fn note(&self, call: &str, id: &str) {
        self.world.lock().unwrap().calls.push(format!("{call} {id}"));
    }
}

#[async_trait]
impl Pod for FakeSandboxer {
    async fn hello(&self, _: &TtrpcContext, _: Version) -> ttrpc::Result<Version> {
        Ok(version::pod_hello())
    }

    async fn prepare_container(
        &self,
        _: &TtrpcContext,
        request: PrepareContainerRequest,
    ) -> ttrpc::Result<PrepareContainerResponse> {
        assert_eq!(request.sandbox_id, "sandbox");
        self.note("prepare", &request.container_id);
        let mut held = self.held.subscribe();
        held.wait_for(|held| !held).await.unwrap();
        let mut world = self.world.lock().unwrap();
        if let Some(code) = world.failing.take() {
            return Err(ttrpc::Error::RpcStatus(get_status(code, "no such image layer")));
        }
        world.prepared.insert(request.container_id.clone());
        Ok(PrepareContainerResponse {
            guest_spec: b"{}".to_vec(),
            host_sockets: world.sockets.clone(),
            guest_rootfs: format!("/run/bulkhead/share/{}/rootfs", request.container_id),
            ..Default::default()
        })
    }

    async fn release_container(&self, _: &TtrpcContext, request: ContainerKey) -> ttrpc::Result<Nothing> {
        self.note("release", &request.container_id);
        self.world.lock().unwrap().prepared.remove(&request.container_id);
        Ok(Nothing::new())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<Nothing> {
        self.note("update", &request.container_id);
        Ok(Nothing::new())
    }

    async fn container_started(
        &self,
        _: &TtrpcContext,
        request: ContainerStartedRequest,
    ) -> ttrpc::Result<Nothing> {
        assert!(request.guest_pid > 0);
        self.note("started", &request.container_id);
        Ok(Nothing::new())
    }
}
