//! The judge is judged: the same harness on containerd's own runtime, and leaks made on purpose.

use std::time::Duration;

use bulkhead_tests::audit::Snapshot;
use bulkhead_tests::cri::Cri;
use bulkhead_tests::node::{Node, Options};
use bulkhead_tests::peers::Line;
use bulkhead_tests::report;

async fn control(line: Line) {
    let node = match Node::start(Options { line, ..Options::control() }).await {
        Ok(node) => node,
        Err(why) => return report::skipped("harness_control_runc", &why),
    };
    let cri = node.cri();
    let before = Snapshot::take(&node).await;
    let pod = cri.run_pod("control").await;
    assert!(cri.pod_ready(&pod.id).await);
    let container =
        cri.start(&pod, Cri::shell("web", "echo out; echo err >&2; httpd -f -p 80 -h /www")).await;
    let ip = cri.pod_ips(&pod).await[0];
    let page = node.http_get((ip, 80).into(), "/", Duration::from_secs(10)).await;
    assert_eq!(page, "hello from the pod\n");
    assert_eq!(container.log().stdout, "out\n");
    assert_eq!(container.log().stderr, "err\n");
    let (code, _, stderr) =
        cri.try_exec(&container.id, &["/bin/sh", "-c", "echo no >&2; exit 3"]).await.unwrap();
    assert_eq!((code, stderr.as_str()), (3, "no\n"));
    let leaked = before.leaked(&Snapshot::take(&node).await);
    for kind in ["process:", "mount:", "link:", "cgroup:", "netns:", "network lease:"] {
        assert!(leaked.contains(kind), "the audit does not see the running pod's {kind} {leaked}");
    }
    cri.end_pod(&pod).await;
    before.expect_nothing_left(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn harness_control_runc() {
    control(Line::V24).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn harness_control_runc_on_containerd_2_3() {
    control(Line::V23).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn harness_control_runc_on_containerd_2_1() {
    control(Line::V21).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_sees_a_leak_of_every_kind() {
    let node = match Node::start(Options::control()).await {
        Ok(node) => node,
        Err(why) => return report::skipped("audit_sees_a_leak_of_every_kind", &why),
    };
    let before = Snapshot::take(&node).await;
    before.expect_nothing_left(&node).await;
    let run = node.run_dir().display().to_string();
    let leaks: [(&str, &[&str]); 6] = [
        ("process: ", &["sh", "-c", "sleep 1000 >/dev/null 2>&1 &"]),
        ("mount: ", &["sh", "-c", "mkdir -p /run/leak && mount -t tmpfs leak /run/leak"]),
        ("link: ", &["ip", "tuntap", "add", "dev", "leak0", "mode", "tap"]),
        ("tc: ", &["tc", "qdisc", "add", "dev", "bh0", "ingress"]),
        ("netns: ", &["ip", "netns", "add", "leak"]),
        ("file of the sandboxer: ", &["touch", &format!("{run}/leak")]),
    ];
    for (kind, make) in leaks {
        let clean = Snapshot::take(&node).await;
        assert!(!before.leaked(&clean).contains(kind), "{kind}");
        node.run(make).await;
        let found = before.leaked(&Snapshot::take(&node).await);
        assert!(found.contains(kind), "the audit does not see {make:?}: {found}");
    }
    let group = format!("/sys/fs/cgroup/cpu{}/leak", node.cgroup_parent());
    if std::fs::create_dir(&group).is_ok() {
        let found = before.leaked(&Snapshot::take(&node).await);
        assert!(found.contains("cgroup: "), "the audit does not see {group}: {found}");
    }
}
