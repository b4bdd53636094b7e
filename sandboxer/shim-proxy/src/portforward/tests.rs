//! Port-forward in a real network namespace, with a guest that the test plays.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream as StdStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bulkhead_protocol::agent::{ForwardAnswer, StreamHeader};
use bulkhead_protocol::forward::{from_stream, into_stream};
use bulkhead_protocol::frame;
use bulkhead_protocol::stream::END;
use rustix::process::{getuid, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

use super::*;

/// Nothing in these tests may take longer.
const SOON: Duration = Duration::from_secs(20);

/// A network namespace, as long as its process lives.
struct Namespace(Child);

impl Namespace {
    /// With `lo` up and 10.9.9.9 on it; none without the right to make one, which is printed.
    fn new() -> Option<Self> {
        if !getuid().is_root() {
            println!("skipped: making a network namespace needs root");
            return None;
        }
        let script = "ip addr add 10.9.9.9/32 dev lo && ip link set lo up && echo up && exec sleep 600";
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("run unshare");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        Some(Self(child))
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }

    /// Dials as containerd does: from a thread within the namespace.
    async fn dial(&self, address: &str) -> io::Result<StdStream> {
        let (path, address) = (self.path(), address.parse::<SocketAddr>().unwrap());
        let dial = move || {
            let namespace = std::fs::File::open(path)?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            StdStream::connect_timeout(&address, SOON)
        };
        let (reply, answer) = oneshot::channel();
        std::thread::spawn(move || reply.send(dial()));
        let stream = answer.await.unwrap()?;
        stream.set_read_timeout(Some(SOON))?;
        Ok(stream)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        kill_process(pid, rustix::process::Signal::KILL).unwrap();
        self.0.wait().unwrap();
    }
}

/// A guest in which a server on every port but 9 answers its port and the question in reverse.
fn guest(vsock: &Path) {
    let listener = UnixListener::bind(vsock).unwrap();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(answer(connection));
        }
    });
}

async fn answer(connection: UnixStream) {
    let mut connection = tokio::io::BufReader::with_capacity(1, connection);
    let mut line = String::new();
    connection.read_line(&mut line).await.unwrap();
    assert_eq!(line, "CONNECT 1025\n");
    let mut connection = connection.into_inner();
    connection.write_all(b"OK 1\n").await.unwrap();
    let header: StreamHeader = frame::read_message(&mut connection).await.unwrap();
    let refused = if header.port == 9 { "Connection refused" } else { "" }.to_owned();
    let answer = ForwardAnswer { refused, ..Default::default() };
    frame::write_message(&mut connection, &answer).await.unwrap();
    if header.port == 9 {
        return;
    }
    let (mut from, mut to) = connection.split();
    let mut said = Vec::new();
    if from_stream(&mut from, &mut said).await.is_err() {
        return;
    }
    said.reverse();
    let mut reply = format!("{}:", header.port).into_bytes();
    reply.extend(said);
    into_stream(&mut reply.as_slice(), &mut to).await.unwrap();
    to.write_all(&END).await.unwrap();
    assert_eq!(from.read(&mut [0]).await.unwrap(), 0);
}

async fn ask(stream: StdStream, question: Vec<u8>) -> io::Result<Vec<u8>> {
    let talk = move || {
        let mut stream = stream;
        stream.write_all(&question)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map(|_| answer)
    };
    tokio::task::spawn_blocking(talk).await.unwrap()
}

macro_rules! namespace {
    () => {
        match Namespace::new() {
            Some(namespace) => namespace,
            None => return,
        }
    };
}

#[tokio::test]
async fn every_port_of_the_loopback_is_forwarded_to_the_guests_port() {
    let (netns, dir) = (namespace!(), tempfile::tempdir().unwrap());
    let vsock = dir.path().join("v");
    guest(&vsock);
    let forward = PortForward::open(&netns.path(), &vsock).unwrap();
    for (address, port) in
        [("127.0.0.1:80", "80"), ("127.0.0.1:65535", "65535"), ("[::1]:80", "80"), ("127.1.2.3:1", "1")]
    {
        let answer = ask(netns.dial(address).await.unwrap(), b"abc".to_vec()).await.unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), format!("{port}:cba"), "{address}");
    }
    let question: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let answer = ask(netns.dial("127.0.0.1:80").await.unwrap(), question.clone()).await.unwrap();
    assert!(answer.strip_prefix(b"80:").unwrap().iter().eq(question.iter().rev()));
    forward.close().await;
}

/// Dials and expects a reset, which a slow client gets while it connects.
async fn expect_reset(netns: &Namespace, address: &str) {
    let heard = match netns.dial(address).await {
        Ok(stream) => tokio::task::spawn_blocking(move || (&stream).read(&mut [0])).await.unwrap(),
        Err(error) => Err(error),
    };
    assert_eq!(heard.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{address}");
}

#[tokio::test]
async fn a_refused_connection_is_reset_at_once() {
    let (netns, dir) = (namespace!(), tempfile::tempdir().unwrap());
    let vsock = dir.path().join("v");
    guest(&vsock);
    let forward = PortForward::open(&netns.path(), &vsock).unwrap();
    expect_reset(&netns, "127.0.0.1:9").await;
    std::fs::remove_file(&vsock).unwrap();
    // Without a guest.
    expect_reset(&netns, "127.0.0.1:80").await;
    forward.close().await;
}

#[tokio::test]
async fn other_addresses_and_namespaces_are_not_forwarded() {
    let (netns, other, dir) = (namespace!(), namespace!(), tempfile::tempdir().unwrap());
    let vsock = dir.path().join("v");
    guest(&vsock);
    let forward = PortForward::open(&netns.path(), &vsock).unwrap();
    let refused =
        |stream: io::Result<StdStream>| stream.unwrap_err().kind() == io::ErrorKind::ConnectionRefused;
    assert!(refused(netns.dial("10.9.9.9:80").await), "another address of the namespace");
    assert!(refused(other.dial("127.0.0.1:80").await), "another namespace");
    forward.close().await;
}

#[tokio::test]
async fn after_close_nothing_is_open_in_the_namespace() {
    let (netns, dir) = (namespace!(), tempfile::tempdir().unwrap());
    let vsock = dir.path().join("v");
    guest(&vsock);
    let forward = PortForward::open(&netns.path(), &vsock).unwrap();
    let under_way = netns.dial("127.0.0.1:80").await.unwrap();
    (&under_way).write_all(b"half a question").unwrap();
    forward.close().await;
    let refused = timeout(SOON, async {
        loop {
            match netns.dial("127.0.0.1:80").await {
                Err(refused) => break refused,
                // A child that another test is just starting has copies until it executes its program.
                Ok(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    });
    assert_eq!(refused.await.unwrap().kind(), io::ErrorKind::ConnectionRefused);
    let read = tokio::task::spawn_blocking(move || (&under_way).read(&mut [0])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    // Again, as after a repeated Attach.
    let forward = PortForward::open(&netns.path(), &vsock).unwrap();
    assert_eq!(ask(netns.dial("[::1]:7").await.unwrap(), b"x".to_vec()).await.unwrap(), b"7:x");
    forward.close().await;
}

#[tokio::test]
async fn a_missing_namespace_is_named_in_the_error() {
    let error = PortForward::open(Path::new("/run/netns/none such"), Path::new("/v")).unwrap_err();
    assert!(error.to_string().contains("none such"), "{error}");
    let error = PortForward::open(Path::new("/proc/self/ns/uts"), Path::new("/v")).unwrap_err();
    assert!(matches!(error, ForwardError::Listen { .. }), "{error}");
}
