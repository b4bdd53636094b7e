//! What a pod's life looks like when all is well.

use std::time::Duration;

use vmm_actors::sandbox::SandboxError;
use vmm_actors::sandbox::record::Phase;
use vmm_actors::testing::{FakeDriver, Fault};

use crate::node::{Node, sandbox};

#[actix::test]
async fn a_pod_lives_from_create_to_shutdown_and_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    service.create("p").await.unwrap();
    assert!(!service.status("p").await.unwrap().ready, "nobody has started it");

    let started = service.start("p").await.unwrap();
    assert_eq!(started.pid, service.driver.launched()[0].pid);
    assert_eq!(started.address, format!("ttrpc+unix://{}", node.dir("p").task_sock().display()));
    let status = service.status("p").await.unwrap();
    assert!(status.ready && status.pid == started.pid && status.reason.is_none(), "{status:?}");
    assert_eq!(service.calls("p")[..2], ["Hello", "Setup p"]);
    let record = node.record("p").unwrap();
    assert_eq!(record.phase, Phase::Running);
    assert_eq!(record.vm.unwrap().vmm.pid, started.pid);
    assert_eq!(record.network.links.len(), 2);

    service.stop("p").await;
    let status = service.status("p").await.unwrap();
    assert!(!status.ready && status.pid == 0 && status.exited_at.is_some(), "{status:?}");
    assert_eq!(service.sandboxes.wait(&sandbox("p")).await.unwrap().status, 0);
    assert!(service.calls("p").contains(&"Shutdown".to_owned()), "the guest is told");
    service.stop("p").await;

    service.shutdown("p").await;
    assert!(matches!(service.status("p").await, Err(SandboxError::NotFound(_))));
    node.assert_nothing_left();
    service.stop("p").await;
    service.shutdown("p").await;
}

#[actix::test]
async fn a_running_pod_is_shut_down_without_a_stop() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    service.run("p").await.unwrap();
    let waiting = {
        let sandboxes = service.sandboxes.clone();
        tokio::spawn(async move { sandboxes.wait(&sandbox("p")).await })
    };
    tokio::task::yield_now().await;
    service.shutdown("p").await;
    assert_eq!(waiting.await.unwrap().unwrap().status, 0);
    node.assert_nothing_left();
}

#[actix::test]
async fn every_process_of_a_pod_is_in_its_cgroup() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default().with_vsock_helper());
    service.run("p").await.unwrap();
    let record = node.record("p").unwrap();
    let (vm, shim) = (record.vm.unwrap(), record.shim.unwrap());
    let pids = vmm_actors::cgroup::find_pids(&record.cgroup);
    for process in [vm.vmm, vm.vsock_helper.unwrap(), record.virtiofsd.unwrap().process, shim.process] {
        assert!(pids.contains(&process.pid), "{process:?} is not among {pids:?}");
    }
    let metrics = service.sandboxes.metrics(&sandbox("p")).await.unwrap();
    assert!(metrics.cgroup.pids >= 4 && metrics.network.len() == 2, "{metrics:?}");
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_guest_that_does_not_power_off_is_ended() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default().then(Fault::IgnoresShutdown));
    service.run("p").await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), service.shutdown("p")).await.unwrap();
    node.assert_nothing_left();
}

#[actix::test]
async fn a_second_create_is_refused_and_harms_nobody() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    let (first, second) = tokio::join!(service.create("p"), service.create("p"));
    first.unwrap();
    assert!(matches!(second, Err(SandboxError::AlreadyExists(_))));
    service.start("p").await.unwrap();
    assert!(matches!(service.create("p").await, Err(SandboxError::AlreadyExists(_))));
    assert!(matches!(service.start("p").await, Err(SandboxError::Refused { .. })));
    assert!(service.status("p").await.unwrap().ready);
    service.stop("p").await;
    assert!(matches!(service.create("p").await, Err(SandboxError::AlreadyExists(_))));
    assert!(matches!(service.start("p").await, Err(SandboxError::Refused { .. })));
    service.shutdown("p").await;
    service.run("p").await.unwrap();
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn two_starts_get_the_same_answer() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::new(Duration::from_millis(50)));
    service.create("p").await.unwrap();
    let (first, second) = tokio::join!(service.start("p"), service.start("p"));
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(service.driver.launched().len(), 1);
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn requests_about_nobody_say_so() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    assert!(matches!(service.status("p").await, Err(SandboxError::NotFound(_))));
    assert!(matches!(service.start("p").await, Err(SandboxError::NotFound(_))));
    assert!(matches!(service.sandboxes.wait(&sandbox("p")).await, Err(SandboxError::NotFound(_))));
    service.sandboxes.abandon(&sandbox("p")).await;
    service.sandboxes.orphan(&sandbox("p")).await;
    service.stop("p").await;
    service.shutdown("p").await;
    assert!(service.sandboxes.list().await.is_empty());
}

#[actix::test]
async fn a_pod_that_containerd_has_forgotten_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    service.run("p").await.unwrap();
    service.sandboxes.orphan(&sandbox("p")).await;
    service.until_gone("p").await;
    node.assert_nothing_left();
}
