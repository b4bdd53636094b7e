//! The pod's Task API spoken directly, for bundles that containerd itself would never write.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Mount, StartRequest, StateRequest,
    StateResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::TaskClient;
use containerd_shim_protos::ttrpc::Error;
use containerd_shim_protos::ttrpc::asynchronous::Client;
use containerd_shim_protos::ttrpc::context::{Context, with_duration};

use crate::wait;

/// A connection to a task socket.
#[derive(Clone)]
pub struct Task(TaskClient);

impl std::fmt::Debug for Task {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Task")
    }
}

impl Task {
    /// Connects to `socket`, whose path may be longer than a socket's can be.
    pub async fn connect(socket: &Path) -> Self {
        let (folder, name) = (socket.parent().expect("a folder"), socket.file_name().expect("a name"));
        let folder =
            std::fs::File::open(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let address = format!("unix:///proc/self/fd/{}/{}", folder.as_raw_fd(), name.to_string_lossy());
        let client =
            Client::connect(&address).await.unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        Self(TaskClient::new(client))
    }

    /// The plain client and a context, for calls not wrapped here.
    #[must_use]
    pub fn plain(&self) -> (TaskClient, Context) {
        (self.0.clone(), context())
    }

    /// Create, without stdio.
    pub async fn create(
        &self,
        id: &str,
        bundle: &Path,
        rootfs: Vec<Mount>,
    ) -> Result<CreateTaskResponse, Error> {
        let request = CreateTaskRequest {
            id: id.into(),
            bundle: bundle.display().to_string(),
            rootfs,
            ..Default::default()
        };
        self.0.create(context(), &request).await
    }

    /// Start of a container's init process.
    pub async fn start(&self, id: &str) -> Result<(), Error> {
        self.0.start(context(), &StartRequest { id: id.into(), ..Default::default() }).await.map(drop)
    }

    /// State of a container's init process.
    pub async fn state(&self, id: &str) -> Result<StateResponse, Error> {
        self.0.state(context(), &StateRequest { id: id.into(), ..Default::default() }).await
    }

    /// Wait for a container's init process.
    pub async fn wait(&self, id: &str) -> Result<WaitResponse, Error> {
        self.0.wait(context(), &WaitRequest { id: id.into(), ..Default::default() }).await
    }

    /// Delete of a container.
    pub async fn delete(&self, id: &str) -> Result<DeleteResponse, Error> {
        self.0.delete(context(), &DeleteRequest { id: id.into(), ..Default::default() }).await
    }
}

fn context() -> Context {
    let mut context = with_duration(wait::patiently(Duration::from_secs(60)));
    context.add("containerd-namespace-ttrpc".into(), "k8s.io".into());
    context
}

/// A mount as snapshotters describe it.
#[must_use]
pub fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        type_: kind.into(),
        source: source.into(),
        options: options.iter().map(|&option| option.into()).collect(),
        ..Default::default()
    }
}
