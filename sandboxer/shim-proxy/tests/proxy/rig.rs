//! One proxy process with everything around it, in a directory of its own.

use std::fs::File;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bulkhead_protocol::shim::AttachRequest;
use bulkhead_protocol::shim_ttrpc::ShimClient;
use bulkhead_protocol::{
    CONTROL_SOCKET, SHIM_SOCKET, SHIM_SOCKET_FD, TASK_SOCKET, TASK_SOCKET_FD, VSOCK_SOCKET,
};
use command_fds::{CommandFdExt, FdMapping};
use containerd_shim_protos::api::*;
use containerd_shim_protos::shim_async::TaskClient;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;
use ttrpc::Code;
use ttrpc::asynchronous::Client;
use ttrpc::context::{Context, with_duration};

use crate::fake_agent::FakeAgent;
use crate::fake_containerd::FakeContainerd;
use crate::fake_sandboxer::FakeSandboxer;

/// Nothing in these tests may take longer.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A call's context, with a deadline as containerd gives one.
pub(crate) fn within() -> Context {
    with_duration(SOON)
}

/// Fails the test if it takes too long.
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.expect("it takes too long")
}

/// Polls until the condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = tokio::time::Instant::now() + SOON;
    while !holds() {
        assert!(tokio::time::Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The RPC code of a refusal.
pub(crate) fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> Code {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        other => panic!("not an RPC status: {other:?}"),
    }
}

/// The text of a refusal.
pub(crate) fn text<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> String {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => status.message().to_owned(),
        other => panic!("not an RPC status: {other:?}"),
    }
}

/// The proxy and its surroundings. Everything ends with it.
pub(crate) struct Rig {
    pub(crate) dir: TempDir,
    pub(crate) agent: FakeAgent,
    pub(crate) sandboxer: FakeSandboxer,
    pub(crate) containerd: FakeContainerd,
    pub(crate) task: TaskClient,
    pub(crate) shim: ShimClient,
    pub(crate) vmm: Child,
    pub(crate) proxy: Child,
}

impl Rig {
    /// A proxy with its VM attached.
    pub(crate) async fn attached() -> Self {
        let rig = Self::unattached().await;
        rig.attach().await.unwrap();
        rig
    }

    /// A proxy that does not know its VM yet.
    pub(crate) async fn unattached() -> Self {
        Self::within(tempfile::tempdir().unwrap()).await
    }

    /// A proxy that does not know its VM yet, in a directory where something is already.
    pub(crate) async fn within(dir: TempDir) -> Self {
        let at = |name: &str| dir.path().join(name);
        let agent = FakeAgent::listen(&at(VSOCK_SOCKET)).await;
        let sandboxer = FakeSandboxer::new(&at(CONTROL_SOCKET));
        sandboxer.start().await;
        let containerd = FakeContainerd::listen(&at("events.sock")).await;
        let proxy = spawn_proxy(dir.path());
        let vmm = Command::new("sleep").arg("600").spawn().unwrap();
        let task = TaskClient::new(connect(&at(TASK_SOCKET)).await);
        let shim = ShimClient::new(connect(&at(SHIM_SOCKET)).await);
        Self { dir, agent, sandboxer, containerd, task, shim, vmm, proxy }
    }

    /// The sandboxer's Attach.
    pub(crate) async fn attach(&self) -> ttrpc::Result<()> {
        let request = AttachRequest {
            vmm_pid: self.vmm.id(),
            vmm_start_time: start_time(self.vmm.id()),
            vsock: self.path(VSOCK_SOCKET).display().to_string(),
            ..Default::default()
        };
        self.shim.attach(within(), &request).await.map(drop)
    }

    /// A path in the pod's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A further connection to the Task API.
    pub(crate) async fn connection(&self) -> TaskClient {
        TaskClient::new(connect(&self.path(TASK_SOCKET)).await)
    }

    /// Prepares a bundle and FIFOs as containerd does.
    pub(crate) fn prepare(&self, id: &str) -> CreateTaskRequest {
        let bundle = self.path(&format!("bundle-{id}"));
        std::fs::create_dir(&bundle).unwrap();
        let address = format!("unix://{}", self.path(TASK_SOCKET).display());
        let bootstrap = format!(r#"{{"version":3,"address":"{address}","protocol":"ttrpc"}}"#);
        std::fs::write(bundle.join("bootstrap.json"), bootstrap).unwrap();
        let [stdin, stdout, stderr] = self.fifos(id);
        CreateTaskRequest {
            id: id.to_owned(),
            bundle: bundle.display().to_string(),
            stdin,
            stdout,
            stderr,
            ..Default::default()
        }
    }

    /// stdin, stdout and stderr.
    pub(crate) fn fifos(&self, id: &str) -> [String; 3] {
        ["stdin", "stdout", "stderr"].map(|name| {
            let path = self.path(&format!("{id}-{name}"));
            mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o700), 0).unwrap();
            path.display().to_string()
        })
    }

    /// A running container, and its request.
    pub(crate) async fn running(&self, id: &str) -> CreateTaskRequest {
        let request = self.prepare(id);
        soon(self.task.create(within(), &request)).await.unwrap();
        self.start(id, "").await.unwrap();
        request
    }

    /// A running container with a connection of its own, as containerd has it, and its request.
    pub(crate) async fn running_on_its_own(&self, id: &str) -> (TaskClient, CreateTaskRequest) {
        let (connection, request) = (self.connection().await, self.prepare(id));
        soon(connection.create(within(), &request)).await.unwrap();
        self.start(id, "").await.unwrap();
        (connection, request)
    }

    pub(crate) async fn start(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = StartRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        soon(self.task.start(within(), &request)).await.map(|answer| answer.pid)
    }

    pub(crate) async fn state(&self, id: &str, exec: &str) -> ttrpc::Result<StateResponse> {
        let request = StateRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        soon(self.task.state(with_duration(Duration::from_secs(2)), &request)).await
    }

    pub(crate) async fn status(&self, id: &str) -> Status {
        self.state(id, "").await.unwrap().status.unwrap()
    }

    pub(crate) async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<DeleteResponse> {
        let request = DeleteRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        soon(self.task.delete(within(), &request)).await
    }

    pub(crate) async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> ttrpc::Result<Empty> {
        let request = KillRequest { id: id.into(), exec_id: exec.into(), signal, all, ..Default::default() };
        soon(self.task.kill(within(), &request)).await
    }

    /// Waits as containerd does: on a task of its own, without deadline.
    pub(crate) fn wait(&self, id: &str, exec: &str) -> JoinHandle<ttrpc::Result<WaitResponse>> {
        let request = WaitRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        let client = self.task.clone();
        tokio::spawn(async move { client.wait(Context::default(), &request).await })
    }

    /// Runs the program as containerd does.
    pub(crate) fn run(&self, arguments: &[&str]) -> std::process::Output {
        let program = env!("CARGO_BIN_EXE_containerd-shim-bulkhead-v2");
        Command::new(program).args(arguments).current_dir(self.dir.path()).output().unwrap()
    }

    /// Whether the proxy still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.proxy.try_wait().unwrap().is_none()
    }

    /// What the proxy has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("shim.stderr")).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for child in [&mut self.proxy, &mut self.vmm] {
            // It may have ended by itself: then there is nothing to kill.
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() && self.path("shim.stderr").metadata().unwrap().is_file() {
            eprintln!("--- shim.stderr\n{}", self.log());
        }
    }
}

fn spawn_proxy(dir: &Path) -> Child {
    let listener = |name| OwnedFd::from(UnixListener::bind(dir.join(name)).unwrap());
    let (task, shim) = (listener(TASK_SOCKET), listener(SHIM_SOCKET));
    let mut command = Command::new(env!("CARGO_BIN_EXE_containerd-shim-bulkhead-v2"));
    command.args(["serve", "--id", "sandbox", "--namespace", "k8s.io"]);
    for (flag, name) in [("--dir", ""), ("--control", CONTROL_SOCKET), ("--containerd-events", "events.sock")]
    {
        command.arg(flag).arg(dir.join(name));
    }
    let mappings = [(task, TASK_SOCKET_FD), (shim, SHIM_SOCKET_FD)];
    let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.into()).unwrap();
    // As the sandboxer opens it.
    let stderr = File::options().create(true).append(true).open(dir.join("shim.stderr")).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap()
}

async fn connect(path: &Path) -> Client {
    Client::connect(&format!("unix://{}", path.display())).await.unwrap()
}

/// Field 22 of /proc/<pid>/stat.
fn start_time(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap().parse().unwrap()
}

/// Reads a FIFO to its end, as containerd does.
pub(crate) fn read_all(path: &str) -> JoinHandle<Vec<u8>> {
    let mut fifo = pipe::OpenOptions::new().open_receiver(path).unwrap();
    tokio::spawn(async move {
        let mut all = Vec::new();
        fifo.read_to_end(&mut all).await.unwrap();
        all
    })
}
