//! The kubelet's side of CRI.

mod containers;
mod pods;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{self as api};
use tokio::net::UnixStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::logs::Log;
use crate::wait;

/// How long one CRI call may take; a VM without KVM on a busy machine is slow.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// A client of one node's containerd.
#[derive(Debug)]
pub struct Cri {
    channel: Channel,
    pods: PathBuf,
    handler: String,
    cgroup_parent: String,
}

/// A pod that was asked for.
#[derive(Debug, Clone)]
pub struct Pod {
    /// containerd's sandbox id.
    pub id: String,
    /// What it was asked for with.
    pub config: api::PodSandboxConfig,
    /// The pod's cgroup made the way kubelet does; `None` when the pod names no parent.
    pub cgroup: Option<String>,
}

/// A container that was asked for.
#[derive(Debug, Clone)]
pub struct Container {
    /// containerd's container id.
    pub id: String,
    /// Its log file.
    pub log: PathBuf,
}

impl Container {
    /// What it has written so far.
    #[must_use]
    pub fn log(&self) -> Log {
        Log::read(&self.log)
    }
}

/// A volume of a container: a directory or file of the node, writable, without what is mounted later.
#[must_use]
pub fn mount(host: &Path, container: &str) -> api::Mount {
    api::Mount {
        host_path: host.display().to_string(),
        container_path: container.into(),
        ..Default::default()
    }
}

/// A unix socket as gRPC channel, connected on first use and again after a loss.
#[must_use]
pub fn channel(socket: &Path) -> Channel {
    let socket = socket.to_path_buf();
    Endpoint::from_static("http://node").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    }))
}

/// A request with the usual deadline.
pub(crate) fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(wait::patiently(DEADLINE));
    request
}

impl Cri {
    pub(crate) fn new(dir: &Path, handler: &str, cgroup_parent: &str) -> Self {
        Self {
            channel: channel(&dir.join("c.sock")),
            pods: dir.join("pods"),
            handler: handler.to_owned(),
            cgroup_parent: cgroup_parent.to_owned(),
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The plain client, for calls not wrapped here.
    #[must_use]
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn network_ready(&self) -> bool {
        let Ok(status) = self.runtime().status(within(api::StatusRequest { verbose: false })).await else {
            return false;
        };
        let conditions = status.into_inner().status.map(|status| status.conditions).unwrap_or_default();
        !conditions.is_empty()
            && conditions
                .iter()
                .filter(|one| one.r#type != "ContainerdHasNoDeprecationWarnings")
                .all(|one| one.status)
    }

    pub(crate) async fn has_image(&self, name: &str) -> bool {
        let spec = api::ImageSpec { image: name.to_owned(), ..Default::default() };
        let request = within(api::ImageStatusRequest { image: Some(spec), verbose: false });
        let answer = ImageServiceClient::new(self.channel.clone()).image_status(request).await;
        answer.is_ok_and(|answer| answer.into_inner().image.is_some())
    }
}
