//! Something that a pod cannot live without ends while it runs.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use vmm_actors::sandbox::{Exited, SandboxError};
use vmm_actors::testing::FakeDriver;

use crate::node::{Node, Service, kill, sandbox, signal};

type Waiting = tokio::task::JoinHandle<Result<Exited, SandboxError>>;

async fn running(node: &Node) -> (Service, Waiting) {
    let service = node.serve(FakeDriver::default().with_vsock_helper());
    service.run("p").await.unwrap();
    let sandboxes = service.sandboxes.clone();
    let waiting = tokio::spawn(async move { sandboxes.wait(&sandbox("p")).await });
    tokio::task::yield_now().await;
    (service, waiting)
}

/// Wait answers 137 soon, Status has the reason, network and processes are gone, and Shutdown leaves nothing.
async fn is_lost(node: &Node, service: &Service, waiting: Waiting, within: Duration, reason: &str) {
    let begin = Instant::now();
    let exited = tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap().unwrap();
    assert!(begin.elapsed() < within, "Wait answers after {:?}", begin.elapsed());
    assert_eq!(exited.status, 137);
    let status = service.status("p").await.unwrap();
    assert!(!status.ready && status.pid == 0, "{status:?}");
    assert!(status.reason.as_ref().unwrap().contains(reason), "{status:?}");
    assert_eq!(status.exited_at, Some(exited.at));
    assert_eq!(service.sandboxes.wait(&sandbox("p")).await.unwrap(), exited, "a late Wait gets the same");
    let links = node.in_netns("ip -o link");
    assert!(!links.contains("_bh") && !node.in_netns("tc qdisc show").contains("ingress"), "{links}");
    // A shim proxy that may still be asked keeps the directory of the VM, which is a mount of its own, and nothing in it.
    let (mounts, own) = (node.mounts(), node.vm_dir("p"));
    assert!(mounts.iter().all(|mount| mount == own.path()), "{mounts:?}");
    service.stop("p").await;
    service.shutdown("p").await;
    node.assert_nothing_left();
}

/// Long before the end of the patience with a guest that does not end, and generous on a busy machine.
const SOON: Duration = Duration::from_secs(8);

#[actix::test]
async fn a_killed_vmm_is_told_and_released() {
    let Some(node) = Node::new() else { return };
    let (service, waiting) = running(&node).await;
    kill(service.driver.launched()[0].pid);
    is_lost(&node, &service, waiting, SOON, "the VMM ended (signal 9)").await;
}

#[actix::test]
async fn a_killed_virtiofsd_is_told_and_released() {
    let Some(node) = Node::new() else { return };
    let (service, waiting) = running(&node).await;
    kill(node.record("p").unwrap().virtiofsd.unwrap().process.pid);
    is_lost(&node, &service, waiting, SOON, "virtiofsd ended unexpectedly (signal 9)").await;
}

#[actix::test]
async fn a_killed_vsock_helper_is_told_and_released() {
    let Some(node) = Node::new() else { return };
    let (service, waiting) = running(&node).await;
    kill(service.driver.vsock_helpers()[0].pid);
    is_lost(&node, &service, waiting, SOON, "its vsock helper ended (signal 9)").await;
}

#[actix::test]
async fn a_killed_shim_proxy_is_told_and_released() {
    let Some(node) = Node::new() else { return };
    let (service, waiting) = running(&node).await;
    kill(node.record("p").unwrap().shim.unwrap().process.pid);
    is_lost(&node, &service, waiting, SOON, "the shim proxy ended unexpectedly (signal 9)").await;
}

#[actix::test]
async fn a_shim_proxy_with_containers_outlives_its_vm_until_shutdown() {
    let Some(node) = Node::with_containers(&["c1"]) else { return };
    let (service, waiting) = running(&node).await;
    let shim = node.record("p").unwrap().shim.unwrap().process;
    kill(service.driver.launched()[0].pid);
    assert_eq!(waiting.await.unwrap().unwrap().status, 137);
    assert!(vmm_actors::host::process::ProcessIdentity::of(shim.pid).is_ok_and(|now| now == shim));
    let printed = std::fs::read_to_string(node.dir("p").shim_output()).unwrap();
    assert!(printed.contains("vm gone (137): the VMM ended (signal 9)"), "{printed}");
    let figures = service.sandboxes.metrics(&sandbox("p")).await.unwrap_err();
    assert!(matches!(figures, SandboxError::NoMetrics { .. }), "the shim proxy is no pod: {figures}");
    service.stop("p").await;
    assert!(node.dir("p").task_sock().exists(), "containerd fetches exits there");
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_shim_proxy_that_hangs_does_not_hold_up_the_end_of_its_vm() {
    let Some(node) = Node::new() else { return };
    let (service, waiting) = running(&node).await;
    signal(node.record("p").unwrap().shim.unwrap().process.pid, Signal::STOP);
    kill(service.driver.launched()[0].pid);
    is_lost(&node, &service, waiting, SOON, "the VMM ended (signal 9)").await;
}

#[actix::test]
async fn a_vmm_that_hangs_is_ended_by_stop() {
    let Some(node) = Node::new() else { return };
    let (service, waiting) = running(&node).await;
    signal(service.driver.launched()[0].pid, Signal::STOP);
    service.stop("p").await;
    assert_eq!(waiting.await.unwrap().unwrap().status, 0);
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_network_namespace_that_went_first_is_no_obstacle() {
    let Some(mut node) = Node::new() else { return };
    let (service, _waiting) = running(&node).await;
    node.end_netns();
    service.stop("p").await;
    service.shutdown("p").await;
    node.assert_nothing_left_on_host();
}

#[actix::test]
async fn an_actor_that_panics_is_rebuilt_and_its_pod_goes_on() {
    let Some(node) = Node::new() else { return };
    let (service, waiting) = running(&node).await;
    let before = node.record("p").unwrap();
    service.driver.panic_once();
    service.status("p").await.expect_err("the actor panics");
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, SandboxError::Gone(_)), "{error}: whoever waits is told to ask again");
    let status = service.until("p", "running").await;
    assert_eq!(status.pid, service.driver.launched()[0].pid);
    assert_eq!(node.record("p").unwrap(), before);
    service.stop("p").await;
    assert!(service.calls("p").contains(&"Shutdown".to_owned()), "{:?}", service.calls("p"));
    service.shutdown("p").await;
    node.assert_nothing_left();
}
