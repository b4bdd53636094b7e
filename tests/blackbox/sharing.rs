//! A volume that several containers of a pod have.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use bulkhead_tests::cri::{Container, Cri, Pod, mount};
use bulkhead_tests::wait;
use k8s_cri::v1 as api;

use crate::stage::{Stage, control_run, stage};
use crate::volumes::{SOON, expect_soon, fails, folder, read_only, sleeper};

/// Watches and locks, in containers and beside them.
const PROBE: &str = env!("CARGO_BIN_EXE_file_probe");

/// Unix sockets are how many a side car is spoken to. `at` is the same file in both.
async fn a_socket_works_between(cri: &Cri, server: (&Container, &str), client: (&Container, &str)) {
    let ((server, at), (client, there)) = (server, client);
    cri.exec(&server.id, &format!("ln -sf {at} /dev/log && syslogd -O /tmp/heard")).await;
    cri.exec(&client.id, &format!("test -S {there} && ln -sf {there} /dev/log && logger hello-there")).await;
    expect_soon(cri, server, "grep -o hello-there /tmp/heard", "hello-there\n").await;
    cri.exec(&client.id, "rm /dev/log").await;
    cri.exec(
        &server.id,
        "kill $(ps -o pid,args | sed -n 's/^ *\\([0-9]*\\) syslogd.*$/\\1/p'); rm -f /tmp/heard",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_the_same_for_every_container_of_the_pod() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let volume = folder(&stage, "shared");
    let pod = cri.run_pod("sharing").await;
    // Who only reads comes first: what it may is no limit for the others.
    let early = cri.start(&pod, sleeper("early", vec![read_only(&volume, "/in")])).await;
    let one = cri.start(&pod, sleeper("one", vec![mount(&volume, "/data")])).await;
    let two = cri.start(&pod, sleeper("two", vec![mount(&volume, "/other/place")])).await;
    let reader = cri.start(&pod, sleeper("reader", vec![read_only(&volume, "/in")])).await;

    cri.exec(&one.id, "echo first > /data/file").await;
    assert_eq!(
        cri.exec(&two.id, "cat /other/place/file && echo second >> /other/place/file").await,
        "first\n"
    );
    assert_eq!(cri.exec(&one.id, "cat /data/file && mv /data/file /data/moved").await, "first\nsecond\n");
    for container in [&early, &reader] {
        expect_soon(cri, container, "cat /in/moved; ls /in", "first\nsecond\nmoved\n").await;
        let error = fails(cri, container, "echo x >> /in/moved").await;
        assert!(error.contains("Read-only"), "{error}");
    }
    assert_eq!(std::fs::read_to_string(volume.join("moved")).unwrap(), "first\nsecond\n");
    a_socket_works_between(cri, (&one, "/data/log"), (&two, "/other/place/log")).await;
    // Who came after one that may write has the same mount, and reads only.
    a_socket_works_between(cri, (&one, "/data/log2"), (&reader, "/in/log2")).await;
    // It stays when one of them goes, and is the same for one that comes back.
    cri.stop(&one.id, 0).await;
    cri.remove(&one.id).await;
    let one = cri.start(&pod, sleeper("again", vec![mount(&volume, "/data")])).await;
    assert_eq!(cri.exec(&one.id, "cat /data/moved").await, "first\nsecond\n");
    a_socket_works_between(cri, (&two, "/other/place/log3"), (&one, "/data/log3")).await;
    stage.end(&pod).await;
}

/// Program and libraries for a container that hears and holds, and the volume.
fn probe(name: &str, volume: &Path, verb: &[&str]) -> api::ContainerConfig {
    let mut config =
        sleeper(name, vec![mount(volume, "/data"), read_only(Path::new(PROBE), "/bin/file_probe")]);
    // What it is linked to.
    config.mounts.extend(["/lib64", "/lib/x86_64-linux-gnu"].map(|path| read_only(Path::new(path), path)));
    if !verb.is_empty() {
        config.command = [&["/bin/file_probe"], verb].concat().into_iter().map(Into::into).collect();
    }
    config
}

async fn expect_said(container: &Container, line: &str) {
    wait::expect(&format!("it says {line:?}"), SOON, async || {
        container.log().stdout.lines().any(|said| said == line).then_some(())
    })
    .await;
}

/// Whether the lock was free.
async fn free(cri: &Cri, container: &Container, kind: &str) -> bool {
    let (code, _, error) =
        cri.try_exec(&container.id, &["/bin/file_probe", "try", kind, "/data/lock"]).await.unwrap();
    assert!(code == 0 || code == 1, "{error}");
    code == 0
}

async fn locks_exclude_within_the_pod(cri: &Cri, pod: &Pod, volume: &Path, [other, reader]: [&Container; 2]) {
    std::fs::write(volume.join("lock"), "").unwrap();
    let on_the_node = |verb: &str, kind: &str| {
        let mut command = Command::new(PROBE);
        command.args([verb, kind]).arg(volume.join("lock")).stdout(Stdio::piped());
        command
    };
    for kind in ["flock", "fcntl"] {
        let holder = cri.start(pod, probe(kind, volume, &["hold", kind, "/data/lock"])).await;
        expect_said(&holder, "held").await;
        assert!(!free(cri, other, kind).await, "{kind} in one container does not keep another out");
        // Locks are the kernel's, and a VM has one of its own.
        let status = on_the_node("try", kind).status().unwrap();
        assert_eq!(status.success(), !control_run(), "{kind} in a container, seen from the node");
        // An exclusive lock by fcntl is for who may write.
        assert!(kind == "fcntl" || !free(cri, reader, kind).await, "{kind} does not keep out who only reads");
        cri.stop(&holder.id, 0).await;
        assert!(free(cri, other, kind).await, "{kind} outlives its holder");

        let mut holder = on_the_node("hold", kind).spawn().unwrap();
        let mut said = [0; 5];
        holder.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        let seen = free(cri, other, kind).await;
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(seen, !control_run(), "{kind} of the node, seen from a container");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_and_notices_of_changes_work_between_containers_and_end_at_the_vm() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let volume = folder(&stage, "shared");
    let pod = cri.run_pod("probing").await;
    let other = cri.start(&pod, probe("other", &volume, &[])).await;
    let watcher = cri.start(&pod, probe("watcher", &volume, &["watch", "/data"])).await;
    // Who only reads, and came later than who writes.
    let mut reading = probe("reading", &volume, &["watch", "/data"]);
    reading.mounts[0].readonly = true;
    let reader = cri.start(&pod, reading).await;
    for listening in [&watcher, &reader] {
        expect_said(listening, "ready").await;
    }

    for (script, told) in [
        ("> /data/new", "new"),
        ("mv /data/new /data/moved", "moved"),
        ("> /data/end && rm /data/end", "end"),
    ] {
        cri.exec(&other.id, script).await;
        expect_said(&watcher, told).await;
    }
    // What the node changes is there, and nobody was told: who waits for it has to look.
    std::fs::write(volume.join("of-the-node"), "there\n").unwrap();
    std::fs::write(volume.join("moved"), "changed\n").unwrap();
    expect_soon(cri, &other, "cat /data/of-the-node /data/moved", "there\nchanged\n").await;
    cri.exec(&other.id, "> /data/mark").await;
    for listening in [&watcher, &reader] {
        expect_said(listening, "mark").await;
        let said = listening.log().stdout;
        assert_eq!(said.lines().any(|line| line == "of-the-node"), control_run(), "{said}");
    }

    locks_exclude_within_the_pod(cri, &pod, &volume, [&other, &reader]).await;
    stage.end(&pod).await;
}
