//! containerd's connections to the Task endpoint, each served on its own.

use std::future::ready;
use std::io;
use std::sync::Arc;

use bulkhead_protocol::accept::accept_unix;
use containerd_shim_protos::shim_async::create_task;
use futures::{StreamExt, stream};
use tokio::net::UnixListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use super::streaming;
use crate::pod::Pod;
use crate::pod::callers::Caller;
use crate::runtime::socket::Watched;
use crate::service::task::TaskService;

/// Serves the Task API and the streaming service to everyone who connects.
pub(crate) async fn serve(listener: UnixListener, pod: Arc<Pod>) {
    let failed = |error: &io::Error| warn!(%error, "cannot accept a connection of containerd, trying again");
    loop {
        let socket = accept_unix(&listener, failed).await;
        let call = Call::default();
        let caller = Arc::new(pod.callers.enter());
        let streams = streaming::create(pod.switchboard.clone(), call.clone());
        let socket = Watched::new(socket, call.over.clone(), Connection::open(caller.clone(), &call));
        let tasks = Arc::new(TaskService { pod: pod.clone(), caller });
        let only = stream::once(ready(Ok(socket))).chain(stream::pending());
        let server = Server::new().add_listener(Listener::new(only));
        let mut server = server.register_service(create_task(tasks)).register_service(streams);
        match server.start().await {
            Ok(()) => drop(tokio::spawn(keep(server, call))),
            Err(error) => warn!(%error, "cannot serve a connection"),
        }
    }
}

/// Keeps the server of one connection until that ends. A server that is dropped sends what it has and closes.
async fn keep(server: Server, call: Call) {
    tokio::select! {
        () = call.lost.cancelled() => {}
        () = call.over.cancelled() => {}
    }
    drop(server);
}

/// What is known of a connection that is being served.
#[derive(Debug, Clone, Default)]
pub(crate) struct Call {
    lost: CancellationToken,
    over: CancellationToken,
}

impl Call {
    /// Waits until the connection has gone.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Says when the connection has gone.
    pub(crate) fn loss(&self) -> &CancellationToken {
        &self.lost
    }

    /// Closes the connection, once what is under way has been sent.
    pub(crate) fn hang_up(&self) {
        self.over.cancel();
    }
}

/// One open connection, counted for as long as it lives.
struct Connection {
    caller: Arc<Caller>,
    _lost: DropGuard,
}

impl Connection {
    fn open(caller: Arc<Caller>, call: &Call) -> Self {
        Self { caller, _lost: call.lost.clone().drop_guard() }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.caller.leaves();
    }
}
