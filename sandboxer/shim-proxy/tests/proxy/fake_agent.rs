//! A guest agent behind a hybrid vsock socket; the test decides what its containers do.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bulkhead_protocol::agent::*;
use bulkhead_protocol::agent_ttrpc::{Agent, create_agent};
use bulkhead_protocol::stream::END;
use bulkhead_protocol::{AGENT_PORT, STREAM_PORT, frame, version};
use futures::stream::unfold;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, get_status};

pub(crate) use bulkhead_protocol::agent::stream_header::Kind;

type Key = (String, String);

/// The state of the agent, and what the test has told it to do.
#[derive(Default)]
struct World {
    calls: Vec<String>,
    processes: BTreeMap<Key, Process>,
    streams: HashMap<(String, String, Kind), UnixStream>,
    failures: HashMap<&'static str, Code>,
    held: Vec<&'static str>,
    next_pid: u32,
    zero_pid: bool,
    ooms: HashMap<String, u64>,
    stats: Option<StatsResponse>,
    hello_refusal: Option<String>,
    stdio: HashMap<Key, Stdio>,
    exec_specs: HashMap<Key, Vec<u8>>,
    sockets: Vec<HostSocket>,
}

#[derive(Default)]
struct Process {
    pid: u32,
    started: bool,
    end: Option<WaitResponse>,
}

/// The agent, shared by its service and the test.
#[derive(Clone)]
pub(crate) struct FakeAgent {
    world: Arc<Mutex<World>>,
    changed: watch::Sender<u64>,
    sessions: Arc<Mutex<JoinSet<()>>>,
    dead: watch::Sender<bool>,
    babbling: watch::Sender<bool>,
}

impl FakeAgent {
    /// Listens where the VMM's vsock socket would be.
    pub(crate) async fn listen(vsock: &Path) -> Self {
        let agent = Self {
            world: Arc::default(),
            changed: watch::Sender::new(0),
            sessions: Arc::default(),
            dead: watch::Sender::new(false),
            babbling: watch::Sender::new(false),
        };
        agent.world.lock().unwrap().next_pid = 100;
        let listener = UnixListener::bind(vsock).unwrap();
        let it = agent.clone();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::spawn(it.clone().accept(socket));
            }
        });
        agent
    }

    async fn accept(self, socket: UnixStream) {
        // Unbuffered: what follows the line belongs to the port's own protocol.
        let mut socket = BufReader::with_capacity(1, socket);
        let mut line = String::new();
        socket.read_line(&mut line).await.unwrap();
        let mut socket = socket.into_inner();
        let port: u32 = line.strip_prefix("CONNECT ").unwrap().trim().parse().unwrap();
        if *self.dead.borrow() {
            return;
        }
        socket.write_all(b"OK 1073741824\n").await.unwrap();
        if port == AGENT_PORT && *self.babbling.borrow() {
            let noise: Vec<u8> =
                (0..4096_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
            // The proxy may have hung up already.
            drop(socket.write_all(&noise).await);
        } else if port == AGENT_PORT {
            self.session(socket).await;
        } else if port == STREAM_PORT {
            let header: StreamHeader = frame::read_message(&mut socket).await.unwrap();
            let key = (header.container_id, header.exec_id, header.kind.unwrap());
            self.change(|world| world.streams.insert(key, socket));
        }
    }

    async fn session(self, socket: UnixStream) {
        let (send, receive) = mpsc::channel(1);
        send.send(socket).await.unwrap();
        let incoming = unfold(receive, |mut receive| async move {
            receive.recv().await.map(|socket| (Ok::<_, std::io::Error>(socket), receive))
        });
        let mut server = Server::new()
            .add_listener(Listener::new(incoming))
            .register_service(create_agent(Arc::new(self.clone())));
        server.start().await.unwrap();
        self.sessions.lock().unwrap().spawn(async move {
            let _open = (send, server);
            std::future::pending::<()>().await;
        });
    }

    /// Breaks every session, as a restart of the vsock helper does. The next dial works.
    pub(crate) async fn break_sessions(&self) {
        let mut sessions = std::mem::take(&mut *self.sessions.lock().unwrap());
        sessions.shutdown().await;
    }

    /// While set, new sessions get noise instead of an agent.
    pub(crate) fn babble(&self, babble: bool) {
        self.babbling.send_replace(babble);
    }

    /// From now on no port answers.
    pub(crate) async fn die(&self) {
        self.dead.send_replace(true);
        self.break_sessions().await;
        self.change(|world| world.streams.clear());
    }

    fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let result = change(&mut self.world.lock().unwrap());
        self.changed.send_modify(|count| *count += 1);
        result
    }

    /// Waits until the world is as wanted.
    async fn until<T>(&self, mut look: impl FnMut(&mut World) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(found) = look(&mut self.world.lock().unwrap()) {
                return found;
            }
            changed.changed().await.unwrap();
        }
    }

    /// What has been called, in order, with the ids.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.world.lock().unwrap().calls.clone()
    }

    /// Waits for a call.
    pub(crate) async fn called(&self, call: &str) {
        self.until(|world| world.calls.iter().any(|each| each == call).then_some(())).await;
    }

    /// The process that an exec was created with.
    pub(crate) fn exec_spec(&self, container: &str, exec: &str) -> String {
        let key = (container.to_owned(), exec.to_owned());
        String::from_utf8(self.world.lock().unwrap().exec_specs[&key].clone()).unwrap()
    }

    /// Which containers and execs it holds.
    pub(crate) fn holds(&self) -> Vec<Key> {
        self.world.lock().unwrap().processes.keys().cloned().collect()
    }

    /// The next call of this name fails.
    pub(crate) fn fail(&self, call: &'static str, code: Code) {
        self.change(|world| world.failures.insert(call, code));
    }

    /// Calls of this name are not answered until they are let go.
    pub(crate) fn hold(&self, call: &'static str) {
        self.change(|world| world.held.push(call));
    }

    /// Lets held calls go on.
    pub(crate) fn let_go(&self, call: &'static str) {
        self.change(|world| world.held.retain(|held| *held != call));
    }

    /// From now on it answers pid 0.
    pub(crate) fn lie_about_pids(&self) {
        self.change(|world| world.zero_pid = true);
    }

    /// From now on it answers these metrics.
    pub(crate) fn claim(&self, stats: StatsResponse) {
        self.change(|world| world.stats = Some(stats));
    }

    /// From now on it refuses Hello with this text.
    pub(crate) fn refuse_hello(&self, words: String) {
        self.change(|world| world.hello_refusal = Some(words));
    }

    /// The guest's end of a stream.
    pub(crate) async fn stream(&self, container: &str, exec: &str, kind: Kind) -> UnixStream {
        let key = (container.to_owned(), exec.to_owned(), kind);
        self.until(|world| world.streams.remove(&key)).await
    }

    /// Ends a process.
    pub(crate) fn end(&self, container: &str, exec: &str, status: u32, oom_killed: bool) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let answer = WaitResponse {
            exit_status: status,
            exited_at_nanos: i64::try_from(now.as_nanos()).unwrap(),
            oom_killed,
            ..Default::default()
        };
        let key = (container.to_owned(), exec.to_owned());
        self.change(|world| world.processes.get_mut(&key).unwrap().end = Some(answer));
    }

    /// Counts an OOM kill in a container.
    pub(crate) fn oom(&self, container: &str) {
        self.change(|world| *world.ooms.entry(container.to_owned()).or_default() += 1);
    }

    /// What sockets the last container was to be shown.
    pub(crate) fn sockets(&self) -> Vec<HostSocket> {
        self.world.lock().unwrap().sockets.clone()
    }

    /// What stdio it was told of.
    pub(crate) fn stdio(&self, container: &str, exec: &str) -> Stdio {
        let key = (container.to_owned(), exec.to_owned());
        self.world.lock().unwrap().stdio[&key].clone()
    }

    async fn enter(&self, call: &'static str, ids: &[&str]) -> ttrpc::Result<()> {
        let failure = self.change(|world| {
            world.calls.push([&[call], ids].concat().join(" ").trim_end().to_owned());
            world.failures.remove(call)
        });
        self.until(|world| (!world.held.contains(&call)).then_some(())).await;
        match failure {
            Some(code) => Err(ttrpc::Error::RpcStatus(get_status(code, "as the test wishes"))),
            None => Ok(()),
        }
    }
}

fn refused<T>(code: Code) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(get_status(code, "refused by the fake agent")))
}

/// Sends one chunk of output.
pub(crate) async fn say(stream: &mut UnixStream, bytes: &[u8]) {
    for piece in bytes.chunks(64 * 1024) {
        stream.write_all(&u32::try_from(piece.len()).unwrap().to_le_bytes()).await.unwrap();
        stream.write_all(piece).await.unwrap();
    }
}

/// Ends a stream and waits until the proxy has taken everything.
pub(crate) async fn say_end(mut stream: UnixStream) {
    stream.write_all(&END).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the end is acknowledged by closing");
}

/// Receives one chunk of input; empty: the end.
pub(crate) async fn hear(stream: &mut UnixStream) -> Vec<u8> {
    let length = stream.read_u32_le().await.unwrap();
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

#[async_trait]
impl Agent for FakeAgent {
    async fn hello(&self, _: &TtrpcContext, _: HelloRequest) -> ttrpc::Result<HelloResponse> {
        match self.world.lock().unwrap().hello_refusal.clone() {
            Some(words) => Err(ttrpc::Error::RpcStatus(get_status(Code::INTERNAL, words))),
            None => Ok(HelloResponse { version: version::MAX_VERSION, ..Default::default() }),
        }
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        self.enter("create", &[&request.container_id]).await?;
        let key = (request.container_id, String::new());
        self.change(|world| {
            if world.processes.contains_key(&key) {
                return refused(Code::ALREADY_EXISTS);
            }
            world.next_pid += 1;
            let pid = world.next_pid;
            world.sockets = request.sockets;
            world.stdio.insert(key.clone(), request.stdio.unwrap_or_default());
            world.processes.insert(key, Process { pid, ..Default::default() });
            let pid = if world.zero_pid { 0 } else { pid };
            Ok(CreateContainerResponse { pid, ..Default::default() })
        })
    }

    async fn create_exec(&self, _: &TtrpcContext, request: CreateExecRequest) -> ttrpc::Result<Empty> {
        self.enter("exec", &[&request.container_id, &request.exec_id]).await?;
        let key = (request.container_id, request.exec_id);
        self.change(|world| {
            world.stdio.insert(key.clone(), request.stdio.unwrap_or_default());
            world.exec_specs.insert(key.clone(), request.process);
            world.processes.insert(key, Process::default());
        });
        Ok(Empty::new())
    }

    async fn start(&self, _: &TtrpcContext, request: ProcessRef) -> ttrpc::Result<StartResponse> {
        self.enter("start", &[&request.container_id, &request.exec_id]).await?;
        let key = (request.container_id, request.exec_id);
        self.change(|world| {
            world.next_pid += 1;
            let next = world.next_pid;
            let Some(process) = world.processes.get_mut(&key) else { return refused(Code::NOT_FOUND) };
            process.started = true;
            if process.pid == 0 {
                process.pid = next;
            }
            Ok(StartResponse { pid: process.pid, ..Default::default() })
        })
    }

    async fn wait(&self, _: &TtrpcContext, request: ProcessRef) -> ttrpc::Result<WaitResponse> {
        self.enter("wait", &[&request.container_id, &request.exec_id]).await?;
        let key = (request.container_id, request.exec_id);
        self.until(|world| match world.processes.get(&key) {
            Some(process) => process.end.clone().map(Ok),
            None => Some(refused(Code::NOT_FOUND)),
        })
        .await
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        let what = format!("{}{}", request.signal, if request.all { " all" } else { "" });
        self.enter("signal", &[&request.container_id, &request.exec_id, &what]).await?;
        let key = (request.container_id.clone(), request.exec_id.clone());
        let alive = self.change(|world| world.processes.get(&key).is_some_and(|it| it.end.is_none()));
        if !alive {
            return refused(Code::NOT_FOUND);
        }
        if request.signal == 9 {
            self.end(&request.container_id, &request.exec_id, 137, false);
        }
        Ok(Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, request: ProcessRef) -> ttrpc::Result<Empty> {
        self.enter("delete", &[&request.container_id, &request.exec_id]).await?;
        let key = (request.container_id.clone(), request.exec_id);
        self.change(|world| match world.processes.get(&key) {
            Some(process) if process.started && process.end.is_none() => refused(Code::FAILED_PRECONDITION),
            Some(_) if key.1.is_empty() => {
                world.processes.retain(|(container, _), _| *container != request.container_id);
                Ok(Empty::new())
            }
            Some(_) => {
                world.processes.remove(&key);
                Ok(Empty::new())
            }
            None => refused(Code::NOT_FOUND),
        })
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> ttrpc::Result<Empty> {
        let resources = String::from_utf8(request.resources).unwrap();
        self.enter("update", &[&request.container_id, &resources]).await?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let size = format!("{}x{}", request.width, request.height);
        self.enter("resize", &[&request.container_id, &request.exec_id, &size]).await?;
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<StatsResponse> {
        self.enter("stats", &[&request.container_id]).await?;
        let plain = StatsResponse { memory_usage: 4096, memory_usage_limit: u64::MAX, ..Default::default() };
        Ok(self.world.lock().unwrap().stats.clone().unwrap_or(plain))
    }

    async fn wait_oom(&self, _: &TtrpcContext, request: WaitOomRequest) -> ttrpc::Result<WaitOomResponse> {
        let id = request.container_id;
        let count = |world: &mut World| world.ooms.get(&id).copied().filter(|count| *count > request.seen);
        Ok(WaitOomResponse { count: self.until(count).await, ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        self.enter("pause", &[&request.container_id]).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        self.enter("resume", &[&request.container_id]).await?;
        Ok(Empty::new())
    }
}
