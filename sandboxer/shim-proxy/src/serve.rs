//! `serve`: one pod, from its start to its removal. Everything runs on one thread, in tasks; one of them owns the pod.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::accept::accept_unix;
use bulkhead_protocol::shim_ttrpc::create_shim;
use bulkhead_protocol::{SHIM_SOCKET, SHIM_SOCKET_FD, TASK_SOCKET, TASK_SOCKET_FD};
use futures::stream;
use tokio::net::UnixListener;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::command::argv::ServeArgs;
use crate::host::events::Events;
use crate::pod::PodHandle;
use crate::service::connections;
use crate::service::shim::ShimService;
use crate::sys;

/// How long the proxy of a removed pod waits for containerd to read its answers and close its connections.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long it then waits for queued events to reach containerd.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);
/// How long the answer to Shutdown itself takes at most to be written.
const ANSWER_TIME: Duration = Duration::from_millis(20);

/// Why the pod cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// An inherited descriptor is not what the sandboxer hands down.
    #[error("descriptor {fd} ({what}) is not the listening socket that the sandboxer hands down")]
    Inherit {
        /// Its number.
        fd: i32,
        /// Which it should be.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The event loop could not be built.
    #[error("cannot build the event loop")]
    Runtime(#[source] io::Error),
    /// A socket could not be registered with the event loop.
    #[error("cannot serve {what}")]
    Listen {
        /// Which.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A server did not start.
    #[error("cannot start the server of {what}")]
    Start {
        /// Which.
        what: &'static str,
        /// The cause.
        source: ttrpc::Error,
    },
}

/// Serves until the sandboxer calls Shutdown.
///
/// # Errors
/// [`ServeError`], before any connection is served.
pub(crate) fn serve(args: ServeArgs) -> Result<(), ServeError> {
    let inherit =
        |fd, what| sys::inherited_listener(fd).map_err(|source| ServeError::Inherit { fd, what, source });
    let task = inherit(TASK_SOCKET_FD, TASK_SOCKET)?;
    let shim = inherit(SHIM_SOCKET_FD, SHIM_SOCKET)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(ServeError::Runtime)?.block_on(run(args, task, shim))
}

async fn run(args: ServeArgs, task: StdListener, shim: StdListener) -> Result<(), ServeError> {
    info!(sandbox = args.id, dir = %args.dir.display(), "serving");
    let (events, forwarder) = Events::new(args.containerd_events, &args.namespace);
    tokio::spawn(forwarder.run());
    let pod = PodHandle::spawn(args.id, args.control, events);
    let listener =
        |socket, what| UnixListener::from_std(socket).map_err(|source| ServeError::Listen { what, source });
    let _shim_server = serve_shim(listener(shim, SHIM_SOCKET)?, pod.clone()).await?;
    tokio::spawn(connections::serve(listener(task, TASK_SOCKET)?, pod.clone()));
    pod.links().shutdown.notified().await;
    info!("the pod is removed, ending");
    drain(&pod).await;
    Ok(())
}

/// Lets the last answers and events reach those who wait for them.
async fn drain(pod: &PodHandle) {
    let until = Instant::now() + DRAIN_TIMEOUT;
    if let Some(mut departures) = pod.departures().await {
        while pod.open_connections().await > 0 && Instant::now() < until {
            drop(timeout_at(until, departures.changed()).await);
        }
    }
    pod.links().events.flush(FLUSH_TIMEOUT).await;
    sleep(ANSWER_TIME).await;
}

async fn serve_shim(listener: UnixListener, pod: PodHandle) -> Result<Server, ServeError> {
    let incoming = stream::unfold(listener, |listener| async {
        let failed =
            |error: &io::Error| warn!(%error, "cannot accept a connection of the sandboxer, trying again");
        Some((Ok(accept_unix(&listener, failed).await), listener))
    });
    let services = create_shim(Arc::new(ShimService(pod)));
    let mut server = Server::new().add_listener(Listener::new(incoming)).register_service(services);
    server.start().await.map_err(|source| ServeError::Start { what: SHIM_SOCKET, source })?;
    Ok(server)
}
