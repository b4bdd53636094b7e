//! The life of the agent: boot, announce, serve.

use std::convert::Infallible;
use std::io;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::error::chain;
use bulkhead_protocol::{AGENT_PORT, STREAM_PORT, agent_ttrpc};
use tokio::sync::watch;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::boot::cmdline;
use crate::boot::log;
use crate::boot::mounts::{self, BootError};
use crate::container::Containers;
use crate::forward::host_sockets::HostSockets;
use crate::kernel::clock;
use crate::kernel::modules::{self, ModuleError, Stages};
use crate::kernel::power;
use crate::pod::Pod;
use crate::process::helper;
use crate::process::reaper::Reaper;
use crate::service::{AgentService, Readiness, streams};
use crate::stdio::Streams;
use crate::vsock::announce;
use crate::vsock::listen::{self, ListenError};

/// oom_score_adj of a process that the kernel must not choose, proc(5).
const NEVER: &str = "-1000";

/// The nice value that yields to everybody, setpriority(2).
const LEAST: i32 = 19;
/// A guest that nobody has set up by then loads the rest of its modules all the same.
const SETUP_WINDOW: Duration = Duration::from_secs(10);

/// What ends the agent.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Modules(#[from] ModuleError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("start the runtime")]
    StartRuntime(#[source] io::Error),
    #[error("start the reaper")]
    StartReaper(#[source] io::Error),
    #[error("start the ttrpc server")]
    StartServer(#[source] ttrpc::Error),
}

/// Does what the command line says: a helper's job, or being PID 1.
pub(crate) fn run() -> ExitCode {
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    let args: Vec<String> = args.collect();
    if name.rsplit('/').next() == Some(modules::MODPROBE) {
        return modules::on_demand(&args);
    }
    if let Some(code) = helper::run(&args) {
        return code;
    }
    if std::process::id() != 1 {
        eprintln!("bulkhead-agent is the init process of a guest and does nothing elsewhere");
        return ExitCode::from(2);
    }
    // PID 1 must not return: the kernel would panic, and the host see a crash instead of an end.
    match std::panic::catch_unwind(AssertUnwindSafe(live)) {
        Ok(Ok(never)) => match never {},
        Ok(Err(error)) => tracing::error!(error = %chain(&error), "the guest cannot serve"),
        Err(_) => tracing::error!("the agent crashed"),
    }
    power::power_off();
    ExitCode::FAILURE
}

fn live() -> Result<Infallible, ServeError> {
    let entered = clock::boot_nanos();
    let mounted = mounts::first();
    let cmdline = std::fs::read_to_string(cmdline::PATH).unwrap_or_default();
    log::init(cmdline::log_level(&cmdline));
    mounted?;
    tracing::debug!(entered_millis = entered / 1_000_000, "mounted");
    let stages = modules::plan()?;
    modules::load_all(&stages.announce);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServeError::StartRuntime)?;
    runtime.block_on(serve(stages))
}

async fn serve(stages: Stages) -> Result<Infallible, ServeError> {
    let rpc = listen::bind(AGENT_PORT)?;
    let stream_port = listen::bind(STREAM_PORT)?;
    let reaper = Reaper::start().map_err(ServeError::StartReaper)?;
    let (ready, readiness) = watch::channel(Readiness::Announced);
    let hub = Arc::new(Streams::default());
    let sockets = Arc::new(HostSockets::default());
    tokio::spawn(streams::accept(stream_port, Arc::clone(&hub), Arc::clone(&sockets)));
    let containers = Containers::new(Arc::clone(&reaper), hub, sockets);
    let pod = Arc::new(Pod::new(reaper));
    let service = AgentService::new(Arc::clone(&pod), containers, readiness);
    let mut server = Server::new()
        .add_listener(Listener::new(listen::from_host(rpc)))
        .register_service(agent_ttrpc::create_agent(Arc::new(service)));
    server.start().await.map_err(ServeError::StartServer)?;
    if let Err(error) = announce::once().await {
        tokio::spawn(announce::retry(error));
    }
    let Stages { setup, rest, .. } = stages;
    // Threads: loading modules blocks for long, and the host calls already.
    std::thread::spawn(move || prepare_setup(&setup, &ready));
    tokio::select! {
        () = pod.is_set_up() => {}
        () = tokio::time::sleep(SETUP_WINDOW) => {}
    }
    std::thread::spawn(move || load_rest(&rest));
    loop {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}

/// What the announcement did not wait for, and Setup does.
fn prepare_setup(modules: &[String], ready: &watch::Sender<Readiness>) {
    if let Err(error) = mounts::second() {
        tracing::error!(error = %chain(&error), "a mount is missing");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", NEVER) {
        tracing::warn!(%error, "the kernel may choose the agent when memory runs out");
    }
    modules::load_all(modules);
    ready.send_replace(Readiness::Setup);
}

/// Modules that nobody waits for: they yield to the pod.
fn load_rest(modules: &[String]) {
    // The calling thread only, setpriority(2).
    if let Err(error) = rustix::process::setpriority_process(None, LEAST) {
        tracing::debug!(%error, "loading modules competes with the pod");
    }
    modules::load_all(modules);
    tracing::debug!("boot finished");
}
