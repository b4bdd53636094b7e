//! What a service makes of what its predecessor left.

use std::time::Duration;

use bulkhead_protocol::error::chain;
use vmm_actors::Resources;
use vmm_actors::host::process::ProcessIdentity;
use vmm_actors::sandbox::record::{Phase, Record};
use vmm_actors::testing::{FakeDriver, FakeGuest, Fault};
use vmm_actors::vm::{DriverState, Size};

use crate::node::{Node, PATIENCE, kill, sandbox};
use crate::predecessor::{Predecessor, Task};

fn processes(record: &Record) -> Vec<ProcessIdentity> {
    let vm = record.vm.clone().unwrap();
    let rest = [record.virtiofsd.clone().unwrap().process, record.shim.clone().unwrap().process];
    [vm.vmm, vm.vsock_helper.unwrap()].into_iter().chain(rest).collect()
}

pub(crate) fn lives(process: &ProcessIdentity) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
    let zombie = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'));
    ProcessIdentity::of(process.pid).is_ok_and(|now| now == *process) && !zombie
}

/// The guest of a pod whose first service took its fake along.
pub(crate) fn guest(record: &Record) -> FakeGuest {
    let vmm = record.vm.clone().unwrap().vmm;
    FakeGuest::start(record.vm_dir(), vmm, Fault::NeverAnnounces, Duration::ZERO).unwrap()
}

#[actix::test]
async fn a_running_pod_is_taken_over_untouched() {
    let Some(node) = Node::new() else { return };
    Predecessor::of(&node, Task::Run).kill();
    let record = node.record("p").unwrap();
    let guest = guest(&record);
    let mounts = node.mounts();

    let service = node.serve(FakeDriver::default());
    assert_eq!(service.report.adopted, [sandbox("p")]);
    let status = service.status("p").await.unwrap();
    assert!(status.ready && status.pid == record.vm.clone().unwrap().vmm.pid, "{status:?}");
    assert!(processes(&record).iter().all(lives), "a process of the pod is gone");
    assert_eq!((node.mounts(), node.record("p").unwrap()), (mounts, record.clone()));
    assert!(node.in_netns("tc qdisc show").contains("ingress"));

    service.stop("p").await;
    assert!(guest.calls().contains(&"Shutdown".to_owned()), "{:?}", guest.calls());
    assert!(!processes(&record).iter().any(lives), "a process outlived Stop");
    assert_eq!(service.sandboxes.wait(&sandbox("p")).await.unwrap().status, 0);
    service.shutdown("p").await;
    node.assert_nothing_left();
}

/// Other settings than a pod was made with: VMs of another size, another runtime directory.
fn change_settings(node: &mut Node) {
    let run_dir = node.root.path().join("run2");
    for directory in ["s", "vm"] {
        std::fs::create_dir_all(run_dir.join(directory)).unwrap();
    }
    let settings = &mut node.place.settings;
    settings.sandboxer.run_dir = run_dir;
    settings.vm.vcpus = 3.try_into().unwrap();
    settings.vm.memory_mib = settings.vm.memory_mib.saturating_add(512);
    settings.cgroup.default_parent = "/bh-test-elsewhere".to_owned();
}

/// Once as this release records it, once as one that recorded neither the driver's state nor what sizes are reckoned from.
#[actix::test]
async fn a_running_pod_is_what_its_record_says_whatever_the_settings_say_by_now() {
    for old in [false, true] {
        let Some(mut node) = Node::new() else { return };
        Predecessor::of(&node, Task::Run).kill();
        let mut record = node.record("p").unwrap();
        assert!(record.basis.is_some() && record.vm.clone().unwrap().state != DriverState::default());
        let guest = guest(&record);
        let (made_with, size) = (node.place.settings.clone(), record.size.unwrap());
        if old {
            record.basis = None;
            record.vm.as_mut().unwrap().state = DriverState::default();
            node.store().save(&record).unwrap();
        }
        change_settings(&mut node);

        let room = Size { vcpus: 8.try_into().unwrap(), memory_mib: 4096.try_into().unwrap() };
        let driver = FakeDriver::default().with_fixed_size().with_room(room);
        let service = node.serve(driver.with_vm(&record.vm_dir(), size));
        assert_eq!(service.report.adopted, [sandbox("p")]);
        let run_dirs: Vec<_> = service.report.run_dirs.iter().collect();
        assert_eq!(run_dirs, [&made_with.sandboxer.run_dir], "its shim proxy dials there");
        let status = service.status("p").await.unwrap();
        assert_eq!((status.size, status.vmm.as_deref()), (size, Some("fake, emulation")));
        assert!(status.address.contains(made_with.sandboxer.run_dir.to_str().unwrap()), "{status:?}");

        let limit = |mib: i64| Resources { memory_limit_bytes: mib << 20, ..Resources::default() };
        let id = sandbox("p");
        let update = |limit| service.sandboxes.update(&id, limit, Resources::default());
        // The guest's agent is dialled meanwhile.
        let begin = std::time::Instant::now();
        while let Err(refused) = update(limit(64)).await {
            assert!(chain(&refused).contains("session is lost"), "{refused}");
            assert!(begin.elapsed() < PATIENCE, "{refused}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let grown = made_with.vm.memory_mib.get() + 64;
        assert_eq!(service.driver.resized(), [(size.vcpus.get(), grown)], "by the settings of its making");
        update(limit(32)).await.unwrap();
        update(limit(64)).await.unwrap();
        assert_eq!(service.driver.resized().len(), 1);

        service.stop("p").await;
        assert!(guest.calls().contains(&"Shutdown".to_owned()), "{:?}", guest.calls());
        assert!(!processes(&record).iter().any(lives), "a process outlived Stop");
        service.shutdown("p").await;
        node.assert_nothing_left();
        node.place.settings = made_with;
        node.assert_nothing_left();
    }
}

#[actix::test]
async fn a_running_pod_is_taken_over_again_and_again() {
    let Some(node) = Node::new() else { return };
    Predecessor::of(&node, Task::Run).kill();
    let record = node.record("p").unwrap();
    for _ in 0..3 {
        // A thread with its system is as much of a service as a test can end in order.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                actix::System::new().block_on(async {
                    let service = node.serve(FakeDriver::default());
                    assert_eq!(service.report.adopted, [sandbox("p")]);
                    assert!(service.status("p").await.unwrap().ready);
                });
            });
        });
        assert!(processes(&record).iter().all(lives), "a service took its pod along");
    }
    let service = node.serve(FakeDriver::default());
    assert!(service.status("p").await.unwrap().ready);
    kill(record.vm.unwrap().vmm.pid);
    let exited = service.sandboxes.wait(&sandbox("p")).await.unwrap();
    assert_eq!(exited.status, 137, "the end of an adopted VM is noticed");
    let status = service.status("p").await.unwrap();
    assert!(status.reason.as_ref().unwrap().contains("unknown exit"), "{status:?}");
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_vm_that_ends_after_its_record_was_judged_is_told_and_released() {
    let Some(node) = Node::new() else { return };
    Predecessor::of(&node, Task::Run).kill();
    let vmm = node.record("p").unwrap().vm.unwrap().vmm;
    let service = node.serve(FakeDriver::default());
    assert_eq!(service.report.adopted, [sandbox("p")]);
    kill(vmm.pid);
    // Nothing of the service runs before the first await.
    while lives(&vmm) {
        std::thread::yield_now();
    }
    assert_eq!(service.sandboxes.wait(&sandbox("p")).await.unwrap().status, 137);
    let reason = service.status("p").await.unwrap().reason.unwrap();
    assert!(reason.contains("the VM ended") && reason.contains("being taken over"), "{reason}");
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_pod_that_had_not_started_is_undone() {
    for task in [Task::Boot, Task::Create] {
        let Some(node) = Node::new() else { return };
        Predecessor::of(&node, task).kill();
        assert_eq!(node.record("p").unwrap().phase, Phase::Starting);
        let service = node.serve(FakeDriver::default());
        assert_eq!(service.report.undone, [sandbox("p")]);
        service.until_gone("p").await;
        node.assert_nothing_left();
        service.run("p").await.unwrap();
        service.shutdown("p").await;
        node.assert_nothing_left();
    }
}

#[actix::test]
async fn a_service_that_ends_in_order_takes_along_only_what_had_not_started() {
    let Some(node) = Node::new() else { return };
    let booting = std::thread::scope(|scope| {
        let serve = || {
            actix::System::new().block_on(async {
                let service = node.serve(FakeDriver::default().then(Fault::NeverAnnounces));
                service.create("p").await.unwrap();
                while service.driver.launched().is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                service.driver.launched()
            })
        };
        scope.spawn(serve).join().unwrap()
    });
    assert!(!booting.iter().any(lives), "a guard did not end its process");
    let service = node.serve(FakeDriver::default());
    assert_eq!(service.report.undone, [sandbox("p")]);
    service.until_gone("p").await;
    node.assert_nothing_left();
}

/// Wait answers 137 and Status the reason, and Shutdown leaves nothing.
async fn is_lost(node: &Node, reason: &str) {
    let service = node.serve(FakeDriver::default());
    assert_eq!(service.report.lost, [sandbox("p")]);
    assert!(!service.status("p").await.unwrap().ready, "not even for a moment");
    let exited = service.sandboxes.wait(&sandbox("p")).await.unwrap();
    assert_eq!(exited.status, 137);
    let status = service.status("p").await.unwrap();
    assert!(!status.ready && status.reason.as_ref().unwrap().contains(reason), "{status:?}");
    service.stop("p").await;
    service.shutdown("p").await;
    node.assert_nothing_left();
}

type Victim = fn(&Record) -> u32;

#[actix::test]
async fn a_pod_that_lost_a_process_meanwhile_is_told_and_released() {
    let parts: [(&str, Victim); 4] = [
        ("the VMM ended while the service was down", |record| record.vm.as_ref().unwrap().vmm.pid),
        ("the VM's vsock helper ended", |record| {
            record.vm.as_ref().unwrap().vsock_helper.as_ref().unwrap().pid
        }),
        ("virtiofsd ended", |record| record.virtiofsd.as_ref().unwrap().process.pid),
        ("the shim proxy ended", |record| record.shim.as_ref().unwrap().process.pid),
    ];
    for (reason, victim) in parts {
        let Some(node) = Node::new() else { return };
        Predecessor::of(&node, Task::Run).kill();
        let record = node.record("p").unwrap();
        kill(victim(&record));
        while processes(&record).iter().all(lives) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        is_lost(&node, reason).await;
    }
}

#[actix::test]
async fn a_reboot_is_told_and_its_records_are_removable() {
    let Some(mut node) = Node::new() else { return };
    Predecessor::of(&node, Task::Run).kill();
    let mut record = node.record("p").unwrap();
    // A reboot ends every process, empties the runtime directory and takes mounts and namespaces along.
    for process in processes(&record) {
        kill(process.pid);
    }
    node.sweep();
    node.end_netns();
    std::fs::remove_dir_all(node.dir("p").path()).unwrap();
    std::fs::remove_dir_all(record.vm_dir().path()).unwrap();
    let other = "00000000-0000-4000-8000-000000000000".to_owned();
    record.boot_id.clone_from(&other);
    record.vm.as_mut().unwrap().vmm.boot_id = other;
    node.store().save(&record).unwrap();

    let service = node.serve(FakeDriver::default());
    assert_eq!(service.report.lost, [sandbox("p")]);
    assert_eq!(service.sandboxes.wait(&sandbox("p")).await.unwrap().status, 137);
    let status = service.status("p").await.unwrap();
    assert!(!status.ready && status.reason.as_ref().unwrap().contains("rebooted"), "{status:?}");
    service.shutdown("p").await;
    node.assert_nothing_left_on_host();
}

#[actix::test]
async fn a_stopped_pod_is_answered_for_until_it_is_removed() {
    for containers in [&[] as &[&str], &["c1"]] {
        let Some(node) = Node::with_containers(containers) else { return };
        Predecessor::of(&node, Task::Stop).kill();
        let service = node.serve(FakeDriver::default());
        assert_eq!(service.report.stopped, [sandbox("p")]);
        let status = service.status("p").await.unwrap();
        assert!(!status.ready && status.exited_at.is_some(), "{status:?}");
        assert_eq!(service.sandboxes.wait(&sandbox("p")).await.unwrap().status, 0);
        assert_eq!(node.dir("p").task_sock().exists(), !containers.is_empty());
        service.stop("p").await;
        service.shutdown("p").await;
        node.assert_nothing_left();
    }
}

#[actix::test]
async fn a_broken_record_is_kept_and_its_pod_ended() {
    let Some(mut node) = Node::new() else { return };
    // Its processes are looked for by name in the whole machine, and pods of tests beside this one are called "p".
    let id = format!("broken-{}", std::process::id());
    Predecessor::of_pod(&node, Task::Run, &id).kill();
    let record = node.record(&id).unwrap();
    let path = node.store().path(&sandbox(&id));
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 20]).unwrap();
    // Where it lies is written in the record only.
    let (dir, vm_dir) = (node.dir(&id), record.vm_dir());
    let made_with = node.place.settings.clone();
    change_settings(&mut node);

    let service = node.serve(FakeDriver::default());
    assert_eq!((service.report.quarantined.len(), node.quarantined()), (1, 1));
    assert_eq!(std::fs::read(&service.report.quarantined[0]).unwrap(), whole[..whole.len() - 20]);
    assert!(service.status(&id).await.is_err());
    let begin = std::time::Instant::now();
    while processes(&record).iter().any(lives) || dir.path().exists() || vm_dir.path().exists() {
        assert!(begin.elapsed() < PATIENCE, "the pod of a broken record lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The namespace was written in the record only; the next pod in it finds and replaces what is there.
    service.run(&id).await.unwrap();
    service.shutdown(&id).await;
    node.assert_nothing_left();
    // The sweep at the end of the node has the old settings' cgroups to look at, too.
    node.place.settings = made_with;
}
