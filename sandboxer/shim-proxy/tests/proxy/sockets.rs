//! Unix sockets of the host that a container has.

use std::os::unix::ffi::OsStrExt;

use bulkhead_protocol::agent::{ForwardAnswer, Knock};
use bulkhead_protocol::frame;
use bulkhead_protocol::pod::HostSocket;
use bulkhead_protocol::relay::relay;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::fake_agent::Kind;
use crate::rig::{Rig, soon};

/// A client in the guest knocks.
async fn knock(rig: &Rig) -> UnixStream {
    let mut stream = soon(rig.agent.stream("c", "", Kind::HOST_SOCKET)).await;
    let uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap());
    let gid = std::os::unix::fs::MetadataExt::gid(&std::fs::metadata("/proc/self").unwrap());
    frame::write_message(&mut stream, &Knock { uid, gid, ..Default::default() }).await.unwrap();
    let answer: ForwardAnswer = soon(frame::read_message(&mut stream)).await.unwrap();
    assert_eq!(answer.refused, "");
    let (client, end) = UnixStream::pair().unwrap();
    tokio::spawn(relay(end, stream));
    client
}

#[tokio::test]
async fn a_host_socket_is_served_from_create_to_delete_without_the_sandboxer() {
    let rig = Rig::attached().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent");
    let listener = UnixListener::bind(&path).unwrap();
    let path = path.as_os_str().as_bytes().to_vec();
    let socket = HostSocket { number: 2, path, uid: 5, gid: 6, mode: 0o660, ..Default::default() };
    rig.sandboxer.give(vec![socket]);
    rig.running("c").await;
    let shown = rig.agent.sockets();
    let [shown] = shown.as_slice() else { panic!("{shown:?}") };
    assert_eq!((shown.number, shown.uid, shown.gid, shown.mode), (2, 5, 6, 0o660));
    rig.sandboxer.stop().await;
    for _ in 0..3 {
        let mut client = knock(&rig).await;
        let (mut server, _) = soon(listener.accept()).await.unwrap();
        client.write_all(b"ping").await.unwrap();
        let mut heard = [0; 4];
        soon(server.read_exact(&mut heard)).await.unwrap();
        drop(server);
        assert_eq!(soon(client.read(&mut heard)).await.unwrap(), 0);
    }
    rig.sandboxer.start().await;
    let mut client = knock(&rig).await;
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    let mut waiting = soon(rig.agent.stream("c", "", Kind::HOST_SOCKET)).await;
    rig.agent.end("c", "", 0, false);
    soon(rig.wait("c", "")).await.unwrap().unwrap();
    rig.delete("c", "").await.unwrap();
    let mut byte = [0];
    assert_eq!(soon(waiting.read(&mut byte)).await.unwrap(), 0, "a stream waits for a client still");
    assert_eq!(soon(server.read(&mut byte)).await.unwrap(), 0);
    assert_eq!(soon(client.read(&mut byte)).await.unwrap(), 0);
}
