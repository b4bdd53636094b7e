//! The sockets of the host with real servers, and a guest that the test plays.

use std::future::Future;
use std::os::unix::fs::{PermissionsExt, symlink};

use rustix::process::{getegid, geteuid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;

/// Nothing in these tests may take longer.
const SOON: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("soon")
}

/// A guest, and the streams that wait in it for clients.
struct Guest {
    dir: tempfile::TempDir,
    offered: mpsc::UnboundedReceiver<UnixStream>,
    _sockets: HostSockets,
}

impl Guest {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vsock = dir.path().join("vsock");
        let listener = UnixListener::bind(&vsock).unwrap();
        let (offer, offered) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut line = [0; 13];
                stream.read_exact(&mut line).await.unwrap();
                assert_eq!(&line, b"CONNECT 1025\n");
                stream.write_all(b"OK 1\n").await.unwrap();
                let header: StreamHeader = frame::read_message(&mut stream).await.unwrap();
                assert_eq!((header.kind.unwrap(), header.socket), (Kind::HOST_SOCKET, 3));
                assert_eq!(header.container_id, "c1");
                // The test may have ended.
                drop(offer.send(stream));
            }
        });
        let path = dir.path().join("server").into_os_string().into_vec();
        let socket = HostSocket { number: 3, path, ..Default::default() };
        let sockets = HostSockets::serve(&vsock, "c1", vec![socket]);
        Self { dir, offered, _sockets: sockets }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("server")
    }

    /// A server that answers a question in reverse when it has read its end.
    fn serve(&self) -> tokio::task::JoinHandle<()> {
        drop(std::fs::remove_file(self.path()));
        let listener = UnixListener::bind(self.path()).unwrap();
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut question = Vec::new();
                client.read_to_end(&mut question).await.unwrap();
                question.reverse();
                client.write_all(&question).await.unwrap();
            }
        })
    }

    async fn knock_as(&mut self, uid: u32, gid: u32) -> Result<UnixStream, String> {
        let mut stream = soon(self.offered.recv()).await.unwrap();
        let knock = Knock { uid, gid, ..Default::default() };
        frame::write_message(&mut stream, &knock).await.unwrap();
        let answer: ForwardAnswer = soon(frame::read_message(&mut stream)).await.unwrap();
        if answer.refused.is_empty() {
            return Ok(stream);
        }
        assert_eq!(soon(stream.read(&mut [0])).await.unwrap(), 0, "a refusal is followed by the close");
        Err(answer.refused)
    }

    /// A client in the guest.
    async fn connect(&mut self) -> Result<UnixStream, String> {
        let stream = self.knock_as(geteuid().as_raw(), getegid().as_raw()).await?;
        let (client, end) = UnixStream::pair().unwrap();
        tokio::spawn(relay(end, stream));
        Ok(client)
    }

    async fn ask(&mut self, question: &str) -> Result<String, String> {
        let mut client = self.connect().await?;
        client.write_all(question.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        soon(client.read_to_string(&mut answer)).await.unwrap();
        Ok(answer)
    }
}

#[tokio::test]
async fn each_client_in_turn_is_connected_to_the_server() {
    let mut guest = Guest::new().await;
    let server = guest.serve();
    for _ in 0..20 {
        assert_eq!(guest.ask("abc").await.unwrap(), "cba");
    }
    server.abort();
}

#[tokio::test]
async fn a_server_may_start_after_the_container_and_restart() {
    let mut guest = Guest::new().await;
    let refused = guest.ask("abc").await.unwrap_err();
    assert!(refused.contains("No such file"), "{refused}");
    for _ in 0..2 {
        let server = guest.serve();
        assert_eq!(guest.ask("abc").await.unwrap(), "cba");
        server.abort();
        drop(server.await);
        // A child that another test is just starting has copies until it executes its program.
        let refused = soon(async {
            loop {
                if let Err(refused) = guest.ask("abc").await {
                    break refused;
                }
            }
        });
        let refused = refused.await;
        assert!(refused.contains("Connection refused"), "{refused}");
        let dir = guest.dir.path().to_str().unwrap();
        assert!(!refused.contains(dir), "a path of the host is told to the guest: {refused}");
    }
}

#[tokio::test]
async fn a_link_or_file_in_place_of_the_socket_is_refused() {
    let mut guest = Guest::new().await;
    let other = guest.dir.path().join("other");
    let _other = UnixListener::bind(&other).unwrap();
    symlink(&other, guest.path()).unwrap();
    let refused = guest.ask("abc").await.unwrap_err();
    assert!(refused.contains("no socket"), "{refused}");
    std::fs::remove_file(guest.path()).unwrap();
    // Nor is a directory on the way.
    let real = guest.dir.path().join("real");
    std::fs::create_dir(&real).unwrap();
    let _within = UnixListener::bind(real.join("server")).unwrap();
    symlink(&real, guest.dir.path().join("link")).unwrap();
    let us = Client { uid: geteuid().as_raw(), gid: getegid().as_raw() };
    let error = dial::dial(&guest.dir.path().join("link/server"), us).await.unwrap_err();
    assert!(chain(&error).contains("symbolic link"), "{}", chain(&error));
    std::fs::write(guest.path(), "").unwrap();
    let refused = guest.ask("abc").await.unwrap_err();
    assert!(refused.contains("no socket"), "{refused}");
}

#[tokio::test]
async fn the_server_sees_the_clients_user_and_group() {
    if !geteuid().is_root() {
        println!("skipped: being somebody else needs root");
        return;
    }
    let mut guest = Guest::new().await;
    let listener = UnixListener::bind(guest.path()).unwrap();
    // The guest has let it pass: it may be in one of its further groups.
    std::fs::set_permissions(guest.path(), PermissionsExt::from_mode(0o600)).unwrap();
    for (uid, gid) in [(1234, 5678), (0, 7), (0, 0)] {
        let _stream = guest.knock_as(uid, gid).await.unwrap();
        let (client, _) = soon(listener.accept()).await.unwrap();
        let seen = client.peer_cred().unwrap();
        assert_eq!((seen.uid(), seen.gid()), (uid, gid));
    }
    assert!(geteuid().is_root(), "this process has become somebody else");
    for (uid, gid) in [(u32::MAX, 1), (1, u32::MAX)] {
        let refused = guest.knock_as(uid, gid).await.unwrap_err();
        assert!(refused.contains("cannot connect as user"), "{refused}");
    }
}

#[tokio::test]
async fn a_server_slow_to_accept_is_waited_for() {
    let mut guest = Guest::new().await;
    let flags = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM);
    let socket = rustix::net::socket(flags.0, flags.1, None).unwrap();
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(guest.path()).unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let first = guest.connect().await.unwrap();
    let accept = async {
        sleep(Duration::from_millis(100)).await;
        let listener = std::os::unix::net::UnixListener::from(socket);
        (listener.accept().unwrap(), listener)
    };
    let (second, _accepted) = tokio::join!(guest.connect(), accept);
    second.unwrap();
    drop(first);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let mut guest = Guest::new().await;
    let listener = UnixListener::bind(guest.path()).unwrap();
    let mut open = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        open.push((guest.connect().await.unwrap(), soon(listener.accept()).await.unwrap()));
    }
    let more = timeout(Duration::from_millis(100), guest.offered.recv()).await;
    assert!(more.is_err(), "another stream is offered");
    open.pop();
    guest.connect().await.unwrap();
}

#[tokio::test]
async fn every_connection_closes_with_the_container() {
    let mut guest = Guest::new().await;
    let listener = UnixListener::bind(guest.path()).unwrap();
    let mut client = guest.connect().await.unwrap();
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    let mut waiting = soon(guest.offered.recv()).await.unwrap();
    let Guest { _sockets, dir: _dir, .. } = guest;
    drop(_sockets);
    assert_eq!(soon(waiting.read(&mut [0])).await.unwrap(), 0);
    assert_eq!(soon(server.read(&mut [0])).await.unwrap(), 0);
    assert_eq!(soon(client.read(&mut [0])).await.unwrap(), 0);
}
