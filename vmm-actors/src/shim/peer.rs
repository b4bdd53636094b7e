//! Calls to a shim proxy.

use std::path::Path;
use std::time::Duration;

use bulkhead_protocol::pod::Nothing;
use bulkhead_protocol::shim::{AttachRequest, ContainerView as Container, ObserveResponse, VmGoneRequest};
use bulkhead_protocol::shim_ttrpc::ShimClient;
use bulkhead_protocol::version::pod_hello;
use tokio::net::UnixStream;
use ttrpc::r#async::{Client, transport::Socket};
use ttrpc::context::with_duration;

use super::{ContainerView, ShimError, ShimView};

/// How long a call may take; the proxy answers from memory, but dials the guest in Attach.
const CALL_WITHIN: Duration = Duration::from_secs(10);

/// A connection with Hello behind it. One for each call or two: there are few, and a proxy that is older than this
/// process is met as easily as a new one.
pub(super) struct Peer {
    client: ShimClient,
}

impl Peer {
    pub(super) async fn connect(path: &Path) -> Result<Self, ShimError> {
        let failed = |source| ShimError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).await.map_err(failed)?;
        let client = ShimClient::new(Client::new(Socket::new(stream)));
        let hello = client.hello(with_duration(CALL_WITHIN), &pod_hello()).await;
        hello.map_err(|source| ShimError::Call { call: "Hello", source })?;
        Ok(Self { client })
    }

    pub(super) async fn attach(&self, request: &AttachRequest) -> Result<(), ShimError> {
        done("Attach", self.client.attach(with_duration(CALL_WITHIN), request).await)
    }

    pub(super) async fn vm_gone(&self, request: &VmGoneRequest) -> Result<(), ShimError> {
        done("VmGone", self.client.vm_gone(with_duration(CALL_WITHIN), request).await)
    }

    pub(super) async fn shutdown(&self) -> Result<(), ShimError> {
        done("Shutdown", self.client.shutdown(with_duration(CALL_WITHIN), &Nothing::default()).await)
    }

    pub(super) async fn observe(&self) -> Result<ShimView, ShimError> {
        let seen = self.client.observe(with_duration(CALL_WITHIN), &Nothing::default()).await;
        seen.map(view).map_err(|source| ShimError::Call { call: "Observe", source })
    }
}

fn done(call: &'static str, answer: ttrpc::Result<Nothing>) -> Result<(), ShimError> {
    answer.map(|_| ()).map_err(|source| ShimError::Call { call, source })
}

fn view(seen: ObserveResponse) -> ShimView {
    let container = |c: Container| ContainerView {
        id: c.container_id,
        status: c.status,
        pid: c.pid,
        exit_status: c.exit_status,
        exited_at_nanos: c.exited_at_nanos,
        bundle: c.bundle,
        execs: c.execs,
    };
    ShimView {
        containers: seen.containers.into_iter().map(container).collect(),
        open_connections: seen.open_connections,
    }
}
