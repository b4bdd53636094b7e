//! Other limits for a pod that runs: all hold, or none does and the answer says what cannot be changed.

use std::fs;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use bulkhead_protocol::error::chain;
use vmm_actors::Resources;
use vmm_actors::sandbox::SandboxError;
use vmm_actors::sandbox::state::{Cause, Class};
use vmm_actors::testing::{FakeDriver, FakeGuest, Fault};
use vmm_actors::vm::Size;

use crate::node::{Node, PATIENCE, Service, cause, sandbox};
use crate::predecessor::{Predecessor, Task};

const MIB: i64 = 1 << 20;

/// How far the VMs of these tests can grow.
const ROOM: Size = Size { vcpus: NonZeroU32::new(4).unwrap(), memory_mib: NonZeroU32::new(1024).unwrap() };

/// A running pod with two CPUs and 128 MiB.
async fn running(node: &Node, driver: FakeDriver) -> Service {
    let service = node.serve(driver);
    let mut request = node.request("p");
    request.pod.resources = Resources { memory_limit_bytes: 128 * MIB, ..cpus(2) };
    service.sandboxes.create(request).await.unwrap();
    service.start("p").await.unwrap();
    service
}

fn cpus(count: i64) -> Resources {
    Resources { cpu_period: 100_000, cpu_quota: count * 100_000, ..Resources::default() }
}

fn memory(mib: i64) -> Resources {
    Resources { memory_limit_bytes: mib * MIB, ..Resources::default() }
}

/// What the files of the pod's cgroup say that can be changed.
fn files(node: &Node) -> Vec<(String, String)> {
    let directories = node.record("p").unwrap().cgroup.directories;
    let names =
        ["cpu.cfs_quota_us", "cpu.max", "cpu.shares", "cpu.weight", "memory.limit_in_bytes", "memory.max"];
    let mut found = Vec::new();
    for directory in directories {
        for name in names {
            if let Ok(text) = fs::read_to_string(directory.join(name)) {
                found.push((name.to_owned(), text.trim().to_owned()));
            }
        }
    }
    found
}

fn memory_limit_mib(files: &[(String, String)]) -> Option<i64> {
    let limit = files.iter().find(|(name, _)| name.starts_with("memory."))?;
    Some(limit.1.parse::<i64>().unwrap() / MIB)
}

async fn update(service: &Service, resources: Resources, overhead: Resources) -> Result<(), String> {
    let updated = service.sandboxes.update(&sandbox("p"), resources, overhead).await;
    updated.map_err(|error| {
        let SandboxError::Unchangeable { source, .. } = error else { panic!("{error}") };
        chain(&source)
    })
}

#[actix::test]
async fn new_limits_reach_the_cgroup_and_the_record_and_the_rest_stays() {
    let Some(node) = Node::new() else { return };
    let service = running(&node, FakeDriver::default()).await;
    let before = node.record("p").unwrap();
    update(&service, cpus(1), memory(1024)).await.unwrap();
    let after = node.record("p").unwrap();
    assert_eq!(after.pod.resources, Resources { memory_limit_bytes: 128 * MIB, ..cpus(1) });
    assert_eq!(after.pod.overhead, memory(1024));
    assert_eq!(after.size, before.size, "a VM does not shrink");
    let files = files(&node);
    let cpu = files.iter().find(|(name, _)| name == "cpu.cfs_quota_us" || name == "cpu.max");
    assert!(cpu.is_none_or(|(_, text)| text.starts_with("100000")), "{files:?}");
    assert_eq!(memory_limit_mib(&files).unwrap_or(1152), 1152);
    let warnings = service.status("p").await.unwrap().warnings;
    assert!(warnings.iter().any(|text| text.starts_with("the VM keeps its 2 CPUs")), "{warnings:?}");
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_vm_keeps_what_the_host_gives_it_when_its_pod_shrinks() {
    let Some(node) = Node::new() else { return };
    let service = running(&node, FakeDriver::default()).await;
    let before = files(&node);
    update(&service, memory(16), Resources::default()).await.unwrap();
    assert_eq!(memory_limit_mib(&files(&node)), memory_limit_mib(&before), "its guest may use it all");
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_vm_that_cannot_grow_says_what_cannot_be_changed_and_nothing_is() {
    let Some(node) = Node::new() else { return };
    let service = running(&node, FakeDriver::default()).await;
    let (record, before) = (node.record("p").unwrap(), files(&node));
    let base = i64::from(node.settings.vm.memory_mib.get());
    let more = Resources { memory_limit_bytes: 256 * MIB, ..cpus(4) };
    let reason = update(&service, more, Resources::default()).await.unwrap_err();
    let grow = format!("grow, CPUs from 2 to 4 and memory from {} to {} MiB", base + 128, base + 256);
    assert!(reason.contains(&grow) && reason.contains("fake cannot resize a running VM"), "{reason}");
    assert!(reason.contains("nothing was changed"), "{reason}");
    assert_eq!((node.record("p").unwrap(), files(&node)), (record, before));
    assert!(service.status("p").await.unwrap().ready);
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_vm_that_can_grow_does_and_the_host_gives_it_more() {
    let Some(node) = Node::new() else { return };
    let service = running(&node, FakeDriver::default().with_room(ROOM)).await;
    let before = memory_limit_mib(&files(&node));
    let base = node.settings.vm.memory_mib.get();
    update(&service, memory(256), Resources::default()).await.unwrap();
    assert_eq!(service.driver.resized(), [(2, base + 256)]);
    assert_eq!(memory_limit_mib(&files(&node)), before.map(|before| before + 128));
    assert_eq!(node.record("p").unwrap().size.unwrap().memory_mib.get(), base + 256);
    assert_eq!(service.status("p").await.unwrap().size.memory_mib.get(), base + 256);
    update(&service, memory(200), Resources::default()).await.unwrap();
    assert_eq!(service.driver.resized().len(), 1, "it does not shrink");
    let warnings = service.status("p").await.unwrap().warnings;
    assert!(warnings.iter().any(|text| text.starts_with("the VM keeps its 2 CPUs")), "{warnings:?}");
    update(&service, memory(256), Resources::default()).await.unwrap();
    let warnings = service.status("p").await.unwrap().warnings;
    assert!(!warnings.iter().any(|text| text.starts_with("the VM keeps")), "no longer so: {warnings:?}");
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_growth_that_fails_on_the_way_is_taken_back() {
    for (fault, says) in [
        (Fault::TakesNoMemory, "the guest was to have 4 CPUs and"),
        (Fault::TakesNoCpus, "the guest uses 1 CPUs"),
        (Fault::OldAgent, "\"fake\", cannot take CPUs or memory"),
    ] {
        let Some(node) = Node::new() else { return };
        let service = running(&node, FakeDriver::default().with_room(ROOM).then(fault.clone())).await;
        let (record, before) = (node.record("p").unwrap(), files(&node));
        let more = Resources { memory_limit_bytes: 256 * MIB, ..cpus(4) };
        let reason = update(&service, more, memory(64)).await.unwrap_err();
        assert!(reason.contains(says), "{fault:?}: {reason}");
        let tells = if fault == Fault::OldAgent { "nothing was changed" } else { "it has what it had" };
        assert!(reason.contains(tells), "{fault:?}: {reason}");
        assert_eq!((node.record("p").unwrap(), files(&node)), (record.clone(), before), "{fault:?}");
        assert_eq!(service.driver.size(&record.vm_dir()), record.size, "{fault:?}");
        service.shutdown("p").await;
        node.assert_nothing_left();
    }
}

#[actix::test]
async fn a_vm_grows_no_further_than_it_has_room_for() {
    let Some(node) = Node::new() else { return };
    let service = running(&node, FakeDriver::default().with_room(ROOM)).await;
    let (record, before) = (node.record("p").unwrap(), files(&node));
    let reason = update(&service, cpus(5), Resources::default()).await.unwrap_err();
    assert!(reason.contains("CPUs from 2 to 5") && reason.contains("max_vcpus"), "{reason}");
    assert!(reason.contains("nothing was changed"), "{reason}");
    assert_eq!((node.record("p").unwrap(), files(&node)), (record, before));
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_vm_that_grew_behind_the_records_back_is_measured_when_it_is_taken_over() {
    let Some(node) = Node::new() else { return };
    Predecessor::of(&node, Task::Run).kill();
    let record = node.record("p").unwrap();
    // As if the service had been killed before it could write that down.
    let larger = Size { vcpus: NonZeroU32::new(3).unwrap(), ..record.size.unwrap() };
    let vmm = record.vm.clone().unwrap().vmm;
    let _guest = FakeGuest::start(record.vm_dir(), vmm, Fault::NeverAnnounces, Duration::ZERO).unwrap();
    let service = node.serve(FakeDriver::default().with_room(ROOM).with_vm(&record.vm_dir(), larger));
    let begin = Instant::now();
    while node.record("p").unwrap().size != Some(larger) {
        assert!(begin.elapsed() < PATIENCE, "the record still says {:?}", node.record("p").unwrap().size);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(service.status("p").await.unwrap().size, larger);
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_limit_that_the_kernel_refuses_takes_the_others_back() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    service.run("p").await.unwrap();
    let (record, before) = (node.record("p").unwrap(), files(&node));
    let refused = Resources { cpu_shares: 77, cpuset_cpus: "4095".to_owned(), ..cpus(1) };
    let reason = update(&service, refused, Resources::default()).await.unwrap_err();
    assert!(reason.contains("CPUs to 4095"), "{reason}");
    assert_eq!((node.record("p").unwrap(), files(&node)), (record, before));
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_parent_that_allows_less_than_the_vm_has_is_told() {
    let Some(node) = Node::new() else { return };
    let service = running(&node, FakeDriver::default()).await;
    let own = node.record("p").unwrap().cgroup.directories;
    let mut limits = own.iter().map(|own| own.parent().unwrap().join("memory.limit_in_bytes"));
    let Some(limit) = limits.find(|limit| limit.exists()) else {
        println!("skipped: this test limits memory by cgroup v1");
        return service.shutdown("p").await;
    };
    // As kubelet does when a pod is resized in place.
    fs::write(limit, (64 * MIB).to_string()).unwrap();
    let reason = update(&service, memory(64), Resources::default()).await.unwrap_err();
    assert!(reason.contains("allows the pod 64 MiB of memory, and its VM needs"), "{reason}");
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn raw_files_that_this_host_has_not_are_refused_by_name() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    let mut request = node.request("p");
    request.pod.resources.unified.insert("memory.no_such".to_owned(), "1".to_owned());
    let Cause { class, reason } = cause(service.sandboxes.create(request.clone()).await.unwrap_err());
    assert_eq!(class, Class::Invalid, "{reason}");
    assert!(reason.contains("\"memory.no_such\" cannot be set"), "{reason}");
    node.assert_nothing_left();
    service.run("p").await.unwrap();
    let reason = update(&service, request.pod.resources, Resources::default()).await.unwrap_err();
    assert!(reason.contains("\"memory.no_such\" cannot be set"), "{reason}");
    assert!(node.record("p").unwrap().pod.resources.unified.is_empty());
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_pod_that_does_not_run_keeps_its_limits() {
    let Some(node) = Node::new() else { return };
    let service = running(&node, FakeDriver::default()).await;
    service.stop("p").await;
    let reason = update(&service, cpus(1), Resources::default()).await.unwrap_err();
    assert_eq!(reason, "it is stopped");
    service.shutdown("p").await;
    node.assert_nothing_left();
}
