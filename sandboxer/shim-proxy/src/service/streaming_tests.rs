//! containerd's streaming service over a real connection, with ttrpc's own client as containerd.

use std::time::Duration;

use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::wrappers::{BytesValue, Int32Value, StringValue};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use ttrpc::r#async::transport::Socket;
use ttrpc::r#async::{CSReceiver, CSSender, Client, ClientStream};

use super::connections;
use crate::host::events::Events;
use crate::pod::PodHandle;
use crate::stdio::{Claim, Direction, HostEnds, Request, StreamReader, StreamRegistry, StreamWriter};

const SOON: Duration = Duration::from_secs(5);

struct Bench {
    pod: PodHandle,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (events, _forwarder) = Events::new(dir.path().join("events"), "k8s.io");
        let pod = PodHandle::spawn("p".into(), dir.path().join("control"), events);
        let listener = UnixListener::bind(dir.path().join("task.sock")).unwrap();
        tokio::spawn(connections::serve(listener, pod.clone()));
        Self { pod, dir }
    }

    fn registry(&self) -> &StreamRegistry {
        &self.pod.links().streams
    }

    async fn claim(&self, id: &str, direction: Direction) -> Claim {
        self.registry().claim(id, direction).await.unwrap()
    }

    /// Connects as containerd does for each stream.
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
            while self.registry().len().await > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(SOON, forget).await.is_ok(), "ids are still in use");
    }

    async fn until_connections(&self, wanted: usize) {
        let open = || self.pod.open_connections();
        let settle = async {
            while open().await != wanted {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let settled = timeout(SOON, settle).await;
        assert!(settled.is_ok(), "{} connections instead of {wanted}", open().await);
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
async fn output_stays_within_containerds_window() {
    let bench = Bench::new();
    let mut containerd = bench.connect("c-stdout").await;
    let mut writer = StreamWriter::new(bench.claim("c-stdout", Direction::Output).await);
    let much: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let sent = much.clone();
    let write = tokio::spawn(async move {
        writer.write_all(&sent).await;
        writer.finish();
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
    // containerd 2.1 does not close it.
    bench.until_connections(0).await;
    bench.until_forgotten().await;
}

#[tokio::test]
async fn output_waits_while_containerd_is_away() {
    let bench = Bench::new();
    let claim = bench.claim("c-stdout", Direction::Output).await;
    let hold = claim.hold();
    let mut writer = StreamWriter::new(claim);
    let first = bench.connect("c-stdout").await;
    first.grant(3).await;
    let write = tokio::spawn(async move {
        writer.write_all(b"abcdef").await;
        writer.finish();
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
    // Until the process is deleted, a further connection is ended, too.
    bench.connect("c-stdout").await.expect_end().await;
    drop((hold, write.await.unwrap()));
    bench.until_connections(0).await;
    bench.until_forgotten().await;
}

#[tokio::test]
async fn input_ends_with_its_end_mark_and_not_with_a_lost_connection() {
    let bench = Bench::new();
    let mut first = bench.connect("c-stdin").await;
    let mut reader = StreamReader::new(bench.claim("c-stdin", Direction::Input).await);
    let reading = timeout(Duration::from_millis(50), reader.read(100)).await;
    assert!(reading.is_err(), "{reading:?}");
    assert!(first.room().await > 0);
    first.write(b"one").await;
    assert_eq!(timeout(SOON, reader.read(2)).await.unwrap(), b"on");
    assert_eq!(timeout(SOON, reader.read(100)).await.unwrap(), b"e");
    assert_eq!(first.room().await, 3);
    drop(first);
    bench.until_connections(0).await;
    let reading = timeout(Duration::from_millis(50), reader.read(100)).await;
    assert!(reading.is_err(), "a lost connection is not the end: {reading:?}");
    let second = bench.connect("c-stdin").await;
    second.write(b"two").await;
    second.send.close_send().await.unwrap();
    // containerd 2.3 closes at once, with the data still under way.
    drop(second);
    assert_eq!(timeout(SOON, reader.read(100)).await.unwrap(), b"two");
    assert_eq!(timeout(SOON, reader.read(100)).await.unwrap(), b"");
}

#[tokio::test]
async fn no_input_is_lost_when_containerd_sends_it_and_closes() {
    for _ in 0..50 {
        let bench = Bench::new();
        let mut reader = StreamReader::new(bench.claim("c-stdin", Direction::Input).await);
        let read = tokio::spawn(async move {
            let mut length = 0;
            loop {
                match reader.read(16 * 1024).await.len() {
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
async fn input_that_nobody_reads_is_discarded_and_ended() {
    let bench = Bench::new();
    let mut containerd = bench.connect("c-stdin").await;
    let reader = StreamReader::new(bench.claim("c-stdin", Direction::Input).await);
    drop(reader);
    assert!(containerd.room().await > 1_000_000);
    containerd.expect_end().await;
    bench.until_connections(0).await;
}

#[tokio::test]
async fn an_unclaimed_stream_is_forgotten_with_its_connection() {
    let bench = Bench::new();
    let containerd = bench.connect("c-stdout").await;
    assert_eq!(bench.registry().len().await, 1);
    drop(containerd);
    bench.until_forgotten().await;
    bench.until_connections(0).await;
}

#[tokio::test]
async fn a_process_is_abandoned_when_containerd_closes_one_of_its_outputs() {
    let bench = Bench::new();
    let uri = |id: &str| format!("ttrpc+unix:///s?streaming_id={id}");
    let registry = bench.registry();
    for half in [true, false] {
        let request = Request { stdout: uri("e-stdout"), stderr: uri("e-stderr"), ..Default::default() };
        let (mut stdout, stderr) = (bench.connect("e-stdout").await, bench.connect("e-stderr").await);
        let ends = HostEnds::open(&request, registry).await.unwrap();
        assert!(!request.is_abandoned(registry).await, "half {half}");
        let half_closed = if half {
            stderr.send.close_send().await.unwrap();
            Some(stderr)
        } else {
            drop(stderr);
            None
        };
        let seen = async {
            while !request.is_abandoned(registry).await {
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
async fn a_connection_that_both_sides_close_at_once_is_closed() {
    let bench = Bench::new();
    let containerd = bench.connect("e-stdout").await;
    let claim = bench.claim("e-stdout", Direction::Output).await;
    drop(containerd);
    drop(claim);
    bench.until_connections(0).await;
}
