//! Unix sockets of the node among a container's volumes: an agent of the node, spoken to from pods.

use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bulkhead_tests::cri::{Container, Cri, mount};
use bulkhead_tests::node::Options;
use bulkhead_tests::wait;
use k8s_cri::v1 as api;
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::stage::{Stage, stage};
use crate::streams::{expect_flat, footprint, full};
use crate::volumes::{fails, folder, read_only, sleeper};

/// Where containers see the socket.
const AT: &str = "/run/agent.sock";
/// As long as a lost connection may take to be noticed at the other end.
const SOON: Duration = Duration::from_secs(20);

/// An agent of the node: hears a client to its end and answers who it is, how much it has said, and how it begins.
struct Agent {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    open: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Serves a new socket at a path.
    fn serve(path: &Path) -> Self {
        drop(std::fs::remove_file(path));
        let listener = UnixListener::bind(path).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o666)).unwrap();
        let (stop, open) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (stop.clone(), open.clone());
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (client, counted) = (client.unwrap(), counted.clone());
                counted.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    // The client may go away at any time.
                    drop(answer(client));
                    counted.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { path: path.to_owned(), stop, open, thread: Some(thread) }
    }

    async fn expect_open(&self, wanted: usize) {
        let what = format!("{wanted} connections at the agent");
        wait::expect(&what, SOON, async || (self.open.load(Ordering::SeqCst) == wanted).then_some(())).await;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(&self.path));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn answer(mut client: UnixStream) -> std::io::Result<()> {
    let uid = getsockopt(&client, PeerCredentials)?.uid();
    let mut heard = Vec::new();
    client.read_to_end(&mut heard)?;
    let begin = String::from_utf8_lossy(&heard[..heard.len().min(20)]).into_owned();
    writeln!(client, "user {uid} says {} bytes: {begin}", heard.len())
}

/// A container with the client, its libraries, and more.
fn client(name: &str, mounts: Vec<api::Mount>) -> api::ContainerConfig {
    let mut all = vec![read_only(Path::new(env!("CARGO_BIN_EXE_unix_client")), "/bin/unix_client")];
    all.extend(["/lib64", "/lib/x86_64-linux-gnu"].map(|path| read_only(Path::new(path), path)));
    all.extend(mounts);
    sleeper(name, all)
}

fn as_user(mut config: api::ContainerConfig, uid: i64) -> api::ContainerConfig {
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.run_as_user = Some(api::Int64Value { value: uid });
    config
}

async fn says(cri: &Cri, container: &Container, what: &str, at: &str) -> String {
    cri.exec(&container.id, &format!("printf {what} | unix_client {at}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_the_node_is_spoken_to_by_pods_that_have_its_socket() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let (path, link) = (folder(&stage, "agent").join("sock"), stage.node.dir().join("link"));
    let agent = Agent::serve(&path);
    symlink(&path, &link).unwrap();
    let guarded = stage.node.dir().join("guarded");
    let _guarded = Agent::serve(&guarded);
    std::fs::set_permissions(&guarded, PermissionsExt::from_mode(0o600)).unwrap();

    let pod = cri.run_pod("agent").await;
    let root = cri.start(&pod, client("root", vec![mount(&path, AT)])).await;
    let user = client("user", vec![read_only(&link, "/other/agent"), mount(&guarded, "/guarded")]);
    let user = cri.start(&pod, as_user(user, 1000)).await;
    assert_eq!(says(cri, &root, "hello", AT).await, "user 0 says 5 bytes: hello\n");
    assert_eq!(says(cri, &user, "hi", "/other/agent").await, "user 1000 says 2 bytes: hi\n");
    let error = fails(cri, &user, "printf x | unix_client /guarded").await;
    assert!(error.contains("Permission denied"), "{error}");
    let error = fails(cri, &user, "chmod 777 /other/agent").await;
    assert!(error.contains("Read-only") || error.contains("not permitted"), "{error}");
    assert_eq!(cri.exec(&root.id, &format!("stat -c %F:%u:%g:%a {AT}")).await, "socket:0:0:666\n");

    // Much, and several at once.
    let much = cri.exec(&root.id, &format!("yes 0123456789 | head -c 3000000 | unix_client {AT} 2")).await;
    assert_eq!(much, "user 0 says 3000000 bytes: 0123456789\n012345678\n".repeat(2));
    let many =
        format!("for i in 1 2 3 4 5 6 7 8 9 10; do printf many | unix_client {AT} 3 & done; wait; echo done");
    let many = cri.exec(&root.id, &many).await;
    assert_eq!(many.matches("says 4 bytes: many\n").count(), 30, "{many}");
    agent.expect_open(0).await;
    drop(agent);

    // An agent that speaks HTTP/2 and has been there for long: containerd itself.
    let containerd = mount(&stage.node.containerd_socket(), "/run/containerd/containerd.sock");
    let ctr = read_only(&stage.node.base().ctr, "/bin/ctr");
    let operator = cri.start(&pod, sleeper("operator", vec![containerd, ctr])).await;
    let listed = cri.exec(&operator.id, "ctr --namespace k8s.io containers list --quiet").await;
    assert!(listed.lines().any(|id| id == operator.id), "{listed}");
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_an_agent_outlives_agent_and_sandboxer_and_ends_with_the_container() {
    let mut stage = stage!(Stage::vm(Options::default()));
    let path = folder(&stage, "agent").join("sock");
    let agent = Agent::serve(&path);
    let pod = stage.cri().run_pod("agent").await;
    let one = stage.cri().start(&pod, client("one", vec![mount(&path, AT)])).await;
    assert_eq!(says(stage.cri(), &one, "a", AT).await, "user 0 says 1 bytes: a\n");

    // Nobody listens: told at once, and forgotten as soon as somebody does.
    drop(agent);
    let error = fails(stage.cri(), &one, &format!("printf x | unix_client {AT} | grep says")).await;
    assert!(error.contains("reset") || error.contains("Broken pipe") || error.is_empty(), "{error}");
    let agent = Agent::serve(&path);
    assert_eq!(says(stage.cri(), &one, "b", AT).await, "user 0 says 1 bytes: b\n");

    // A connection under way, and new ones, while the sandboxer is away and after it.
    stage.cri().exec(&one.id, &format!("unix_client {AT} hold > /tmp/held & sleep 1")).await;
    agent.expect_open(1).await;
    stage.node.stop_sandboxer(Signal::SIGKILL).await;
    assert_eq!(says(stage.cri(), &one, "c", AT).await, "user 0 says 1 bytes: c\n");
    stage.node.start_sandboxer().await;
    let cri = stage.cri();
    wait::expect("containerd reaches the sandboxer", SOON, async || cri.pod_status(&pod.id).await.ok()).await;
    assert_eq!(says(cri, &one, "d", AT).await, "user 0 says 1 bytes: d\n");
    let two = cri.start(&pod, client("two", vec![mount(&path, AT)])).await;
    assert_eq!(says(cri, &two, "e", AT).await, "user 0 says 1 bytes: e\n");
    assert_eq!(cri.exec(&one.id, "cat /tmp/held").await, "connected\n");
    agent.expect_open(1).await;

    cri.stop(&one.id, 0).await;
    agent.expect_open(0).await;
    cri.remove(&one.id).await;
    assert_eq!(says(cri, &two, "f", AT).await, "user 0 says 1 bytes: f\n");
    cri.end_pod(&pod).await;
    agent.expect_open(0).await;
    stage.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_an_agent_leave_nothing_behind() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let path = folder(&stage, "agent").join("sock");
    let agent = Agent::serve(&path);
    let pod = cri.run_pod("agent").await;
    let container = cri.start(&pod, client("main", vec![mount(&path, AT)])).await;
    let talk = async |count: usize| {
        let all = cri.exec(&container.id, &format!("printf x | unix_client {AT} {count}")).await;
        assert_eq!(all, "user 0 says 1 bytes: x\n".repeat(count));
    };
    // Clients that go away without a word, too.
    let leave = async |count: usize| {
        let hold =
            format!("unix_client {AT} hold > /dev/null & client=$!; usleep 50000; kill -9 $client; wait");
        cri.exec(&container.id, &format!("for i in $(seq {count}); do {hold}; done; true")).await;
    };
    talk(5).await;
    leave(2).await;
    let before = footprint(&stage, &container).await;
    let (talks, leaves) = if full() { (1000, 100) } else { (200, 30) };
    talk(talks).await;
    leave(leaves).await;
    expect_flat(&stage, &container, &before).await;
    agent.expect_open(0).await;
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_reaches_an_agent_that_is_not_theirs() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let dir = folder(&stage, "agent");
    let (path, messages) = (dir.join("sock"), dir.join("messages"));
    let agent = Agent::serve(&path);
    let _messages = UnixDatagram::bind(&messages).unwrap();
    let pod = cri.run_pod("agent").await;
    let theirs = cri.start(&pod, client("theirs", vec![mount(&path, AT)])).await;
    // The directory is no way to what is in it.
    let other_pod = cri.run_pod("other").await;
    let alone = cri.start(&other_pod, client("alone", vec![mount(&dir, "/agent")])).await;
    let beside = cri.start(&pod, client("beside", vec![mount(&dir, "/agent")])).await;
    for container in [&alone, &beside] {
        assert_eq!(cri.exec(&container.id, "stat -c %F /agent/sock").await, "socket\n");
        let error = fails(cri, container, "printf x | unix_client /agent/sock").await;
        assert!(error.contains("Connection refused"), "{error}");
        fails(cri, container, &format!("test -e {AT}")).await;
    }
    // What a pod makes of the socket's place is not followed.
    cri.exec(&beside.id, "mv /agent/sock /agent/moved && ln -s moved /agent/sock").await;
    fails(cri, &theirs, &format!("printf x | unix_client {AT} | grep says")).await;
    cri.exec(&beside.id, "rm /agent/sock && mv /agent/moved /agent/sock").await;
    assert_eq!(says(cri, &theirs, "back", AT).await, "user 0 says 4 bytes: back\n");

    let config = client("messages", vec![mount(&messages, AT)]);
    let container = cri.create(&pod, config).await;
    let refused = cri.try_start(&container.id).await.unwrap_err();
    assert!(refused.message().contains("datagram unix socket of the host"), "{refused:?}");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "the pod asks for what cannot be: {refused:?}");
    cri.remove(&container.id).await;
    cri.end_pod(&other_pod).await;
    drop(agent);
    stage.end(&pod).await;
}
