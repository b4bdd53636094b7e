//! A real client over a real socket, against a scripted sandboxer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::sandbox::controller_client::ControllerClient;
use containerd_client::services::v1::sandbox::*;
use containerd_client::types;
use hyper_util::rt::TokioIo;
use prost_types::{Any, Timestamp};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::*;

const LONG: Duration = Duration::from_secs(20);

/// Behaves as the id says: `panics`, `slow` (until released), a code's name, else all is well.
#[derive(Default)]
struct Scripted {
    heard: Mutex<Vec<String>>,
    creates: Mutex<Vec<Create>>,
    changed: Notify,
    release: Notify,
}

impl Scripted {
    fn hear(&self, what: String) {
        self.heard.lock().unwrap().push(what);
        self.changed.notify_waiters();
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    async fn until_heard(&self, what: &str) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if self.heard().iter().any(|heard| heard == what) {
                    return;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(LONG, waiting).await;
        assert!(waited.is_ok(), "{what:?} is not in {:?}", self.heard());
    }

    async fn act(&self, call: &str, id: &str) -> Result<(), Failure> {
        self.hear(format!("{call} {id}"));
        match id {
            "panics" => panic!("scripted panic in {call}"),
            "slow" => self.release.notified().await,
            _ => {}
        }
        self.hear(format!("{call} {id} ended"));
        match CODES.iter().find(|(name, ..)| *name == id) {
            Some((_, code, _)) => Err(Failure::new(*code, format!("{call} says {id}"))),
            None => Ok(()),
        }
    }
}

const CODES: [(&str, Code, tonic::Code); 9] = [
    ("invalid", Code::InvalidArgument, tonic::Code::InvalidArgument),
    ("unknown", Code::NotFound, tonic::Code::NotFound),
    ("twice", Code::AlreadyExists, tonic::Code::AlreadyExists),
    ("wrong-state", Code::FailedPrecondition, tonic::Code::FailedPrecondition),
    ("full", Code::ResourceExhausted, tonic::Code::ResourceExhausted),
    ("late", Code::DeadlineExceeded, tonic::Code::DeadlineExceeded),
    ("away", Code::Unavailable, tonic::Code::Unavailable),
    ("not-offered", Code::Unimplemented, tonic::Code::Unimplemented),
    ("broken", Code::Internal, tonic::Code::Internal),
];

fn a_time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5)
}

fn the_same_on_the_wire() -> Timestamp {
    Timestamp { seconds: 1_700_000_000, nanos: 5 }
}

#[async_trait::async_trait]
impl Sandboxer for Scripted {
    async fn create(&self, request: Create) -> Result<(), Failure> {
        self.creates.lock().unwrap().push(request.clone());
        self.act("create", &request.id).await
    }
    async fn start(&self, id: &str) -> Result<Started, Failure> {
        self.act("start", id).await?;
        let address = "ttrpc+unix:///run/x/task.sock".to_owned();
        let labels = BTreeMap::from([("name".to_owned(), "web".to_owned())]);
        Ok(Started { pid: 42, created_at: a_time(), address, version: 3, labels })
    }
    async fn abandoned(&self, id: &str, step: Step) {
        self.hear(format!("abandoned {id} {step:?}"));
    }
    async fn platform(&self, id: &str) -> Result<Platform, Failure> {
        self.act("platform", id).await?;
        Ok(Platform::linux())
    }
    async fn stop(&self, id: &str, timeout: Option<Duration>) -> Result<(), Failure> {
        self.hear(format!("stop timeout {timeout:?}"));
        self.act("stop", id).await
    }
    async fn wait(&self, id: &str) -> Result<Exit, Failure> {
        self.act("wait", id).await?;
        Ok(Exit { status: 137, at: a_time() })
    }
    async fn status(&self, id: &str, verbose: bool) -> Result<Status, Failure> {
        self.act("status", id).await?;
        let info = BTreeMap::from([("info".to_owned(), format!("{{\"verbose\":{verbose}}}"))]);
        Ok(Status {
            pid: 42,
            state: State::Ready,
            info,
            created_at: Some(a_time()),
            exited_at: None,
            address: "ttrpc+unix:///run/x/task.sock".to_owned(),
            version: 3,
        })
    }
    async fn shutdown(&self, id: &str) -> Result<(), Failure> {
        self.act("shutdown", id).await
    }
    async fn metrics(&self, id: &str) -> Result<Metric, Failure> {
        self.act("metrics", id).await?;
        let data = Any { type_url: "io.containerd.cgroups.v2.Metrics".to_owned(), value: vec![1] };
        Ok(Metric { at: a_time(), data })
    }
    async fn update(&self, request: Update) -> Result<(), Failure> {
        self.hear(format!("update {:?} {:?}", request.fields, request.extensions.keys().collect::<Vec<_>>()));
        self.act("update", &request.id).await
    }
}

struct Harness {
    script: Arc<Scripted>,
    socket: PathBuf,
    end: oneshot::Sender<()>,
    server: JoinHandle<Result<(), ServeError>>,
    _dir: tempfile::TempDir,
}

impl Harness {
    fn new(grace: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let script = Arc::new(Scripted::default());
        let (end, ended) = oneshot::channel::<()>();
        let ended = async move { ended.await.unwrap_or_default() };
        let server =
            tokio::spawn(serve(Arc::clone(&script), listener, grace, |_, _| tracing::Span::none(), ended));
        Self { script, socket, end, server, _dir: dir }
    }

    async fn client(&self) -> ControllerClient<Channel> {
        connect(&self.socket).await
    }
}

async fn connect(socket: &Path) -> ControllerClient<Channel> {
    let socket = socket.to_path_buf();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    ControllerClient::new(endpoint.connect_with_connector(connector).await.unwrap())
}

/// Each call with this id, and what came of it.
async fn all_nine(
    client: &mut ControllerClient<Channel>,
    id: &str,
) -> Vec<(&'static str, Option<tonic::Status>)> {
    let sandbox_id = id.to_owned();
    let id = || sandbox_id.clone();
    vec![
        (
            "create",
            client.create(ControllerCreateRequest { sandbox_id: id(), ..Default::default() }).await.err(),
        ),
        (
            "start",
            client.start(ControllerStartRequest { sandbox_id: id(), ..Default::default() }).await.err(),
        ),
        (
            "platform",
            client.platform(ControllerPlatformRequest { sandbox_id: id(), ..Default::default() }).await.err(),
        ),
        ("stop", client.stop(ControllerStopRequest { sandbox_id: id(), ..Default::default() }).await.err()),
        ("wait", client.wait(ControllerWaitRequest { sandbox_id: id(), ..Default::default() }).await.err()),
        (
            "status",
            client.status(ControllerStatusRequest { sandbox_id: id(), ..Default::default() }).await.err(),
        ),
        (
            "shutdown",
            client.shutdown(ControllerShutdownRequest { sandbox_id: id(), ..Default::default() }).await.err(),
        ),
        (
            "metrics",
            client.metrics(ControllerMetricsRequest { sandbox_id: id(), ..Default::default() }).await.err(),
        ),
        (
            "update",
            client.update(ControllerUpdateRequest { sandbox_id: id(), ..Default::default() }).await.err(),
        ),
    ]
}

fn start(id: &str) -> ControllerStartRequest {
    ControllerStartRequest { sandbox_id: id.to_owned(), sandboxer: "bulkhead".to_owned() }
}

#[tokio::test]
async fn create_hands_over_what_containerd_says() {
    let harness = Harness::new(LONG);
    let options = Any { type_url: "runtime.v1.PodSandboxConfig".to_owned(), value: vec![1, 2] };
    let runtime = types::sandbox::Runtime { name: "io.containerd.bulkhead.v2".to_owned(), options: None };
    let sandbox = types::Sandbox {
        runtime: Some(runtime),
        labels: [("name".to_owned(), "web".to_owned())].into(),
        created_at: Some(the_same_on_the_wire()),
        extensions: [("metadata".to_owned(), options.clone())].into(),
        ..Default::default()
    };
    let mut request = Request::new(ControllerCreateRequest {
        sandbox_id: "s1".to_owned(),
        options: Some(options.clone()),
        netns_path: "/run/netns/x".to_owned(),
        sandbox: Some(sandbox),
        ..Default::default()
    });
    request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().unwrap());
    let answer = harness.client().await.create(request).await.unwrap().into_inner();
    assert_eq!(answer.sandbox_id, "s1");
    let expected = Create {
        caller_pid: i32::try_from(std::process::id()).ok(),
        id: "s1".to_owned(),
        namespace: "k8s.io".to_owned(),
        options: Some(options.clone()),
        netns_path: Some("/run/netns/x".into()),
        runtime: "io.containerd.bulkhead.v2".to_owned(),
        created_at: Some(a_time()),
        labels: [("name".to_owned(), "web".to_owned())].into(),
        extensions: [("metadata".to_owned(), options)].into(),
    };
    assert_eq!(*harness.script.creates.lock().unwrap(), [expected]);
}

#[tokio::test]
async fn a_host_network_pod_has_no_namespace_and_no_time() {
    let harness = Harness::new(LONG);
    let created_at = Some(Timestamp { seconds: -62_135_596_800, nanos: 0 });
    let sandbox = types::Sandbox { created_at, ..Default::default() };
    let request =
        ControllerCreateRequest { sandbox_id: "s1".to_owned(), sandbox: Some(sandbox), ..Default::default() };
    harness.client().await.create(request).await.unwrap();
    let creates = harness.script.creates.lock().unwrap();
    assert_eq!((&creates[0].netns_path, creates[0].created_at), (&None, None));
}

#[tokio::test]
async fn answers_say_what_containerd_needs() {
    let harness = Harness::new(LONG);
    let mut client = harness.client().await;

    let started = client.start(start("s1")).await.unwrap().into_inner();
    assert_eq!((started.pid, started.version, started.sandbox_id.as_str()), (42, 3, "s1"));
    assert_eq!(started.address, "ttrpc+unix:///run/x/task.sock");
    assert_eq!(started.created_at, Some(the_same_on_the_wire()));
    assert_eq!(started.labels["name"], "web");

    let request = ControllerStatusRequest { sandbox_id: "s1".into(), verbose: true, ..Default::default() };
    let status = client.status(request).await.unwrap().into_inner();
    assert_eq!((status.pid, status.version, status.state.as_str()), (42, 3, "SANDBOX_READY"));
    assert_eq!(status.address, started.address);
    assert_eq!(status.info["info"], "{\"verbose\":true}");
    assert_eq!((status.created_at, status.exited_at), (Some(the_same_on_the_wire()), None));

    let request = ControllerWaitRequest { sandbox_id: "s1".into(), ..Default::default() };
    let exit = client.wait(request).await.unwrap().into_inner();
    assert_eq!((exit.exit_status, exit.exited_at), (137, Some(the_same_on_the_wire())));

    let request = ControllerPlatformRequest { sandbox_id: "s1".into(), ..Default::default() };
    let platform = client.platform(request).await.unwrap().into_inner().platform.unwrap();
    assert_eq!(platform.os, "linux");
    assert!(["amd64", "arm64"].contains(&platform.architecture.as_str()), "{platform:?}");

    let request = ControllerMetricsRequest { sandbox_id: "s1".into(), ..Default::default() };
    let metric = client.metrics(request).await.unwrap().into_inner().metrics.unwrap();
    assert_eq!((metric.id.as_str(), metric.timestamp), ("s1", Some(the_same_on_the_wire())));
    assert_eq!(metric.data.unwrap().type_url, "io.containerd.cgroups.v2.Metrics");
}

#[tokio::test]
async fn stop_and_update_carry_their_fields() {
    let harness = Harness::new(LONG);
    let mut client = harness.client().await;
    for timeout_secs in [0, 7] {
        let request = ControllerStopRequest { sandbox_id: "s1".into(), timeout_secs, ..Default::default() };
        client.stop(request).await.unwrap();
    }
    let sandbox = types::Sandbox {
        extensions: [("updated-resources".to_owned(), Any::default())].into(),
        ..Default::default()
    };
    let request = ControllerUpdateRequest {
        sandbox_id: "s1".into(),
        sandbox: Some(sandbox),
        fields: vec!["extensions".to_owned()],
        ..Default::default()
    };
    client.update(request).await.unwrap();
    let heard = harness.script.heard();
    for expected in
        ["stop timeout None", "stop timeout Some(7s)", "update [\"extensions\"] [\"updated-resources\"]"]
    {
        assert!(heard.iter().any(|heard| heard == expected), "{expected:?} is not in {heard:?}");
    }
}

#[tokio::test]
async fn ids_that_are_paths_reach_nobody() {
    let harness = Harness::new(LONG);
    let mut client = harness.client().await;
    for id in ["", "..", "a/b", "../../etc", "a b"] {
        for (call, status) in all_nine(&mut client, id).await {
            let status = status.unwrap_or_else(|| panic!("{call} took {id:?}"));
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{call} {id:?}");
            assert!(status.message().contains(&format!("{id:?}")), "{}", status.message());
        }
    }
    assert_eq!(harness.script.heard(), Vec::<String>::new());
}

#[tokio::test]
async fn codes_arrive_as_they_are_but_for_what_containerd_would_misread() {
    let harness = Harness::new(LONG);
    let mut client = harness.client().await;
    for (id, code, on_the_wire) in CODES {
        for (call, status) in all_nine(&mut client, id).await {
            let got = status.map(|status| status.code());
            let expected = match (call, code) {
                ("stop" | "shutdown", Code::NotFound) => None,
                ("wait", Code::NotFound) => Some(tonic::Code::NotFound),
                ("wait", _) => Some(tonic::Code::Unavailable),
                _ => Some(on_the_wire),
            };
            assert_eq!(got, expected, "{call} {id}");
        }
    }
}

#[tokio::test]
async fn a_panic_is_an_answer() {
    let harness = Harness::new(LONG);
    let mut client = harness.client().await;
    for (call, status) in all_nine(&mut client, "panics").await {
        let status = status.unwrap();
        let expected = if call == "wait" { tonic::Code::Unavailable } else { tonic::Code::Internal };
        assert_eq!(status.code(), expected, "{call}: {status}");
        assert!(status.message().contains(&format!("scripted panic in {call}")), "{status}");
    }
    assert!(client.start(start("s1")).await.is_ok(), "the connection and the service go on");
}

#[tokio::test]
async fn a_client_that_leaves_start_or_create_has_it_undone() {
    let harness = Harness::new(LONG);
    for (call, step) in [("create", Step::Create), ("start", Step::Start)] {
        let mut client = harness.client().await;
        let running = tokio::spawn(async move {
            if step == Step::Create {
                let request = ControllerCreateRequest { sandbox_id: "slow".into(), ..Default::default() };
                client.create(request).await.map(|_| ())
            } else {
                client.start(start("slow")).await.map(|_| ())
            }
        });
        harness.script.until_heard(&format!("{call} slow")).await;
        running.abort();
        harness.script.until_heard(&format!("abandoned slow {step:?}")).await;
        let ended = format!("{call} slow ended");
        assert!(!harness.script.heard().contains(&ended), "it was told before the call ended");
        harness.script.release.notify_one();
        harness.script.until_heard(&ended).await;
    }
    let abandoned = harness.script.heard().iter().filter(|heard| heard.starts_with("abandoned")).count();
    assert_eq!(abandoned, 2);
}

#[tokio::test]
async fn a_deadline_undoes_start() {
    let harness = Harness::new(LONG);
    let mut client = harness.client().await;
    let mut request = Request::new(start("slow"));
    request.set_timeout(Duration::from_millis(50));
    let status = client.start(request).await.unwrap_err();
    assert!([tonic::Code::Cancelled, tonic::Code::DeadlineExceeded].contains(&status.code()), "{status}");
    harness.script.until_heard("abandoned slow Start").await;
}

#[tokio::test]
async fn a_client_that_leaves_stop_changes_nothing() {
    let harness = Harness::new(LONG);
    let mut client = harness.client().await;
    let request = ControllerStopRequest { sandbox_id: "slow".into(), ..Default::default() };
    let running = tokio::spawn(async move { client.stop(request).await.map(|_| ()) });
    harness.script.until_heard("stop slow").await;
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    harness.script.release.notify_one();
    harness.script.until_heard("stop slow ended").await;
    assert!(!harness.script.heard().iter().any(|heard| heard.starts_with("abandoned")));
}

#[tokio::test]
async fn the_end_answers_waits_first_and_is_prompt() {
    let harness = Harness::new(LONG);
    let mut client = harness.client().await;
    let request = ControllerWaitRequest { sandbox_id: "slow".into(), ..Default::default() };
    let waiting = tokio::spawn(async move { client.wait(request).await.map(|_| ()) });
    harness.script.until_heard("wait slow").await;
    harness.end.send(()).unwrap();
    let status = waiting.await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
    let ended = tokio::time::timeout(LONG / 2, harness.server).await;
    ended.expect("a pending Wait holds the end up").unwrap().unwrap();
}

#[tokio::test]
async fn the_end_lets_a_call_finish() {
    let harness = Harness::new(LONG);
    let mut client = harness.client().await;
    let starting = tokio::spawn(async move { client.start(start("slow")).await });
    harness.script.until_heard("start slow").await;
    harness.end.send(()).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    harness.script.release.notify_one();
    assert_eq!(starting.await.unwrap().unwrap().into_inner().pid, 42);
    tokio::time::timeout(LONG / 2, harness.server).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn the_end_is_bounded() {
    let harness = Harness::new(Duration::from_millis(50));
    let mut client = harness.client().await;
    let starting = tokio::spawn(async move { client.start(start("slow")).await });
    harness.script.until_heard("start slow").await;
    harness.end.send(()).unwrap();
    tokio::time::timeout(LONG / 2, harness.server).await.unwrap().unwrap().unwrap();
    starting.abort();
}
