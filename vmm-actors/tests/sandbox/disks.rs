//! Block devices of the host that containers want.

use std::time::{Duration, Instant};

use bulkhead_protocol::error::chain;
use serde_json::{Value, json};
use vmm_actors::containers::{ContainerError, ContainerRecord, ContainerRequest};
use vmm_actors::host::block::{BlockDevice, Number};
use vmm_actors::sandbox::SandboxError;
use vmm_actors::testing::{FakeDriver, Fault};
use vmm_actors::vm::{Access, Disk};

use crate::containers::{bundle, container, recorded, running};
use crate::node::{Node, PATIENCE, Service, sandbox};
use crate::predecessor::{Predecessor, Task};
use crate::restarts::guest;

/// Two block devices of this machine; nobody opens them here.
fn two_devices() -> Option<[(Number, BlockDevice); 2]> {
    let entries = std::fs::read_dir("/sys/dev/block").into_iter().flatten().flatten();
    let mut found = entries.filter_map(|entry| {
        let name = entry.file_name();
        let (major, minor) = name.to_str()?.split_once(':')?;
        let number = Number { major: major.parse().ok()?, minor: minor.parse().ok()? };
        let device = BlockDevice::find(number).ok()?;
        (!device.read_only).then_some((number, device))
    });
    let two = [found.next(), found.next()];
    let [Some(one), Some(two)] = two else {
        println!("skipped: needs two block devices, and this machine has not");
        return None;
    };
    Some([one, two])
}

/// A container that wants these devices with these rights.
fn wanting(node: &Node, id: &str, devices: &[(Number, &str)]) -> ContainerRequest {
    let request = bundle(node, id);
    let config = request.bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    let path = |index: usize| format!("/dev/block{index}");
    let nodes = devices.iter().enumerate().map(|(index, (device, _))| {
        json!({"path": path(index), "type": "b", "major": device.major, "minor": device.minor, "fileMode": 0o600})
    });
    spec["linux"]["devices"] = nodes.collect();
    let rules = devices.iter().map(|(device, access)| {
        json!({"allow": true, "type": "b", "major": device.major, "minor": device.minor, "access": access})
    });
    spec["linux"]["resources"] = json!({ "devices": rules.collect::<Vec<_>>() });
    std::fs::write(config, spec.to_string()).unwrap();
    request
}

fn plugged(service: &Service) -> Vec<String> {
    service.driver.disks().into_iter().map(|disk| disk.id).collect()
}

/// Decided by what the pod was made with, and before any disk is recorded or the VMM is asked.
#[actix::test]
async fn a_pod_made_without_block_volumes_takes_none_and_says_what_to_do() {
    let (Some(mut node), Some([(one, _), _])) = (Node::new(), two_devices()) else { return };
    node.place.settings.vm.block_volumes = false;
    let service = running(&node).await;
    let error = service.prepare(&wanting(&node, "a", &[(one, "rw")])).await.unwrap_err();
    let text = chain(&error);
    let SandboxError::Container(error @ ContainerError::Attach { .. }) = error else { panic!("{text}") };
    assert!(error.is_callers(), "{text}");
    assert!(text.contains("set it to true"), "{text}");
    assert_eq!(service.driver.disk_calls(), [] as [String; 0]);
    assert_eq!(node.record("p").unwrap().containers.disks.count(), 0);
    service.prepare(&wanting(&node, "b", &[])).await.unwrap();
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_device_is_plugged_in_once_and_goes_with_its_last_container() {
    let (Some(node), Some([(one, device), (two, _)])) = (Node::new(), two_devices()) else { return };
    let service = running(&node).await;
    let first = service.prepare(&wanting(&node, "c1", &[(one, "rwm"), (two, "r")])).await.unwrap();
    let [writable, read_only] = first.disks.as_slice() else { panic!("{:?}", first.disks) };
    assert_eq!(
        (writable.path.as_str(), writable.serial.as_str(), writable.scsi_target),
        ("/dev/block0", "disk0", Some(0))
    );
    assert_eq!((writable.access.as_str(), writable.file_mode), ("rwm", 0o600));
    assert_eq!(
        (read_only.serial.as_str(), read_only.scsi_target, read_only.access.as_str()),
        ("disk1", Some(1), "r")
    );
    let disks = service.driver.disks();
    assert_eq!((&disks[0].path, disks[0].access), (&device.path, Access::ReadWrite));
    assert_eq!(disks[0].logical_block_size, device.logical_block_size);
    assert_eq!(disks[1].access, Access::ReadOnly);
    assert_eq!(node.record("p").unwrap().containers.disks.count(), 2);

    let (second, third) = (wanting(&node, "c2", &[(one, "mrw")]), wanting(&node, "c3", &[(one, "rw")]));
    let (second, third) = tokio::join!(service.prepare(&second), service.prepare(&third));
    assert_eq!(
        (&second.unwrap().disks[0].serial, &third.unwrap().disks[0].serial),
        (&writable.serial, &writable.serial)
    );
    assert_eq!(service.driver.disk_calls(), ["+disk0", "+disk1"], "once is enough");

    service.release("c1").await.unwrap();
    service.release("c2").await.unwrap();
    assert_eq!(plugged(&service), ["disk0"]);
    service.release("c3").await.unwrap();
    assert_eq!(service.driver.disk_calls(), ["+disk0", "+disk1", "-disk1", "-disk0"]);
    let again = service.prepare(&wanting(&node, "c1", &[(one, "rw")])).await.unwrap();
    assert_eq!(again.disks[0].serial, "disk2", "a disk does not come back");
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn containers_that_want_a_new_device_at_once_wait_for_the_same_plug() {
    let (Some(node), Some([(one, _), _])) = (Node::new(), two_devices()) else { return };
    let service = running(&node).await;
    let (first, second) = (wanting(&node, "c1", &[(one, "rw")]), wanting(&node, "c2", &[(one, "rw")]));
    let (first, second) = tokio::join!(service.prepare(&first), service.prepare(&second));
    first.and(second).unwrap();
    assert_eq!(service.driver.disk_calls(), ["+disk0"]);
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_device_that_fails_takes_the_others_with_it() {
    let (Some(node), Some([(one, device), (two, bad)])) = (Node::new(), two_devices()) else { return };
    let name = bad.path.file_name().unwrap().to_str().unwrap().to_owned();
    let service = node.serve(FakeDriver::default().then(Fault::RefusesDisk(name)));
    service.run("p").await.unwrap();
    let mounts = node.mounts();
    let request = wanting(&node, "c1", &[(one, "rw"), (two, "rw")]);
    let error = service.prepare(&request).await.unwrap_err();
    let text = chain(&error);
    assert!(matches!(error, SandboxError::Container(ContainerError::Attach { .. })), "{error}");
    assert!(text.contains(&bad.path.display().to_string()) && text.contains("/dev/block1"), "{text}");
    assert!(!text.contains(&format!("{} for", device.path.display())), "{text}");
    assert_eq!((plugged(&service), node.mounts()), (Vec::new(), mounts));
    service.driver.heal_disks();
    let prepared = service.prepare(&request).await.unwrap();
    assert_eq!(prepared.disks.len(), 2);
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_mount_that_fails_takes_the_disks_with_it() {
    let (Some(node), Some([(one, _), _])) = (Node::new(), two_devices()) else { return };
    let service = running(&node).await;
    let request = wanting(&node, "c1", &[(one, "rw")]);
    std::fs::remove_dir_all(node.root.path().join("volumes/c1")).unwrap();
    service.prepare(&request).await.unwrap_err();
    assert_eq!(service.driver.disk_calls(), ["+disk0", "-disk0"]);
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_device_that_is_not_there_is_named() {
    let Some(node) = Node::new() else { return };
    let service = running(&node).await;
    let nobodys = Number { major: 4095, minor: 77 };
    let error = service.prepare(&wanting(&node, "c1", &[(nobodys, "rw")])).await.unwrap_err();
    let text = chain(&error);
    assert!(matches!(error, SandboxError::Container(ContainerError::HostDisk { .. })), "{error}");
    assert!(text.contains("4095:77") && text.contains("/dev/block0"), "{text}");
    assert!(recorded(&node).is_empty() && service.driver.disk_calls().is_empty());
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_disk_that_stays_is_said_and_tried_again() {
    let (Some(node), Some([(one, _), _])) = (Node::new(), two_devices()) else { return };
    let service = node.serve(FakeDriver::default().then(Fault::KeepsDisks));
    service.run("p").await.unwrap();
    service.prepare(&wanting(&node, "c1", &[(one, "rw")])).await.unwrap();
    let error = service.release("c1").await.unwrap_err();
    assert!(matches!(error, SandboxError::Container(ContainerError::Detach { .. })), "{error}");
    assert_eq!(node.record("p").unwrap().containers.disks.count(), 1);
    service.driver.heal_disks();
    service.release("c1").await.unwrap();
    assert!(plugged(&service).is_empty());
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_guest_of_an_older_image_is_not_relied_on() {
    let (Some(node), Some([(one, _), _])) = (Node::new(), two_devices()) else { return };
    let service = node.serve(FakeDriver::default().then(Fault::OldAgent));
    service.run("p").await.unwrap();
    let error = chain(&service.prepare(&wanting(&node, "c1", &[(one, "rw")])).await.unwrap_err());
    assert!(error.contains("guest image"), "{error}");
    service.prepare(&bundle(&node, "c2")).await.unwrap();
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_successor_knows_what_is_plugged_in_and_unplugs_what_nobody_has() {
    let (Some(node), Some([(one, device), (two, _)])) = (Node::new(), two_devices()) else { return };
    Predecessor::of(&node, Task::Run).kill();
    let mut record = node.record("p").unwrap();
    let _guest = guest(&record);
    // As it died between unplugging the second and recording it, and while it plugged in the first for c1.
    let disk = |number: u32, device: Number, users: &[&str]| {
        let Number { major, minor } = device;
        json!({"number": number, "major": major, "minor": minor, "access": "read-write", "users": users})
    };
    record.containers.disks = serde_json::from_value(json!({
        "next": 9, "disks": [disk(3, one, &["c1"]), disk(8, two, &[])],
    }))
    .unwrap();
    record.containers.by_id.insert(container("c1"), ContainerRecord::default());
    node.store().save(&record).unwrap();
    let known = |id: &str, slot| Disk {
        id: id.to_owned(),
        slot,
        path: device.path.clone(),
        access: Access::ReadWrite,
        logical_block_size: 512,
        physical_block_size: 512,
    };
    let service = node.serve(FakeDriver::default().with_disks(vec![known("disk3", 3), known("disk8", 8)]));
    assert_eq!(service.report.adopted, [sandbox("p")]);
    let begin = Instant::now();
    while plugged(&service) != ["disk3"] || node.record("p").unwrap().containers.disks.count() != 1 {
        assert!(begin.elapsed() < PATIENCE, "{:?}", plugged(&service));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let prepared = service.prepare(&wanting(&node, "c2", &[(one, "rw"), (two, "rw")])).await.unwrap();
    let serials: Vec<&str> = prepared.disks.iter().map(|disk| disk.serial.as_str()).collect();
    assert_eq!(serials, ["disk3", "disk9"]);
    assert_eq!(
        service.driver.disk_calls(),
        ["-disk8", "+disk3", "+disk9"],
        "whether it is there is not certain"
    );
    service.release("c1").await.unwrap();
    assert_eq!(plugged(&service), ["disk3", "disk9"]);
    service.release("c2").await.unwrap();
    assert!(plugged(&service).is_empty());
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_stopped_pod_has_no_disks() {
    let (Some(node), Some([(one, _), _])) = (Node::new(), two_devices()) else { return };
    let service = running(&node).await;
    service.prepare(&wanting(&node, "c1", &[(one, "rw")])).await.unwrap();
    service.stop("p").await;
    service.release("c1").await.unwrap();
    let begin = Instant::now();
    while node.record("p").unwrap().containers.disks.count() != 0 {
        assert!(begin.elapsed() < PATIENCE, "a stopped pod has disks");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(service.driver.disk_calls(), ["+disk0"], "its VM took them along");
    service.shutdown("p").await;
    node.assert_nothing_left();
}
