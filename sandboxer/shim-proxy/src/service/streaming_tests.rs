//! Streams of containerd's streaming service, over a real connection with ttrpc's own client at its other end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::wrappers::{BytesValue, Int32Value, StringValue};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use ttrpc::r#async::transport::Socket;
use ttrpc::r#async::{CSReceiver, CSSender, Client, ClientStream};

use super::connections;
use crate::error::TaskError;
use crate::host::events::Events;
use crate::pod::Pod;
use crate::stdio::{Claim, HostEnds, Inlet, Outlet, Request, Role, Switchboard};

const SOON: Duration = Duration::from_secs(5);

struct Bench {
    pod: Arc<Pod>,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let events = Events::new(dir.path().join("events"), "k8s.io".into());
        let pod = Pod::new("p".into(), dir.path().join("control"), events);
        let listener = UnixListener::bind(dir.path().join("task.sock")).unwrap();
        tokio::spawn(connections::serve(listener, pod.clone()));
        Self { pod, dir }
    }

    fn claim(&self, id: &str, role: Role) -> Arc<Claim> {
        self.pod.switchboard.claim(id, role).unwrap()
    }

    /// As containerd connects for each stream.
    async fn connect(&self, id: &str) -> Containerd {
        let stream = UnixStream::connect(self.dir.path().join("task.sock")).await.unwrap();
        let client = Client::new(Socket::new(stream));
        let request = ttrpc::Request {
            service: "containerd.services.streaming.v1.Streaming".into(),
            method: "Stream".into(),
            ..Default::default()
        };
        let stream = client.new_stream(request, true, true).await.unwrap();
        let (send, receive) = ClientStream::<Any, Any>::new(stream).split();
        let mut containerd = Containerd { send, receive, _client: client };
        let init = StringValue { value: id.into(), ..Default::default() };
        containerd.say("containerd.services.streaming.v1.StreamInit", &init).await;
        assert_eq!(containerd.hear().await.unwrap().type_url, "google.protobuf.Empty");
        containerd
    }

    async fn until_forgotten(&self) {
        let forget = async {
            while self.pod.switchboard.len() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(SOON, forget).await.is_ok(), "{:?}", self.pod.switchboard);
    }

    async fn until_connections(&self, wanted: usize) {
        let open = &self.pod.callers;
        let settle = async {
            while open.count() != wanted {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let settled = timeout(SOON, settle).await;
        assert!(settled.is_ok(), "{open:?} connections instead of {wanted}");
    }
}

struct Containerd {
    send: CSSender<Any>,
    receive: CSReceiver<Any>,
    _client: Client,
}

impl Containerd {
    async fn say(&self, type_url: &str, message: &impl Message) {
        let value = message.write_to_bytes().unwrap();
        let any = Any { type_url: type_url.into(), value, ..Default::default() };
        timeout(SOON, self.send.send(&any)).await.unwrap().unwrap();
    }

    async fn grant(&self, bytes: i32) {
        let room = Int32Value { value: bytes, ..Default::default() };
        self.say("containerd.types.transfer.WindowUpdate", &room).await;
    }

    async fn write(&self, bytes: &[u8]) {
        let data = BytesValue { value: bytes.to_vec(), ..Default::default() };
        self.say("containerd.types.transfer.Data", &data).await;
    }

    async fn hear(&mut self) -> ttrpc::Result<Any> {
        timeout(SOON, self.receive.recv()).await.unwrap()
    }

    async fn data(&mut self) -> Vec<u8> {
        let message = self.hear().await.unwrap();
        assert_eq!(message.type_url, "containerd.types.transfer.Data");
        BytesValue::parse_from_bytes(&message.value).unwrap().value
    }

    async fn room(&mut self) -> i32 {
        let message = self.hear().await.unwrap();
        assert_eq!(message.type_url, "containerd.types.transfer.WindowUpdate");
        Int32Value::parse_from_bytes(&message.value).unwrap().value
    }

    async fn expect_end(&mut self) {
        let end = self.hear().await;
        assert!(matches!(end, Err(ttrpc::Error::Eof)), "{end:?}");
    }
}

#[tokio::test]
async fn output_stays_within_what_containerd_has_room_for() {
    let bench = Bench::new();
    let mut containerd = bench.connect("c-stdout").await;
    let mut outlet = Outlet::new(bench.claim("c-stdout", Role::Output));
    let much: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let sent = much.clone();
    let write = tokio::spawn(async move {
        outlet.write_all(&sent).await;
        outlet.finish();
    });
    containerd.grant(10).await;
    assert_eq!(containerd.data().await, much[..10]);
    let more = timeout(Duration::from_millis(100), containerd.receive.recv()).await;
    assert!(more.is_err(), "beyond the room: {more:?}");
    containerd.grant(65_536).await;
    containerd.grant(65_536).await;
    let mut came = much[..10].to_vec();
    while came.len() < much.len() {
        let piece = containerd.data().await;
        assert!(piece.len() <= 32 * 1024);
        came.extend(piece);
    }
    assert_eq!(came, much);
    containerd.expect_end().await;
    write.await.unwrap();
    // Nobody but us closes with containerd 2.1.
    bench.until_connections(0).await;
    bench.until_forgotten().await;
}

#[tokio::test]
async fn output_waits_for_a_containerd_that_is_away() {
    let bench = Bench::new();
    let keep = bench.claim("c-stdout", Role::Output);
    let mut outlet = Outlet::new(keep.clone());
    let first = bench.connect("c-stdout").await;
    first.grant(3).await;
    let write = tokio::spawn(async move {
        outlet.write_all(b"abcdef").await;
        outlet.finish();
    });
    let mut first = first;
    assert_eq!(first.data().await, b"abc");
    drop(first);
    bench.until_connections(0).await;
    assert!(!write.is_finished());
    let mut second = bench.connect("c-stdout").await;
    second.grant(65_536).await;
    assert_eq!(second.data().await, b"def");
    second.expect_end().await;
    // Until the process is deleted, whoever connects hears of the end.
    bench.connect("c-stdout").await.expect_end().await;
    drop((keep, write.await.unwrap()));
    bench.until_connections(0).await;
    bench.until_forgotten().await;
}

#[tokio::test]
async fn input_is_asked_for_and_ends_with_its_mark_alone() {
    let bench = Bench::new();
    let mut first = bench.connect("c-stdin").await;
    let mut inlet = Inlet::new(bench.claim("c-stdin", Role::Input));
    let reading = timeout(Duration::from_millis(50), inlet.read(100)).await;
    assert!(reading.is_err(), "{reading:?}");
    assert!(first.room().await > 0);
    first.write(b"one").await;
    assert_eq!(timeout(SOON, inlet.read(2)).await.unwrap(), b"on");
    assert_eq!(timeout(SOON, inlet.read(100)).await.unwrap(), b"e");
    assert_eq!(first.room().await, 3);
    drop(first);
    bench.until_connections(0).await;
    let reading = timeout(Duration::from_millis(50), inlet.read(100)).await;
    assert!(reading.is_err(), "a line that is lost is no end: {reading:?}");
    let second = bench.connect("c-stdin").await;
    second.write(b"two").await;
    second.send.close_send().await.unwrap();
    // containerd 2.3 closes at once, with the data still under way.
    drop(second);
    assert_eq!(timeout(SOON, inlet.read(100)).await.unwrap(), b"two");
    assert_eq!(timeout(SOON, inlet.read(100)).await.unwrap(), b"");
}

#[tokio::test]
async fn no_input_is_lost_when_containerd_says_it_and_goes() {
    for _ in 0..50 {
        let bench = Bench::new();
        let mut inlet = Inlet::new(bench.claim("c-stdin", Role::Input));
        let read = tokio::spawn(async move {
            let mut length = 0;
            loop {
                match inlet.read(16 * 1024).await.len() {
                    0 => return length,
                    more => length += more,
                }
            }
        });
        let mut containerd = bench.connect("c-stdin").await;
        let (mut room, mut sent) = (0, 0);
        while sent < 200_000 {
            while room < 1_000 {
                room += containerd.room().await;
            }
            containerd.write(&[b'x'; 1_000]).await;
            (room, sent) = (room - 1_000, sent + 1_000);
        }
        containerd.send.close_send().await.unwrap();
        drop(containerd);
        assert_eq!(timeout(SOON, read).await.unwrap().unwrap(), 200_000);
    }
}

#[tokio::test]
async fn input_that_nobody_reads_any_more_does_not_hold_containerd_up() {
    let bench = Bench::new();
    let mut containerd = bench.connect("c-stdin").await;
    let inlet = Inlet::new(bench.claim("c-stdin", Role::Input));
    drop(inlet);
    assert!(containerd.room().await > 1_000_000);
    containerd.expect_end().await;
    bench.until_connections(0).await;
}

#[tokio::test]
async fn a_line_that_no_process_ever_claims_is_forgotten_with_its_connection() {
    let bench = Bench::new();
    let containerd = bench.connect("c-stdout").await;
    assert_eq!(bench.pod.switchboard.len(), 1);
    drop(containerd);
    bench.until_forgotten().await;
    bench.until_connections(0).await;
}

#[tokio::test]
async fn a_process_is_abandoned_when_containerd_leaves_one_of_its_outputs() {
    let bench = Bench::new();
    let uri = |id: &str| format!("ttrpc+unix:///s?streaming_id={id}");
    let switchboard = &bench.pod.switchboard;
    for half in [true, false] {
        let request = Request { stdout: uri("e-stdout"), stderr: uri("e-stderr"), ..Default::default() };
        let (mut stdout, stderr) = (bench.connect("e-stdout").await, bench.connect("e-stderr").await);
        let ends = HostEnds::open(&request, switchboard).unwrap();
        assert!(!request.is_abandoned(switchboard), "half {half}");
        let half_closed = if half {
            stderr.send.close_send().await.unwrap();
            Some(stderr)
        } else {
            drop(stderr);
            None
        };
        let seen = async {
            while !request.is_abandoned(switchboard) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(SOON, seen).await.is_ok(), "half {half}");
        drop(ends);
        stdout.expect_end().await;
        bench.until_forgotten().await;
        bench.until_connections(0).await;
        drop((stdout, half_closed));
    }
}

#[tokio::test]
async fn a_connection_that_is_closed_from_both_sides_at_once_is_let_go() {
    let bench = Bench::new();
    let containerd = bench.connect("e-stdout").await;
    let claim = bench.claim("e-stdout", Role::Output);
    drop(containerd);
    drop(claim);
    bench.until_connections(0).await;
}

#[test]
fn without_outputs_that_end_nothing_is_abandoned() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let switchboard = Switchboard::default();
    let here = Request { stdout: path("."), stdin: path("gone"), ..Default::default() };
    let file = Request { stdout: format!("file://{}", path("gone")), ..Default::default() };
    let terminal = Request { terminal: true, stdout: path("."), stderr: path("gone"), ..Default::default() };
    for request in [Request::default(), here, file, terminal] {
        assert!(!request.is_abandoned(&switchboard), "{request:?}");
    }
    let gone = Request { stdout: path("gone"), ..Default::default() };
    assert!(gone.is_abandoned(&switchboard));
}

#[tokio::test]
async fn an_id_belongs_to_one_process() {
    let switchboard = Arc::new(Switchboard::default());
    let request = Request { stdout: "ttrpc+unix:///s?streaming_id=x".into(), ..Default::default() };
    let first = HostEnds::open(&request, &switchboard).unwrap();
    let error = HostEnds::open(&request, &switchboard).unwrap_err();
    assert!(matches!(error, TaskError::AlreadyExists { .. }), "{error}");
    drop(first);
    HostEnds::open(&request, &switchboard).unwrap();
    assert_eq!(switchboard.len(), 0);
    assert!(!Path::new("/s").exists());
}
