//! The main paths under the older supported lines of containerd: 2.3 (long-term support) and 2.1 (the oldest).

use std::time::Duration;

use bulkhead_tests::cri::Cri;
use bulkhead_tests::node::Options;
use bulkhead_tests::peers::Line;
use k8s_cri::v1 as api;
use nix::sys::signal::Signal;

use crate::stage::{Stage, stage};

async fn a_pods_life(line: Line) {
    let stage = stage!(Stage::any(Options::on(line)));
    let cri = stage.cri();
    let pod = cri.run_pod("old").await;
    assert!(cri.pod_ready(&pod.id).await);
    let web = cri.start(&pod, Cri::shell("web", "echo serving; httpd -f -p 80 -h /www")).await;
    let ip = cri.pod_ips(&pod).await[0];
    let page = stage.node.http_get((ip, 80).into(), "/", Duration::from_secs(30)).await;
    assert_eq!(page, "hello from the pod\n");
    assert_eq!(cri.exec(&web.id, "echo from inside").await, "from inside\n");
    let failing = cri.start(&pod, Cri::shell("failing", "echo oh no >&2; exit 3")).await;
    assert_eq!(cri.wait_exit(&failing.id).await.exit_code, 3);
    assert_eq!(failing.log().stderr, "oh no\n");
    assert_eq!(web.log().stdout, "serving\n");
    cri.stop(&web.id, 1).await;
    stage.end(&pod).await;
}

async fn a_pod_survives_restarts(line: Line) {
    let mut stage = stage!(Stage::vm(Options::on(line)));
    let pod = stage.cri().run_pod("old").await;
    let container = stage.cri().start(&pod, Cri::shell("main", "sleep 1000")).await;
    stage.node.restart_containerd().await;
    stage.node.stop_sandboxer(Signal::SIGKILL).await;
    stage.node.start_sandboxer().await;
    let status = stage.cri().container_status(&container.id).await;
    assert_eq!(status.state(), api::ContainerState::ContainerRunning, "{status:?}");
    assert!(stage.cri().pod_ready(&pod.id).await);
    assert_eq!(stage.cri().exec(&container.id, "echo still").await, "still\n");
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_survives_restarts_on_containerd_2_3() {
    a_pod_survives_restarts(Line::V23).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_survives_restarts_on_containerd_2_1() {
    a_pod_survives_restarts(Line::V21).await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kuasar_85_a_pods_life_on_containerd_2_3() {
        a_pods_life(Line::V23).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kuasar_85_a_pods_life_on_containerd_2_1() {
        a_pods_life(Line::V21).await;
    }
}
