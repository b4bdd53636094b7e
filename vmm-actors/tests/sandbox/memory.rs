//! The host's memory: what becomes of a pod that the host's OOM killer comes for.

use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_config::WithoutOverhead;
use vmm_actors::Resources;
use vmm_actors::sandbox::CreateSandbox;
use vmm_actors::sandbox::state::{Cause, Class};
use vmm_actors::testing::{EAT, FakeDriver, Fault};
use vmm_actors::vm::Size;

use crate::node::{Node, PATIENCE, Service, sandbox};
use crate::predecessor::{Predecessor, Task};

const MIB: u64 = 1 << 20;
const KILLED: &str = "killed by the host's OOM killer: the memory limit of 48 MiB on ";

/// The pod's own cgroup, where its memory is limited; `None` after saying why there is none.
fn memory_cgroup(node: &Node) -> Option<PathBuf> {
    let directories = node.record("p").unwrap().cgroup.directories;
    let limited = directories.into_iter().find(|directory| directory.join(LIMIT).exists());
    if limited.is_none() {
        println!("skipped: this test limits memory by cgroup v1's {LIMIT}");
    }
    limited
}

/// What a test writes; on cgroup v2 it is another file, and the kernel says the same in other files.
const LIMIT: &str = "memory.limit_in_bytes";

/// A pod whose VMM wants more than its cgroup, or the one above it, allows.
async fn killed(node: &Node, service: &Service, whose: impl FnOnce(PathBuf) -> PathBuf) -> Option<()> {
    let limited = whose(memory_cgroup(node)?);
    fs::write(limited.join(LIMIT), (48 * MIB).to_string()).unwrap();
    let waiting = service.sandboxes.clone();
    let waiting = tokio::spawn(async move { waiting.wait(&sandbox("p")).await });
    fs::write(node.vm_dir("p").path().join(EAT), "").unwrap();
    let exited = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(exited.status, 137);
    let status = service.status("p").await.unwrap();
    let reason = status.reason.clone().unwrap();
    let says = format!("{KILLED}{} was reached", limited.display());
    assert!(reason.contains(&says) && reason.contains("overhead"), "{reason}");
    assert!(reason.contains("the VMM ended"), "{reason}");
    assert!(!status.ready && status.pid == 0, "{status:?}");
    service.stop("p").await;
    service.shutdown("p").await;
    node.assert_nothing_left();
    Some(())
}

#[actix::test]
async fn a_vm_that_the_host_kills_at_its_own_limit_says_so() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default().then(Fault::Eats(256)));
    service.run("p").await.unwrap();
    let _told = killed(&node, &service, |own| own).await;
}

#[actix::test]
async fn a_vm_that_the_host_kills_at_a_limit_above_it_says_so() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default().then(Fault::Eats(256)));
    service.run("p").await.unwrap();
    let _told = killed(&node, &service, |own| own.parent().unwrap().to_owned()).await;
}

#[actix::test]
async fn a_vm_that_the_host_killed_while_no_service_ran_says_so() {
    let Some(node) = Node::new() else { return };
    Predecessor::of(&node, Task::RunHungry).kill();
    let Some(own) = memory_cgroup(&node) else { return };
    let vmm = node.record("p").unwrap().vm.unwrap().vmm;
    fs::write(own.join(LIMIT), (48 * MIB).to_string()).unwrap();
    fs::write(node.vm_dir("p").path().join(EAT), "").unwrap();
    while crate::restarts::lives(&vmm) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let service = node.serve(FakeDriver::default());
    assert_eq!(service.report.lost, [sandbox("p")]);
    assert_eq!(service.sandboxes.wait(&sandbox("p")).await.unwrap().status, 137);
    let reason = service.status("p").await.unwrap().reason.unwrap();
    assert!(reason.contains(KILLED) && reason.contains("while the service was down"), "{reason}");
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_vm_that_the_host_kills_before_it_runs_fails_the_start() {
    let Some(node) = Node::new() else { return };
    // It boots until it is killed.
    let service = node.serve(FakeDriver::new(PATIENCE).then(Fault::Eats(256)));
    service.create("p").await.unwrap();
    while service.driver.launched().is_empty() {
        tokio::task::yield_now().await;
    }
    let Some(own) = memory_cgroup(&node) else { return service.shutdown("p").await };
    fs::write(own.join(LIMIT), (48 * MIB).to_string()).unwrap();
    fs::write(node.vm_dir("p").path().join(EAT), "").unwrap();
    let Cause { class, reason } = crate::node::cause(service.start("p").await.unwrap_err());
    assert_eq!(class, Class::Exhausted, "{reason}");
    assert!(reason.contains(KILLED), "{reason}");
    node.assert_nothing_left();
}

/// A request for a pod whose own cgroup, the path, allows 100 MiB; `None` after saying why there is none.
fn tight(node: &Node) -> Option<(CreateSandbox, PathBuf)> {
    let mut request = node.request("p");
    request.pod.cgroup_parent = format!("{}/pod1", node.settings.cgroup.default_parent);
    let parent = PathBuf::from(format!("/sys/fs/cgroup/memory{}", request.pod.cgroup_parent));
    if fs::create_dir_all(&parent).is_err() || !parent.join(LIMIT).exists() {
        println!("skipped: this test limits memory by cgroup v1's {LIMIT}");
        return None;
    }
    fs::write(parent.join(LIMIT), (100 * MIB).to_string()).unwrap();
    Some((request, parent))
}

/// kubelet's own, which a pod leaves alone.
fn remove_kubelets(parent: &Path) {
    fs::remove_dir(parent).unwrap();
    fs::remove_dir(parent.parent().unwrap()).unwrap();
}

#[actix::test]
async fn a_pod_without_overhead_runs_beside_its_cgroup_and_says_so() {
    let Some(node) = Node::new() else { return };
    let Some((mut request, parent)) = tight(&node) else { return };
    let room = Size { vcpus: 8.try_into().unwrap(), memory_mib: 4096.try_into().unwrap() };
    let service = node.serve(FakeDriver::default().with_room(room));
    request.pod.overhead.memory_limit_bytes = 1;
    let refused = service.sandboxes.create(request.clone()).await.unwrap_err();
    let Cause { reason, .. } = crate::node::cause(refused);
    assert!(reason.contains("overhead"), "an overhead that is too small is refused: {reason}");
    request.pod.overhead.memory_limit_bytes = 0;
    service.sandboxes.create(request).await.unwrap();
    service.start("p").await.unwrap();

    let beside = parent.with_file_name("bulkhead-p");
    let vmm = node.record("p").unwrap().vm.unwrap().vmm.pid.to_string();
    let inside = fs::read_to_string(beside.join("cgroup.procs")).unwrap();
    assert!(inside.lines().any(|pid| pid == vmm), "{inside:?} without {vmm}");
    let needed = u64::from(node.settings.vm.memory_mib.get()) + 192;
    let limit = |cgroup: &Path| fs::read_to_string(cgroup.join(LIMIT)).unwrap().trim().to_owned();
    assert_eq!(limit(&beside), (needed * MIB).to_string());
    assert_eq!(limit(&parent), (100 * MIB).to_string(), "kubelet's own");
    let status = service.status("p").await.unwrap();
    let told =
        |warning: &String| warning.contains("no overhead") && warning.contains(&format!("{needed} MiB"));
    assert!(status.warnings.iter().any(told), "{:?}", status.warnings);

    // What kubelet makes of the pod's own cgroup bounds nothing of it.
    let more = Resources { memory_limit_bytes: 64 << 20, ..Resources::default() };
    service.sandboxes.update(&sandbox("p"), more, Resources::default()).await.unwrap();
    assert_eq!(limit(&beside), ((needed + 64) * MIB).to_string());

    service.stop("p").await;
    service.shutdown("p").await;
    assert!(!beside.exists());
    remove_kubelets(&parent);
    node.assert_nothing_left();
}

#[actix::test]
async fn a_pod_whose_parent_does_not_allow_what_its_vm_needs_is_refused() {
    let Some(mut node) = Node::new() else { return };
    node.place.settings.cgroup.without_overhead = WithoutOverhead::Refuse;
    let Some((request, parent)) = tight(&node) else { return };
    let service = node.serve(FakeDriver::default());
    let error = service.sandboxes.create(request.clone()).await.unwrap_err();
    let Cause { class, reason } = crate::node::cause(error);
    assert_eq!(class, Class::Invalid, "{reason}");
    let needed = u64::from(node.settings.vm.memory_mib.get()) + 192;
    for says in ["100 MiB", &format!("{needed} MiB"), &format!("be {} MiB more", needed - 100), "overhead"] {
        assert!(reason.contains(says), "{says}: {reason}");
    }
    assert!(service.driver.launched().is_empty());

    fs::write(parent.join(LIMIT), (needed * MIB).to_string()).unwrap();
    service.sandboxes.create(request).await.unwrap();
    service.start("p").await.unwrap();
    service.shutdown("p").await;
    remove_kubelets(&parent);
    node.assert_nothing_left();
}

#[actix::test]
async fn a_limit_too_small_for_the_vm_is_raised_and_told() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    let mut request = node.request("p");
    request.pod.resources.memory_limit_bytes = 64 << 20;
    service.sandboxes.create(request).await.unwrap();
    service.start("p").await.unwrap();
    let status = service.status("p").await.unwrap();
    let needed = u64::from(node.settings.vm.memory_mib.get()) + 64 + 192;
    let told = format!("the host allows the pod {needed} MiB of memory instead of the 64 MiB");
    assert!(status.warnings.iter().any(|warning| warning.starts_with(&told)), "{:?}", status.warnings);
    let limit = service.sandboxes.metrics(&sandbox("p")).await.unwrap().cgroup.memory_limit;
    assert_eq!(limit, needed * MIB);
    service.shutdown("p").await;
    node.assert_nothing_left();
}
