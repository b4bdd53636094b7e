//! Something of a pod hangs in the kernel and cannot be ended: every call is answered all the same, everything else is
//! released, and what is left is named and released when it goes.

use std::time::{Duration, Instant};

use vmm_actors::sandbox::{Exited, SandboxError};
use vmm_actors::testing::{FakeDriver, Frozen, HungFilesystem};

use crate::containers::bundle;
use crate::node::{Node, PATIENCE, Service, kill, sandbox};
use crate::predecessor::{Predecessor, Task};
use crate::restarts::lives;

/// A directory for the freezer outside of the node, which is looked through for what is left.
fn freeze(pid: u32) -> Option<(Frozen, tempfile::TempDir)> {
    let dir = tempfile::tempdir().unwrap();
    match Frozen::new(pid, dir.path()) {
        Ok(frozen) => Some((frozen, dir)),
        Err(error) => {
            println!("skipped: no process can be made to ignore SIGKILL here: {error}");
            None
        }
    }
}

/// Lets time go by for everybody who waits for it. Less than they wait: the rest is theirs, as what does not hang needs
/// it to be quick.
async fn skip(seconds: u32) {
    for _ in 0..seconds {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::time::resume();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The most of the guest's time to end, and the VMM's by SIGTERM and SIGKILL.
const MOST_OF_VMM: u32 = 20;
/// The most of a process's time by SIGKILL, and of a cgroup's to become empty.
const MOST_OF_KILL: u32 = 9;

async fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < 6 * PATIENCE, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

type Call = tokio::task::JoinHandle<Result<(), SandboxError>>;

fn stop(service: &Service) -> Call {
    let sandboxes = service.sandboxes.clone();
    tokio::spawn(async move { sandboxes.stop(&sandbox("p")).await })
}

fn shutdown(service: &Service) -> Call {
    let sandboxes = service.sandboxes.clone();
    tokio::spawn(async move { sandboxes.shutdown(&sandbox("p")).await })
}

/// What is left, a line each.
async fn left(call: Call) -> Vec<String> {
    wait_for("an answer", || call.is_finished()).await;
    let answer = call.await.unwrap();
    let Err(SandboxError::Leftover { left, .. }) = answer else { panic!("nothing is left: {answer:?}") };
    left
}

async fn answered(waiting: tokio::task::JoinHandle<Result<Exited, SandboxError>>) -> Exited {
    wait_for("an answer to Wait", || waiting.is_finished()).await;
    waiting.await.unwrap().unwrap()
}

/// Waits until the shim proxy has heard of the VM's end, and its answer had time to arrive.
async fn shim_is_told(node: &Node, news: &str) {
    let printed = || std::fs::read_to_string(node.dir("p").shim_output()).unwrap_or_default();
    wait_for("the news to the shim proxy", || printed().contains(news)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
}

#[actix::test]
async fn a_vmm_that_sigkill_does_not_end_is_named_and_everything_else_released() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default().with_vsock_helper());
    service.run("p").await.unwrap();
    let record = node.record("p").unwrap();
    let vm = record.vm.unwrap();
    let others = [vm.vsock_helper.unwrap(), record.virtiofsd.unwrap().process, record.shim.unwrap().process];
    let Some((frozen, _dir)) = freeze(vm.vmm.pid) else { return };
    let waiting = service.sandboxes.clone();
    let waiting = tokio::spawn(async move { waiting.wait(&sandbox("p")).await });

    let stopping = stop(&service);
    shim_is_told(&node, "vm gone").await;
    skip(MOST_OF_VMM).await;
    wait_for("the end of all other processes", || !others.iter().any(lives)).await;
    assert!(lives(&vm.vmm));
    skip(MOST_OF_KILL).await;
    let left_first = left(stopping).await.join("\n");
    assert!(left_first.contains(&format!("the VM: process {}", vm.vmm.pid)), "{left_first}");
    assert!(left_first.contains("cgroup"), "{left_first}");
    assert_eq!(left_first.lines().count(), 2, "{left_first}");
    assert_eq!(answered(waiting).await.status, 0);
    let links = node.in_netns("ip -o link");
    assert!(!links.contains("_bh") && !node.in_netns("tc qdisc show").contains("ingress"), "{links}");
    assert!(!node.dir("p").path().exists() && node.mounts().is_empty(), "{:?}", node.mounts());
    let status = service.until("p", "stopped, with something left to release").await;
    assert!(status.warnings.iter().any(|text| text.contains("the VM: process")), "{status:?}");

    // As long as it is there.
    let again = shutdown(&service);
    skip(MOST_OF_KILL).await;
    assert!(left(again).await.join("\n").contains("the VM: process"));

    drop(frozen);
    wait_for("the end of the VMM", || !lives(&vm.vmm)).await;
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_lost_pod_whose_vmm_sigkill_does_not_end_is_told_all_the_same() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default().with_vsock_helper());
    service.run("p").await.unwrap();
    let vmm = service.driver.launched()[0].clone();
    let Some((frozen, _dir)) = freeze(vmm.pid) else { return };
    let waiting = service.sandboxes.clone();
    let waiting = tokio::spawn(async move { waiting.wait(&sandbox("p")).await });
    kill(service.driver.vsock_helpers()[0].pid);
    wait_for("the helper's end", || !lives(&service.driver.vsock_helpers()[0])).await;
    skip(MOST_OF_KILL).await;
    shim_is_told(&node, "its vsock helper ended").await;
    skip(MOST_OF_VMM).await;
    wait_for("the removal of the directory", || !node.dir("p").path().exists()).await;
    skip(MOST_OF_KILL).await;
    assert_eq!(answered(waiting).await.status, 137);
    drop(frozen);
    wait_for("the end of the VMM", || !lives(&vmm)).await;
    service.stop("p").await;
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_virtiofsd_that_sigkill_does_not_end_is_named() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    service.run("p").await.unwrap();
    let virtiofsd = node.record("p").unwrap().virtiofsd.unwrap().process;
    let Some((frozen, _dir)) = freeze(virtiofsd.pid) else { return };
    let stopping = stop(&service);
    wait_for("the VMM's end", || !lives(&service.driver.launched()[0])).await;
    shim_is_told(&node, "vm gone").await;
    skip(MOST_OF_KILL).await;
    wait_for("the removal of the directory", || !node.dir("p").path().exists()).await;
    skip(MOST_OF_KILL).await;
    let left = left(stopping).await.join("\n");
    assert!(left.starts_with(&format!("virtiofsd: process {}", virtiofsd.pid)), "{left}");
    assert!(left.contains("cgroup") && left.lines().count() == 2, "{left}");
    drop(frozen);
    wait_for("the end of virtiofsd", || !lives(&virtiofsd)).await;
    service.stop("p").await;
    service.shutdown("p").await;
    node.assert_nothing_left();
}

/// Stop leaves a shim proxy that does not say that it has nothing; Shutdown does not.
#[actix::test]
async fn a_shim_proxy_that_sigkill_does_not_end_is_named_by_shutdown() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    service.run("p").await.unwrap();
    let shim = node.record("p").unwrap().shim.unwrap().process;
    let Some((frozen, _dir)) = freeze(shim.pid) else { return };
    service.stop("p").await;
    let ending = shutdown(&service);
    // Until it is clear that it does not hear of the VM's end, and the rest is looked through.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    // To end by itself, by SIGTERM, by SIGKILL.
    skip(12).await;
    wait_for("the removal of the directory", || !node.dir("p").path().exists()).await;
    skip(MOST_OF_KILL).await;
    let left = left(ending).await.join("\n");
    assert!(left.contains(&format!("the shim proxy: process {}", shim.pid)), "{left}");
    drop(frozen);
    wait_for("the end of the shim proxy", || !lives(&shim)).await;
    service.shutdown("p").await;
    node.assert_nothing_left();
}

/// A volume on a server that is away holds up the mounts, and nothing else.
#[actix::test]
async fn mounts_that_hang_are_named_and_everything_else_released() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    service.run("p").await.unwrap();
    let processes =
        [service.driver.launched()[0].clone(), node.record("p").unwrap().virtiofsd.unwrap().process];
    let shim = node.record("p").unwrap().shim.unwrap().process;
    let request = bundle(&node, "c1");
    let server = match HungFilesystem::mount(&node.root.path().join("volumes/c1")) {
        Ok(server) => server,
        Err(error) => return println!("skipped: no file system can be made to hang here: {error}"),
    };
    let preparing = service.sandboxes.clone();
    let preparing =
        tokio::spawn(async move { preparing.prepare_container(&sandbox("p"), request).await.map(drop) });
    let prepared = || node.record("p").is_some_and(|record| !record.containers.by_id.is_empty());
    wait_for("the container's record", prepared).await;

    let stopping = stop(&service);
    wait_for("the end of VMM and virtiofsd", || !processes.iter().any(lives)).await;
    wait_for("the release of the network", || !node.in_netns("ip -o link").contains("_bh")).await;
    skip(14).await;
    let left_first = left(stopping).await.join("\n");
    assert!(left_first.starts_with("mounts: not done after 15s"), "{left_first}");
    assert!(!lives(&shim), "{left_first}");

    drop(server);
    preparing.await.unwrap().unwrap_err();
    service.shutdown("p").await;
    node.assert_nothing_left();
}

/// A successor ends what its predecessor's record says, and says what it cannot.
#[actix::test]
async fn what_sigkill_does_not_end_is_told_by_a_successor_too() {
    let Some(node) = Node::new() else { return };
    Predecessor::of(&node, Task::Run).kill();
    let record = node.record("p").unwrap();
    let vmm = record.vm.unwrap().vmm;
    let Some((frozen, _dir)) = freeze(vmm.pid) else { return };
    let virtiofsd = record.virtiofsd.unwrap().process;
    kill(virtiofsd.pid);
    wait_for("the end of virtiofsd", || !lives(&virtiofsd)).await;
    let service = node.serve(FakeDriver::default());
    assert_eq!(service.report.lost, [sandbox("p")]);
    let stopping = stop(&service);
    shim_is_told(&node, "vm gone").await;
    skip(MOST_OF_KILL).await;
    wait_for("the removal of the directory", || !node.dir("p").path().exists()).await;
    skip(MOST_OF_KILL).await;
    let left = left(stopping).await.join("\n");
    assert!(left.contains(&format!("the VM: process {}", vmm.pid)), "{left}");
    drop(frozen);
    wait_for("the end of the VMM", || !lives(&vmm)).await;
    service.shutdown("p").await;
    node.assert_nothing_left();
}
