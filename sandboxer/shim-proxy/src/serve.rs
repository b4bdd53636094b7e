//! `serve`: one pod, from its start to its removal. Everything runs on one thread.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bulkhead_protocol::shim_ttrpc::create_shim;
use containerd_shim_protos::shim_async::create_task;
use futures::stream;
use tokio::net::UnixListener;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, Service};

use crate::argv::ServeArgs;
use crate::events::Events;
use crate::pod::Pod;
use crate::shim_service::ShimService;
use crate::sys;
use crate::task_service::TaskService;
use crate::watched::Watched;

/// How long containerd may take to hear its answers before a removed pod's proxy ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// Pause after an accept that failed, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the pod cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The sandboxer hands down two listening sockets.
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
    /// A socket could not be joined to the event loop.
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

/// Serves until the sandboxer says Shutdown.
///
/// # Errors
/// [`ServeError`], before anything is served.
pub(crate) fn serve(args: ServeArgs) -> Result<(), ServeError> {
    let inherit =
        |fd, what| sys::inherited_listener(fd).map_err(|source| ServeError::Inherit { fd, what, source });
    let task = inherit(sys::TASK_FD, "task.sock")?;
    let shim = inherit(sys::SHIM_FD, "shim.sock")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(ServeError::Runtime)?.block_on(run(args, task, shim))
}

async fn run(args: ServeArgs, task: StdListener, shim: StdListener) -> Result<(), ServeError> {
    info!(sandbox = args.id, dir = %args.dir.display(), "serving");
    let events = Events::new(args.containerd_events, args.namespace);
    tokio::spawn(events.clone().run());
    let pod = Pod::new(args.id, args.control, events.clone());
    tokio::spawn(pod.clone().watch_bundles());
    let shims = create_shim(Arc::new(ShimService(pod.clone())));
    let tasks = create_task(Arc::new(TaskService(pod.clone())));
    let _shim_server = start(shim, "shim.sock", shims, None).await?;
    let _task_server = start(task, "task.sock", tasks, Some(pod.clone())).await?;
    pod.shutdown.notified().await;
    farewell(&pod, &events).await;
    Ok(())
}

/// Lets the last answers and events reach those who wait for them.
async fn farewell(pod: &Arc<Pod>, events: &Arc<Events>) {
    let until = Instant::now() + FAREWELL;
    info!("the pod is removed, ending");
    while pod.connections.load(Ordering::Relaxed) > 0 && Instant::now() < until {
        drop(timeout(until - Instant::now(), pod.disconnected.notified()).await);
    }
    events.flush(Duration::from_millis(200)).await;
    // The answer to Shutdown itself.
    sleep(Duration::from_millis(20)).await;
}

type Services = std::collections::HashMap<String, Service>;

async fn start(
    listener: StdListener,
    what: &'static str,
    services: Services,
    counted: Option<Arc<Pod>>,
) -> Result<Server, ServeError> {
    let listener = UnixListener::from_std(listener);
    let listener = listener.map_err(|source| ServeError::Listen { what, source })?;
    let incoming = stream::unfold((listener, counted), |(listener, counted)| async move {
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    let witness = counted.clone().map(Connection::open);
                    return Some((Ok(Watched::new(socket, witness)), (listener, counted)));
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    let mut server = Server::new().add_listener(Listener::new(incoming)).register_service(services);
    server.start().await.map_err(|source| ServeError::Start { what, source })?;
    Ok(server)
}

/// One open connection, counted for as long as it lives.
struct Connection(Arc<Pod>);

impl Connection {
    fn open(pod: Arc<Pod>) -> Self {
        pod.connections.fetch_add(1, Ordering::Relaxed);
        Self(pod)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.disconnected.notify_one();
    }
}
