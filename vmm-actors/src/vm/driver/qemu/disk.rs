//! Disks that come and go while the VM runs: SCSI disks of one controller. SCSI has a hotplug of its own, so that it
//! works on a machine without PCI as well: there the controller is part of the VM from its start. With PCI it comes with
//! the first disk, and stays.

use std::path::Path;
use std::time::Duration;

use bulkhead_config::Machine;
use qapi::qmp;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::args::{CONTROLLER, DISKS_SLOT};
use super::error::QemuError;
use super::qmp::Session;
use crate::vm::{Access, Disk};

/// How long QEMU may take for all of it. It answers nothing while it waits for a device of the host.
const WITHIN: Duration = Duration::from_secs(20);

/// Plugs a disk in, or finds it plugged in. On error it is not.
pub(super) async fn add(socket: &Path, disk: &Disk, machine: Machine) -> Result<(), QemuError> {
    in_time("device_add", async {
        let mut session = Session::open(socket).await?;
        let plugged = Plugged::look(&mut session, &disk.id).await?;
        match machine {
            _ if plugged.controller => {}
            Machine::Q35 => session.execute("device_add", controller_add()).await.map(drop)?,
            Machine::Microvm => {
                let reason =
                    "the VM was started by a release that knew no disks; make the pod anew".to_owned();
                return Err(QemuError::Api { command: "device_add", reason });
            }
        }
        if !plugged.node {
            session.execute("blockdev-add", blockdev_add(disk)?).await?;
        }
        if plugged.device {
            return Ok(());
        }
        let added = session.execute("device_add", device_add(disk)).await;
        if added.is_err()
            && let Err(error) = session.execute("blockdev-del", blockdev_del(&disk.id)).await
        {
            tracing::warn!(disk = disk.id, %error, "the VMM holds on to a disk that it could not plug in");
        }
        added.map(drop)
    })
    .await
}

/// Unplugs a disk, whatever the guest thinks of it, and closes the device behind it. A no-op if no device has this id.
pub(super) async fn remove(socket: &Path, id: &str) -> Result<(), QemuError> {
    in_time("device_del", async {
        let mut session = Session::open(socket).await?;
        let plugged = Plugged::look(&mut session, id).await?;
        if plugged.device {
            session.execute("device_del", qmp::device_del { id: id.to_owned() }).await?;
            session.deleted(id).await?;
        }
        if plugged.node {
            session.execute("blockdev-del", blockdev_del(id)).await?;
        }
        Ok(())
    })
    .await
}

async fn in_time<T>(
    command: &'static str,
    work: impl Future<Output = Result<T, QemuError>>,
) -> Result<T, QemuError> {
    let late = |_| QemuError::Api { command, reason: format!("it did not answer within {WITHIN:?}") };
    timeout(WITHIN, work).await.map_err(late)?
}

/// What QEMU has of a disk.
#[derive(Debug)]
struct Plugged {
    controller: bool,
    node: bool,
    device: bool,
}

impl Plugged {
    async fn look(session: &mut Session, id: &str) -> Result<Self, QemuError> {
        let nodes = qmp::query_named_block_nodes { flat: Some(true) };
        let nodes = session.execute("query-named-block-nodes", nodes).await?;
        let devices = qmp::qom_list { path: "/machine/peripheral".to_owned() };
        let devices = session.execute("qom-list", devices).await?;
        let has = |id: &str| devices.iter().any(|device| device.name == id);
        Ok(Self {
            controller: has(CONTROLLER),
            device: has(id),
            node: nodes.iter().any(|node| node.node_name.as_deref() == Some(id)),
        })
    }
}

/// The host's device, past the host's cache: what the guest has flushed is on the device.
fn blockdev_add(disk: &Disk) -> Result<qmp::blockdev_add, QemuError> {
    let options = json!({
        "driver": "host_device",
        "node-name": disk.id,
        "filename": disk.path,
        "read-only": disk.access == Access::ReadOnly,
        "cache": { "direct": true, "no-flush": false },
        "discard": "unmap",
        "detect-zeroes": "off",
    });
    let misspelt = |error: serde_json::Error| QemuError::Api {
        command: "blockdev-add",
        reason: format!("it takes no such options: {error}"),
    };
    Ok(qmp::blockdev_add(serde_json::from_value(options).map_err(misspelt)?))
}

fn controller_add() -> qmp::device_add {
    qmp::device_add {
        driver: "virtio-scsi-pci".to_owned(),
        id: Some(CONTROLLER.to_owned()),
        bus: Some(DISKS_SLOT.to_owned()),
        arguments: qapi::Dictionary::new(),
    }
}

fn device_add(disk: &Disk) -> qmp::device_add {
    let properties: [(&str, Value); 9] = [
        ("drive", disk.id.as_str().into()),
        ("serial", disk.id.as_str().into()),
        ("channel", 0.into()),
        ("scsi-id", disk.slot.into()),
        ("lun", 0.into()),
        ("logical_block_size", disk.logical_block_size.into()),
        ("physical_block_size", disk.physical_block_size.into()),
        // Whether pods may share a device is for Kubernetes to say, as it is without VMs.
        ("share-rw", true.into()),
        ("write-cache", "on".into()),
    ];
    qmp::device_add {
        driver: "scsi-hd".to_owned(),
        id: Some(disk.id.clone()),
        bus: Some(format!("{CONTROLLER}.0")),
        arguments: properties.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
    }
}

fn blockdev_del(id: &str) -> qmp::blockdev_del {
    qmp::blockdev_del { node_name: id.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(access: Access) -> Disk {
        Disk {
            id: "disk7".to_owned(),
            slot: 7,
            path: "/dev/loop3".into(),
            access,
            logical_block_size: 4096,
            physical_block_size: 4096,
        }
    }

    #[test]
    fn the_hosts_device_is_opened_past_the_hosts_cache() {
        for (access, read_only) in [(Access::ReadOnly, true), (Access::ReadWrite, false)] {
            let command = serde_json::to_value(blockdev_add(&disk(access)).unwrap()).unwrap();
            assert_eq!(command["driver"], "host_device");
            assert_eq!(command["node-name"], "disk7");
            assert_eq!(command["filename"], "/dev/loop3");
            assert_eq!(command["read-only"], read_only);
            assert_eq!(command["cache"], json!({"direct": true, "no-flush": false}));
            assert_eq!(command["discard"], "unmap");
        }
    }

    #[test]
    fn the_controller_has_a_slot_of_its_own() {
        let command = serde_json::to_value(controller_add()).unwrap();
        let wanted = json!({"driver": "virtio-scsi-pci", "id": "disks", "bus": "slot0"});
        assert_eq!(command, wanted);
    }

    #[test]
    fn a_disk_has_a_target_and_a_serial_number_of_its_own() {
        let command = serde_json::to_value(device_add(&disk(Access::ReadWrite))).unwrap();
        for (key, value) in [
            ("driver", json!("scsi-hd")),
            ("id", json!("disk7")),
            ("bus", json!("disks.0")),
            ("scsi-id", json!(7)),
            ("lun", json!(0)),
            ("serial", json!("disk7")),
            ("drive", json!("disk7")),
            ("logical_block_size", json!(4096)),
            ("share-rw", json!(true)),
        ] {
            assert_eq!(command[key], value, "{key} in {command}");
        }
    }
}
