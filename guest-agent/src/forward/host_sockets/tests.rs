use std::os::unix::fs::MetadataExt;

use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::time::timeout;

use super::*;

/// Nothing here may take longer.
const SOON: Duration = Duration::from_secs(10);

fn sockets() -> (tempfile::TempDir, HostSockets<DuplexStream>) {
    let dir = tempfile::tempdir().unwrap();
    let sockets = HostSockets { dir: dir.path().into(), listening: Mutex::default() };
    (dir, sockets)
}

fn socket(number: u32) -> HostSocket {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    HostSocket { number, uid, gid, mode: 0o140_660, ..HostSocket::default() }
}

/// The host offers a stream, a client connects, and the host hears of it.
async fn connected(sockets: &HostSockets<DuplexStream>, path: &Path) -> (UnixStream, DuplexStream) {
    let (mut host, theirs) = tokio::io::duplex(1 << 16);
    sockets.add_stream("c1".into(), 0, theirs);
    let client = UnixStream::connect(path).await.unwrap();
    let knock: Knock = timeout(SOON, frame::read_message(&mut host)).await.unwrap().unwrap();
    assert_eq!(knock.uid, rustix::process::getuid().as_raw());
    (client, host)
}

async fn answer(host: &mut DuplexStream, refused: &str) {
    let answer = ForwardAnswer { refused: refused.into(), ..ForwardAnswer::default() };
    frame::write_message(host, &answer).await.unwrap();
}

async fn all(client: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    timeout(SOON, client.read_to_end(&mut bytes)).await.expect("an end")?;
    Ok(bytes)
}

#[tokio::test]
async fn a_client_is_forwarded_to_the_host() {
    let (dir, sockets) = sockets();
    sockets.listen("c1", &socket(0)).unwrap();
    let path = dir.path().join("c1/0");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o660);
    for word in ["one", "two"] {
        let (mut client, mut host) = connected(&sockets, &path).await;
        answer(&mut host, "").await;
        let (server, far) = UnixStream::pair().unwrap();
        let carried = tokio::spawn(relay(far, host));
        client.write_all(word.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut server = server;
        assert_eq!(all(&mut server).await.unwrap(), word.as_bytes());
        server.write_all(b"heard").await.unwrap();
        drop(server);
        assert_eq!(all(&mut client).await.unwrap(), b"heard");
        drop(client);
        timeout(SOON, carried).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_refused_client_gets_an_end_or_a_reset() {
    let (dir, sockets) = sockets();
    sockets.listen("c1", &socket(0)).unwrap();
    let path = dir.path().join("c1/0");
    let (mut client, mut host) = connected(&sockets, &path).await;
    answer(&mut host, "Connection refused").await;
    assert_eq!(all(&mut client).await.unwrap(), b"");
    // A client that has sent something.
    let (mut client, mut host) = connected(&sockets, &path).await;
    client.write_all(b"hello").await.unwrap();
    answer(&mut host, "Connection refused").await;
    assert_eq!(all(&mut client).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_stream_that_the_host_has_closed_is_not_used() {
    let (dir, sockets) = sockets();
    sockets.listen("c1", &socket(0)).unwrap();
    for _ in 0..3 {
        let (host, theirs) = tokio::io::duplex(100);
        sockets.add_stream("c1".into(), 0, theirs);
        drop(host);
    }
    tokio::task::yield_now().await;
    connected(&sockets, &dir.path().join("c1/0")).await;
}

#[tokio::test]
async fn closing_removes_sockets_and_connections_of_one_container() {
    let (dir, sockets) = sockets();
    sockets.listen("c1", &socket(0)).unwrap();
    sockets.listen("c2", &socket(0)).unwrap();
    let (mut client, mut host) = connected(&sockets, &dir.path().join("c1/0")).await;
    answer(&mut host, "").await;
    sockets.close("c1");
    assert_eq!(all(&mut client).await.unwrap(), b"");
    assert_eq!(timeout(SOON, host.read(&mut [0])).await.unwrap().unwrap(), 0, "the stream is closed");
    assert!(!dir.path().join("c1").exists() && dir.path().join("c2/0").exists());
    // A stream for a socket that does not exist is closed, too.
    let (mut host, theirs) = tokio::io::duplex(100);
    sockets.add_stream("c1".into(), 0, theirs);
    assert_eq!(timeout(SOON, host.read(&mut [0])).await.unwrap().unwrap(), 0);
    sockets.close("c1");
    // The same id again.
    sockets.listen("c1", &socket(0)).unwrap();
    connected(&sockets, &dir.path().join("c1/0")).await;
}
