//! The sandboxer's Controller API spoken directly, for what containerd itself would never send.

use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::sandbox::controller_client::ControllerClient;
use containerd_client::services::v1::sandbox::{self as api};
use containerd_client::types::{Sandbox, sandbox::Runtime};
use k8s_cri::v1::PodSandboxConfig;
use prost::Message;
use prost_types::Any;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::{cri, wait};

/// Type URL containerd gives the pod's configuration.
pub const POD_CONFIG: &str = "runtime.v1.PodSandboxConfig";

/// A client of one sandboxer.
#[derive(Debug, Clone)]
pub struct Controller(ControllerClient<Channel>);

/// containerd's namespace of everything that CRI makes.
const CRI_NAMESPACE: &str = "k8s.io";

impl Controller {
    /// Connects on first use.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self(ControllerClient::new(cri::channel(socket)))
    }

    /// A Create as containerd's CRI writes it.
    #[must_use]
    pub fn create_request(id: &str, netns: &str, config: &PodSandboxConfig) -> api::ControllerCreateRequest {
        let now = prost_types::Timestamp::from(std::time::SystemTime::now());
        api::ControllerCreateRequest {
            sandbox_id: id.to_owned(),
            options: Some(Any { type_url: POD_CONFIG.into(), value: config.encode_to_vec() }),
            netns_path: netns.to_owned(),
            sandbox: Some(Sandbox {
                sandbox_id: id.to_owned(),
                runtime: Some(Runtime { name: "io.containerd.bulkhead.v2".into(), options: None }),
                created_at: Some(now),
                updated_at: Some(now),
                sandboxer: "bulkhead".into(),
                ..Default::default()
            }),
            sandboxer: "bulkhead".into(),
            ..Default::default()
        }
    }

    /// Create.
    pub async fn create(&self, request: api::ControllerCreateRequest) -> Result<(), Status> {
        self.create_in(CRI_NAMESPACE, request).await
    }

    /// Create in another namespace of containerd.
    pub async fn create_in(
        &self,
        namespace: &str,
        request: api::ControllerCreateRequest,
    ) -> Result<(), Status> {
        self.0.clone().create(within_namespace(namespace, request)).await.map(drop)
    }

    /// Start.
    pub async fn start(&self, id: &str) -> Result<api::ControllerStartResponse, Status> {
        let request = api::ControllerStartRequest { sandbox_id: id.to_owned(), sandboxer: "bulkhead".into() };
        self.0.clone().start(within(request)).await.map(tonic::Response::into_inner)
    }

    /// Stop.
    pub async fn stop(&self, id: &str) -> Result<(), Status> {
        let request = api::ControllerStopRequest {
            sandbox_id: id.to_owned(),
            sandboxer: "bulkhead".into(),
            ..Default::default()
        };
        self.0.clone().stop(within(request)).await.map(drop)
    }

    /// Status, verbose.
    pub async fn status(&self, id: &str) -> Result<api::ControllerStatusResponse, Status> {
        let request = api::ControllerStatusRequest {
            sandbox_id: id.to_owned(),
            verbose: true,
            sandboxer: "bulkhead".into(),
        };
        self.0.clone().status(within(request)).await.map(tonic::Response::into_inner)
    }

    /// Wait.
    pub async fn wait(&self, id: &str) -> Result<api::ControllerWaitResponse, Status> {
        let request = api::ControllerWaitRequest { sandbox_id: id.to_owned(), sandboxer: "bulkhead".into() };
        self.0.clone().wait(within(request)).await.map(tonic::Response::into_inner)
    }

    /// Shutdown.
    pub async fn shutdown(&self, id: &str) -> Result<(), Status> {
        let request =
            api::ControllerShutdownRequest { sandbox_id: id.to_owned(), sandboxer: "bulkhead".into() };
        self.0.clone().shutdown(within(request)).await.map(drop)
    }

    /// Platform.
    pub async fn platform(&self, id: &str) -> Result<api::ControllerPlatformResponse, Status> {
        let request =
            api::ControllerPlatformRequest { sandbox_id: id.to_owned(), sandboxer: "bulkhead".into() };
        self.0.clone().platform(within(request)).await.map(tonic::Response::into_inner)
    }

    /// Update, with the pod's new resources as containerd 2.3 sends them.
    pub async fn update(&self, id: &str, resources: &str) -> Result<(), Status> {
        let resources = Any {
            type_url: "io.containerd.cri.v1/UpdatedResources".into(),
            value: format!(r#"{{"Overhead":null,"Resources":{resources}}}"#).into_bytes(),
        };
        let request = api::ControllerUpdateRequest {
            sandbox_id: id.to_owned(),
            sandbox: Some(Sandbox {
                sandbox_id: id.to_owned(),
                extensions: [("updated-resources".to_owned(), resources)].into(),
                ..Default::default()
            }),
            fields: vec!["extensions".into()],
            // containerd's proxy leaves out whose it is.
            ..Default::default()
        };
        self.0.clone().update(within(request)).await.map(drop)
    }

    /// Metrics.
    pub async fn metrics(&self, id: &str) -> Result<api::ControllerMetricsResponse, Status> {
        let request =
            api::ControllerMetricsRequest { sandbox_id: id.to_owned(), sandboxer: "bulkhead".into() };
        self.0.clone().metrics(within(request)).await.map(tonic::Response::into_inner)
    }
}

fn within<T>(message: T) -> Request<T> {
    within_namespace(CRI_NAMESPACE, message)
}

fn within_namespace<T>(namespace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(wait::patiently(Duration::from_secs(120)));
    request.metadata_mut().insert("containerd-namespace", namespace.parse().expect("a plain word"));
    request
}

/// An id as containerd makes them: 64 hexadecimal digits, here from `seed`.
#[must_use]
pub fn sandbox_id(seed: u64) -> String {
    format!("{seed:064x}")
}
