//! A guest in the test's own process: hybrid vsock, announcement, agent.

use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bulkhead_protocol::agent::{
    Announce, Empty, GrowRequest, GrowResponse, HelloRequest, HelloResponse, PingRequest, PingResponse,
    SetupRequest, SetupResponse, ShutdownRequest,
};
use bulkhead_protocol::agent_ttrpc::{Agent, create_agent};
use bulkhead_protocol::version::{MAX_VERSION, MIN_VERSION};
use bulkhead_protocol::{AGENT_PORT, FEATURE_DISKS, FEATURE_MEMORY_VOLUMES, FEATURE_RESIZE, frame};
use futures::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use ttrpc::r#async::{Server, TtrpcContext, transport::Listener};

use super::fault::Fault;
use crate::agent::AnnounceSocket;
use crate::host::process::{OwnedProcess, ProcessIdentity, Signal};
use crate::host::socket;
use crate::runtime_dir::VmDir;

/// One guest; it goes with this value.
#[derive(Debug)]
pub struct FakeGuest {
    owner: String,
    calls: Arc<Mutex<Vec<String>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl FakeGuest {
    /// A guest of `vmm` with this fault, that announces itself after `boot_time`.
    ///
    /// # Errors
    /// When its vsock socket cannot be made.
    pub fn start(dir: VmDir, vmm: ProcessIdentity, fault: Fault, boot_time: Duration) -> io::Result<Self> {
        let listener = socket::listen(&dir.vsock())?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let calls = Arc::new(Mutex::new(Vec::new()));
        let agent = FakeAgent { vmm, fault: fault.clone(), calls: Arc::clone(&calls) };
        let (dialled, streams) = mpsc::channel(8);
        let tasks = vec![
            tokio::spawn(accept(listener, dialled)),
            tokio::spawn(serve(agent, streams)),
            tokio::spawn(announce(dir.clone(), fault, boot_time)),
        ];
        let owner = std::fs::read_to_string(dir.owner()).unwrap_or_default();
        Ok(Self { owner, calls, tasks })
    }

    /// The sandbox whose guest this is.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The names of the calls it got, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for FakeGuest {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Takes dials of the agent's port; nobody listens on another.
async fn accept(listener: UnixListener, dialled: mpsc::Sender<UnixStream>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut request = vec![0; format!("CONNECT {AGENT_PORT}\n").len()];
        let wanted = format!("CONNECT {AGENT_PORT}\n").into_bytes();
        let read = stream.read_exact(&mut request).await;
        if read.is_ok() && request == wanted && stream.write_all(b"OK 1073741824\n").await.is_ok() {
            let Ok(()) = dialled.send(stream).await else { return };
        }
    }
}

async fn serve(agent: FakeAgent, streams: mpsc::Receiver<UnixStream>) {
    let streams = stream::unfold(streams, |mut streams| async {
        let stream = streams.recv().await?;
        Some((Ok::<_, io::Error>(stream), streams))
    });
    let mut server =
        Server::new().add_listener(Listener::new(streams)).register_service(create_agent(Arc::new(agent)));
    if let Err(error) = server.start().await {
        tracing::error!(%error, "the fake guest cannot serve");
        return;
    }
    pending().await
}

async fn announce(dir: VmDir, fault: Fault, boot_time: Duration) {
    if matches!(fault, Fault::NeverAnnounces | Fault::VmmExits(_)) {
        return;
    }
    tokio::time::sleep(boot_time).await;
    let foreign = fault == Fault::ForeignAgent;
    let announce = Announce {
        min_version: if foreign { MAX_VERSION + 1 } else { MIN_VERSION },
        max_version: if foreign { MAX_VERSION + 1 } else { MAX_VERSION },
        agent_build: "fake".to_owned(),
        kernel_release: "fake".to_owned(),
        boot_nanos: u64::try_from(boot_time.as_nanos()).unwrap_or(u64::MAX),
        ..Announce::default()
    };
    let sent = async {
        let mut stream = UnixStream::connect(AnnounceSocket::path(&dir.vsock())).await?;
        if fault == Fault::AnnouncesGarbage {
            return stream.write_all(&[0xff; 64]).await;
        }
        frame::write_message(&mut stream, &announce).await
    };
    if let Err(error) = sent.await {
        tracing::error!(%error, "nobody takes the fake guest's announcement");
    }
}

struct FakeAgent {
    vmm: ProcessIdentity,
    fault: Fault,
    calls: Arc<Mutex<Vec<String>>>,
}

impl FakeAgent {
    fn note(&self, call: &str) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call.to_owned());
    }

    /// A guest that powers off takes its VMM with it.
    fn power_off(&self) {
        match OwnedProcess::adopt(&self.vmm) {
            Ok(Some(vmm)) => {
                vmm.keep();
                if let Err(error) = vmm.signal(Signal::TERM) {
                    tracing::error!(%error, "the fake guest cannot power off");
                }
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the fake guest does not find its VMM"),
        }
    }
}

#[async_trait]
impl Agent for FakeAgent {
    async fn hello(&self, _: &TtrpcContext, _: HelloRequest) -> ttrpc::Result<HelloResponse> {
        self.note("Hello");
        let known = [FEATURE_DISKS, FEATURE_RESIZE, FEATURE_MEMORY_VOLUMES].map(ToOwned::to_owned);
        let features = if self.fault == Fault::OldAgent { Vec::new() } else { known.to_vec() };
        Ok(HelloResponse {
            version: MAX_VERSION,
            agent_build: "fake".to_owned(),
            features,
            ..HelloResponse::default()
        })
    }

    async fn setup(&self, _: &TtrpcContext, request: SetupRequest) -> ttrpc::Result<SetupResponse> {
        self.note(&format!("Setup {}", request.sandbox_id));
        if self.fault == Fault::SetupFails {
            let status = ttrpc::get_status(ttrpc::Code::FAILED_PRECONDITION, "told to fail");
            return Err(ttrpc::Error::RpcStatus(status));
        }
        if self.fault == Fault::SetupHangs {
            return pending().await;
        }
        Ok(SetupResponse::default())
    }

    async fn ping(&self, _: &TtrpcContext, _: PingRequest) -> ttrpc::Result<PingResponse> {
        self.note("Ping");
        if self.fault == Fault::IgnoresPings {
            return pending().await;
        }
        Ok(PingResponse { guest_time_nanos: 1, ..PingResponse::default() })
    }

    async fn grow(&self, _: &TtrpcContext, request: GrowRequest) -> ttrpc::Result<GrowResponse> {
        self.note("Grow");
        // It has what it is told to have, less what its fault keeps from it.
        let cpus = if self.fault == Fault::TakesNoCpus { 1 } else { request.cpus.max(1) };
        Ok(GrowResponse { cpus, memory_bytes: request.memory_bytes, ..GrowResponse::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.note("Shutdown");
        if self.fault != Fault::IgnoresShutdown {
            self.power_off();
        }
        Ok(Empty::default())
    }
}
