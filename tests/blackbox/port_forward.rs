//! Port-forward through stock containerd: whatever listens on the pod's loopback is reached, on any port.

use std::time::{Duration, Instant};

use bulkhead_tests::controller::{Controller, sandbox_id};
use bulkhead_tests::cri::{Container, Cri, Pod};
use bulkhead_tests::node::Options;
use bulkhead_tests::port_forward::{Forwarded, Heard, Session};
use bulkhead_tests::wait;
use nix::sys::signal::Signal;

use crate::stage::{Stage, control_run, stage};

/// Listens on IPv4's loopback alone, on IPv6's alone, and on a port that answers only when it has heard everything.
const SERVERS: &str = "httpd -p 127.0.0.1:8080 -h /www; echo over IPv6 > /tmp/index.html; \
     httpd -p '[::1]:8081' -h /tmp; exec nc -ll -p 7000 -e md5sum";
/// containerd's own answer to a refusal comes at once; a hang would end with the client's patience.
const AT_ONCE: Duration = Duration::from_secs(30);

async fn servers(stage: &Stage) -> (Pod, Container) {
    let pod = stage.cri().run_pod("forward").await;
    let container = stage.cri().start(&pod, Cri::shell("servers", SERVERS)).await;
    let listening = "wget -q -O - http://127.0.0.1:8080 && wget -q -O - 'http://[::1]:8081' && \
         echo | nc 127.0.0.1 7000";
    wait::expect("the servers listen", Duration::from_secs(60), async || {
        let answer = stage.cri().try_exec(&container.id, &["/bin/sh", "-c", listening]).await;
        answer.ok().filter(|(code, ..)| *code == 0)
    })
    .await;
    (pod, container)
}

/// Network namespace of the node's only pod, where containerd keeps it.
async fn netns(stage: &Stage) -> String {
    let folder = stage.node.dir().join("state/io.containerd.grpc.v1.cri/netns");
    let listed = stage.node.run(&["find", &folder.display().to_string(), "-name", "cni-*"]).await;
    let mut lines = listed.lines();
    match (lines.next(), lines.next()) {
        (Some(only), None) => only.to_owned(),
        _ => panic!("not one network namespace but {listed:?}"),
    }
}

async fn md5_from_netns(stage: &Stage, netns: &str, address: &str, bytes: usize) -> String {
    let script =
        format!("yes 0123456789 | head -c {bytes} | nsenter --net={netns} busybox nc {address} 7000");
    stage.node.run(&["sh", "-c", &script]).await
}

async fn expect_pages(stage: &Stage, pod: &Pod) {
    let node = &stage.node;
    assert_eq!(Forwarded::http_get(node, &pod.id, 8080).await.unwrap(), "hello from the pod\n");
    assert_eq!(Forwarded::http_get(node, &pod.id, 8081).await.unwrap(), "over IPv6\n");
}

/// Many connections in one session over SPDY, the last asked for first.
async fn as_kubectl_does(stage: &Stage, pod: &Pod) {
    let mut session = Session::start(&stage.node, &pod.id).await;
    let mut open = Vec::new();
    let by_v4 = (8080, "hello from the pod\n");
    // With runc it takes a node whose own /etc/hosts has localhost as ::1.
    let by_v6 = if control_run() { by_v4 } else { (8081, "over IPv6\n") };
    for number in 0..12 {
        let (port, page) = [by_v4, by_v6, (9, "")][number % 3];
        open.push((session.connect(port), page));
    }
    for (connection, _) in open.iter().filter(|(_, page)| !page.is_empty()) {
        session.send(*connection, b"GET / HTTP/1.0\r\n\r\n");
    }
    for (connection, page) in open.into_iter().rev() {
        let Heard { data, error } = session.finish(connection);
        let refused = error.contains("refused") || error.contains("reset");
        assert_eq!(refused, page.is_empty(), "{error}");
        assert!(String::from_utf8_lossy(&data).ends_with(page), "{page:?}: {error}");
    }
    // What nobody took has harmed nothing.
    let connection = session.connect(8080);
    session.send(connection, b"GET / HTTP/1.0\r\n\r\n");
    assert_eq!(session.finish(connection).error, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn port_forward_is_the_pods_own_and_outlives_the_sandboxer() {
    let mut stage = stage!(Stage::vm(Options::default()));
    let (pod, _container) = servers(&stage).await;
    expect_pages(&stage, &pod).await;
    let netns = netns(&stage).await;
    let ipv6 = md5_from_netns(&stage, &netns, "::1", 11).await;
    assert_eq!(md5_from_netns(&stage, &netns, "127.0.0.1", 11).await, ipv6, "by both addresses");

    // Neither the node's own loopback nor the pod's address on the host's side lead anywhere.
    let refused = |address: &str| {
        let address = address.parse().unwrap();
        let error = stage.node.connect(address, Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{address}");
    };
    refused("127.0.0.1:8080");
    refused("[::1]:8081");

    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        stage.node.stop_sandboxer(signal).await;
        assert_eq!(md5_from_netns(&stage, &netns, "127.0.0.1", 11).await, ipv6, "without the sandboxer");
        stage.node.start_sandboxer().await;
        wait::expect("containerd reaches the sandboxer", Duration::from_secs(10), async || {
            stage.cri().pod_status(&pod.id).await.ok()
        })
        .await;
        expect_pages(&stage, &pod).await;
    }
    stage.end(&pod).await;
}

/// containerd removes the namespace once Stop has returned.
#[tokio::test(flavor = "multi_thread")]
async fn localhost_of_the_namespace_is_closed_when_stop_returns() {
    let mut stage = stage!(Stage::vm(Options::default()));
    let controller = Controller::new(&stage.node.controller_socket());
    let id = sandbox_id(70);
    let mut config = stage.cri().pod_config("direct");
    config.linux.as_mut().unwrap().cgroup_parent.clear();
    // Bridge and default parent cgroup are made on first use, and may stay.
    let pod = stage.cri().try_run_pod(config.clone()).await.unwrap();
    stage.cri().end_pod(&pod).await;
    stage.look_again().await;
    let netns = stage.node.make_pod_netns("closing", 70).await;
    controller.create(Controller::create_request(&id, &netns, &config)).await.unwrap();
    controller.start(&id).await.unwrap();
    let connect = "for at in 127.0.0.1 ::1; do ip netns exec closing busybox nc -w 2 $at 9999 < /dev/null \
        2> /dev/null && echo taken || echo refused; done";
    assert_eq!(stage.node.run(&["sh", "-c", connect]).await, "taken\ntaken\n");
    controller.stop(&id).await.unwrap();
    assert_eq!(stage.node.run(&["sh", "-c", connect]).await, "refused\nrefused\n");
    let listening = stage.node.run(&["ip", "netns", "exec", "closing", "ss", "-Hltn"]).await;
    assert_eq!(listening, "");
    controller.shutdown(&id).await.unwrap();
    stage.node.remove_pod_netns("closing").await;
    stage.expect_clean().await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_10843_port_forward_reaches_what_listens_in_the_pod() {
        let stage = stage!(Stage::shared());
        let (pod, container) = servers(&stage).await;
        let page = Forwarded::http_get(&stage.node, &pod.id, 8080).await.unwrap();
        assert_eq!(page, "hello from the pod\n");

        // Nothing listens there: told, and soon.
        let started = Instant::now();
        let refused = Forwarded::http_get(&stage.node, &pod.id, 9).await.unwrap_err();
        assert!(refused.contains("refused") || refused.contains("reset"), "{refused}");
        assert!(started.elapsed() < wait::patiently(AT_ONCE), "{refused} after {:?}", started.elapsed());

        // The end of what one side says reaches the other while the answer is still to come.
        let netns = netns(&stage).await;
        let bytes = 3_000_000;
        let expected =
            stage.cri().exec(&container.id, &format!("yes 0123456789 | head -c {bytes} | md5sum")).await;
        assert_eq!(md5_from_netns(&stage, &netns, "127.0.0.1", bytes).await, expected);

        // Sessions side by side, and one under way when the pod ends.
        let mut open = Vec::new();
        for _ in 0..20 {
            open.push(Forwarded::open(&stage.node, &pod.id, 8080).await);
        }
        for session in &mut open {
            session.send(b"GET / HTTP/1.0\r\n\r\n");
        }
        for session in open {
            let (answer, error) = session.finish();
            assert!(String::from_utf8_lossy(&answer).ends_with("hello from the pod\n"), "{error}");
        }
        as_kubectl_does(&stage, &pod).await;
        let under_way = Forwarded::open(&stage.node, &pod.id, 8080).await;
        stage.end(&pod).await;
        drop(under_way);
    }
}
