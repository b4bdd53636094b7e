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

/// oom_score_adj of a process that the OOM killer never chooses, proc(5).
const NEVER_KILL: &str = "-1000";

/// The nice value with the least priority, setpriority(2).
const LOWEST_PRIORITY: i32 = 19;
/// How long the rest of the modules wait for Setup. Without Setup they are loaded then.
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

/// Runs what the command line asks for: modprobe, a helper's job, or PID 1.
pub(crate) fn run() -> ExitCode {
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    let args: Vec<String> = args.collect();
    if name.rsplit('/').next() == Some(modules::MODPROBE) {
        return modules::modprobe(&args);
    }
    if let Some(code) = helper::run(&args) {
        return code;
    }
    if std::process::id() != 1 {
        eprintln!("bulkhead-agent is the init process of a guest and does nothing elsewhere");
        return ExitCode::from(2);
    }
    // PID 1 must not return: the kernel would panic, and the host would see a crash instead of a shutdown.
    match std::panic::catch_unwind(AssertUnwindSafe(boot_and_serve)) {
        Ok(Ok(never)) => match never {},
        Ok(Err(error)) => tracing::error!(error = %chain(&error), "the guest cannot serve"),
        Err(_) => tracing::error!("the agent crashed"),
    }
    power::power_off();
    ExitCode::FAILURE
}

fn boot_and_serve() -> Result<Infallible, ServeError> {
    let entered = clock::boot_nanos();
    let mounted = mounts::mount_essential();
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
    let registry = Arc::new(Streams::default());
    let sockets = Arc::new(HostSockets::default());
    tokio::spawn(streams::accept(stream_port, Arc::clone(&registry), Arc::clone(&sockets)));
    let containers = Containers::new(Arc::clone(&reaper), registry, sockets);
    let pod = Arc::new(Pod::new(reaper));
    let service = AgentService::new(Arc::clone(&pod), containers, readiness);
    let mut server = Server::new()
        .add_listener(Listener::new(listen::from_host(rpc)))
        .register_service(agent_ttrpc::create_agent(Arc::new(service)));
    server.start().await.map_err(ServeError::StartServer)?;
    if let Err(error) = announce::announce().await {
        tokio::spawn(announce::retry(error));
    }
    let Stages { setup, rest, .. } = stages;
    // In a thread: loading modules blocks for long, and calls of the host come already.
    std::thread::spawn(move || prepare_setup(&setup, &ready));
    tokio::select! {
        () = pod.wait_set_up() => {}
        () = tokio::time::sleep(SETUP_WINDOW) => {}
    }
    std::thread::spawn(move || load_rest(&rest));
    loop {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}

/// Mounts and loads what Setup needs and the announcement does not.
fn prepare_setup(modules: &[String], ready: &watch::Sender<Readiness>) {
    if let Err(error) = mounts::mount_remaining() {
        tracing::error!(error = %chain(&error), "a mount is missing");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", NEVER_KILL) {
        tracing::warn!(%error, "the kernel may choose the agent when memory runs out");
    }
    modules::load_all(modules);
    ready.send_replace(Readiness::Setup);
}

/// Loads the modules that nothing waits for, with the least priority.
fn load_rest(modules: &[String]) {
    // Only of the calling thread, setpriority(2).
    if let Err(error) = rustix::process::setpriority_process(None, LOWEST_PRIORITY) {
        tracing::debug!(%error, "loading modules competes with the pod");
    }
    modules::load_all(modules);
    tracing::debug!("boot finished");
}
