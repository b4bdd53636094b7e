//! Block devices of the host for a container: their nodes and device rules.

use std::io;
use std::path::{Path, PathBuf};

use bulkhead_protocol::agent::Disk;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, Mount,
    Spec,
};
use rustix::fs::{CWD, FileType, Gid, Mode, Uid};

use super::error::ContainerError;
use crate::hotplug::{Disks, Number};

/// Directory of nodes that a container has outside of its `/dev`. The root file system allows device nodes, `/run` does
/// not.
const NODES: &str = "/disks";
/// Permissions of a node where the host names none, as libcontainer has it.
const MODE: u32 = 0o666;

/// A disk that a container has.
#[derive(Debug, Clone)]
pub(super) struct AttachedDisk {
    serial: String,
    /// Its node outside of the container's `/dev`, which the agent has made.
    node: Option<PathBuf>,
}

/// Attaches disks to a container and adds them to its spec. On failure none is attached.
pub(super) async fn attach(
    disks: &Disks,
    id: &str,
    wanted: &[Disk],
    spec: &mut Spec,
) -> Result<Vec<AttachedDisk>, ContainerError> {
    let mut attached = Vec::new();
    for (index, disk) in wanted.iter().enumerate() {
        let node = Path::new(NODES).join(format!("{id}-{index}"));
        if let Err(error) = attach_one(disks, disk, spec, node, &mut attached).await {
            detach(disks, &attached).await;
            return Err(error);
        }
    }
    Ok(attached)
}

async fn attach_one(
    disks: &Disks,
    disk: &Disk,
    spec: &mut Spec,
    node: PathBuf,
    attached: &mut Vec<AttachedDisk>,
) -> Result<(), ContainerError> {
    let path = PathBuf::from(&disk.path);
    if !path.is_absolute() {
        return Err(ContainerError::DiskPath { path });
    }
    let number = disks.attach(&disk.serial, disk.scsi_target).await;
    let number = number.map_err(|source| ContainerError::Disk { path, source })?;
    let serial = disk.serial.clone();
    match add(spec, disk, number, node) {
        Ok(node) => {
            attached.push(AttachedDisk { serial, node });
            Ok(())
        }
        Err(error) => {
            attached.push(AttachedDisk { serial, node: None });
            Err(error)
        }
    }
}

/// Detaches disks. Failures are logged, and the next disk is detached all the same.
pub(super) async fn detach(disks: &Disks, attached: &[AttachedDisk]) {
    for disk in attached {
        if let Some(node) = &disk.node
            && let Err(error) = std::fs::remove_file(node)
        {
            tracing::warn!(node = %node.display(), %error, "a disk's node was not removed");
        }
        disks.detach(&disk.serial).await;
    }
}

/// Gives the container a node of the disk, and a device rule for it. libcontainer makes nodes below `/dev` only: one
/// elsewhere is made at `node`, bound to its place, and returned.
fn add(
    spec: &mut Spec,
    disk: &Disk,
    number: Number,
    node: PathBuf,
) -> Result<Option<PathBuf>, ContainerError> {
    let path = PathBuf::from(&disk.path);
    let Some(mut linux) = spec.linux().clone() else { return Ok(None) };
    let mut made = None;
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.extend(rule(number, &disk.access));
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    if path.starts_with("/dev") {
        let mut devices = linux.devices().clone().unwrap_or_default();
        devices.extend(device(disk, number));
        linux.set_devices(Some(devices));
    } else {
        make_node(&node, disk, number)
            .map_err(|source| ContainerError::DiskNode { path: path.clone(), source })?;
        let mut mount = Mount::default();
        mount
            .set_destination(path.clone())
            .set_typ(Some("bind".to_owned()))
            .set_source(Some(node.clone()))
            .set_options(Some(vec!["bind".to_owned(), "rprivate".to_owned()]));
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        mounts.push(mount);
        spec.set_mounts(Some(mounts));
        made = Some(node);
    }
    spec.set_linux(Some(linux));
    Ok(made)
}

fn rule(number: Number, access: &str) -> Option<LinuxDeviceCgroup> {
    let rule = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(LinuxDeviceType::B)
        .major(i64::from(number.major))
        .minor(i64::from(number.minor))
        .access(access);
    rule.build().ok()
}

fn device(disk: &Disk, number: Number) -> Option<LinuxDevice> {
    let device = LinuxDeviceBuilder::default()
        .path(&disk.path)
        .typ(LinuxDeviceType::B)
        .major(i64::from(number.major))
        .minor(i64::from(number.minor))
        .file_mode(mode(disk))
        .uid(disk.uid)
        .gid(disk.gid);
    device.build().ok()
}

fn mode(disk: &Disk) -> u32 {
    if disk.file_mode == 0 { MODE } else { disk.file_mode & 0o7777 }
}

fn make_node(node: &Path, disk: &Disk, number: Number) -> io::Result<()> {
    std::fs::create_dir_all(NODES)?;
    let (mode, device) = (Mode::from_raw_mode(mode(disk)), rustix::fs::makedev(number.major, number.minor));
    rustix::fs::mknodat(CWD, node, FileType::BlockDevice, mode, device)?;
    // The umask has taken bits away.
    rustix::fs::chmod(node, mode)?;
    rustix::fs::chown(node, Some(Uid::from_raw(disk.uid)), Some(Gid::from_raw(disk.gid)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"{"ociVersion": "1.2.0", "linux": {
        "devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}],
        "resources": {"devices": [{"allow": false, "access": "rwm"}]}}}"#;

    fn disk(path: &str) -> Disk {
        Disk { path: path.into(), access: "r".into(), file_mode: 0o640, uid: 5, gid: 6, ..Default::default() }
    }

    #[test]
    fn a_container_gets_a_node_of_its_disk_and_a_device_rule() {
        let mut spec: Spec = serde_json::from_str(SPEC).unwrap();
        let path = "/dev/xvda";
        let number = Number { major: 8, minor: 16 };
        add(&mut spec, &disk(path), number, PathBuf::from("/nonexistent/node")).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        let device = &linux.devices().as_ref().unwrap()[1];
        assert_eq!((device.path().as_path(), device.typ()), (Path::new(path), LinuxDeviceType::B));
        assert_eq!((device.major(), device.minor(), device.file_mode()), (8, 16, Some(0o640)));
        assert_eq!((device.uid(), device.gid()), (Some(5), Some(6)));
        let rule = &linux.resources().as_ref().unwrap().devices().as_ref().unwrap()[1];
        assert_eq!((rule.major(), rule.minor(), rule.access().as_deref()), (Some(8), Some(16), Some("r")));
        assert!(rule.allow() && rule.typ() == Some(LinuxDeviceType::B));
    }

    #[tokio::test]
    async fn a_relative_path_is_refused() {
        let mut spec: Spec = serde_json::from_str(SPEC).unwrap();
        let error = attach(&Disks::default(), "c", &[disk("xvda")], &mut spec).await.unwrap_err();
        assert!(error.to_string().contains("xvda"), "{error}");
    }
}
