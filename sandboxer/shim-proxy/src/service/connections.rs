//! containerd's connections to the Task endpoint. Each has a server of its own, with the Task API and the streaming
//! service.

use std::future::ready;
use std::io;
use std::sync::Arc;

use bulkhead_protocol::accept::accept_unix;
use bulkhead_protocol::error::chain;
use containerd_shim_protos::shim_async::create_task;
use futures::{StreamExt, stream};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::DropGuard;
use tracing::warn;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use super::lifetime::Lifetime;
use super::streaming;
use super::task::TaskService;
use crate::error::TaskError;
use crate::pod::{CallerId, PodHandle};
use crate::runtime::socket::GuardedSocket;

/// Serves the Task API and the streaming service to everybody who connects.
pub(crate) async fn serve(listener: UnixListener, pod: PodHandle) {
    let failed = |error: &io::Error| warn!(%error, "cannot accept a connection of containerd, trying again");
    loop {
        let socket = accept_unix(&listener, failed).await;
        if let Err(error) = serve_connection(socket, &pod).await {
            warn!(error = chain(&error), "cannot serve a connection");
        }
    }
}

/// Why a connection is not served.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("the pod takes no connection")]
    Pod(#[source] TaskError),
    #[error("cannot start its server")]
    Start(#[source] ttrpc::Error),
}

async fn serve_connection(socket: UnixStream, pod: &PodHandle) -> Result<(), ConnectionError> {
    let lifetime = Lifetime::default();
    let caller = pod.caller_connected().await.map_err(ConnectionError::Pod)?;
    let guard = OpenConnection { pod: pod.clone(), caller, _closed: lifetime.closed().clone().drop_guard() };
    let socket = GuardedSocket::new(socket, lifetime.closing().clone(), guard);
    let tasks = Arc::new(TaskService { pod: pod.clone(), caller });
    let streams = streaming::create(pod.links().streams.clone(), lifetime.clone());
    let only = stream::once(ready(Ok(socket))).chain(stream::pending());
    let server = Server::new().add_listener(Listener::new(only));
    let mut server = server.register_service(create_task(tasks)).register_service(streams);
    server.start().await.map_err(ConnectionError::Start)?;
    tokio::spawn(keep(server, lifetime));
    Ok(())
}

/// Keeps the server of one connection until that ends. A server that is dropped sends what it has and closes.
async fn keep(server: Server, lifetime: Lifetime) {
    tokio::select! {
        () = lifetime.closed().cancelled() => {}
        () = lifetime.closing().cancelled() => {}
    }
    drop(server);
}

/// One open connection, which counts for as long as it is open.
struct OpenConnection {
    pod: PodHandle,
    caller: CallerId,
    _closed: DropGuard,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.pod.caller_disconnected(self.caller);
    }
}
