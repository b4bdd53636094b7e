//! Block devices of the host, which come as SCSI disks while the guest runs and go again.
//!
//! The host plugs a disk in before it asks for the container, and unplugs it after the container's delete. Whoever
//! needs a disk comes to it, and the last one to leave has the kernel write what it still holds and forget the disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_protocol::agent::Disk;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, Mount,
    Spec,
};
use rustix::fs::{CWD, FileType, Gid, Mode, Uid};
use tokio::time::{Instant, sleep, timeout};

use super::error::ContainerError;
use super::scsi::{Bus, Number};
use crate::kernel::blocking::blocking;

/// The kernel asks a disk a dozen questions before it is usable; milliseconds, tenths of a second under emulation.
const APPEARS_WITHIN: Duration = Duration::from_secs(20);
/// Pause between two looks for a disk: the kernel brings it up beside whoever asked for it.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How long a disk that is to write what the guest still holds may write nothing. The host pulls it out then. As long as
/// it goes on, it is waited for: it may be slow, and the guest's memory large.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// Where nodes lie that a container has outside of its `/dev`. The root allows device nodes, `/run` does not.
const NODES: &str = "/disks";
/// Permissions of a node where the host names none, as libcontainer has it.
const MODE: u32 = 0o666;

/// The disks of the guest and how many containers have each.
#[derive(Debug)]
pub(super) struct Disks {
    bus: Bus,
    stalled_after: Duration,
    /// By target. Whoever brings a disk up or down holds its count.
    users: Mutex<BTreeMap<u32, Arc<tokio::sync::Mutex<u32>>>>,
}

/// A disk that a container has.
#[derive(Debug, Clone)]
pub(super) struct Visited {
    target: u32,
    path: PathBuf,
    number: Number,
    /// Its node outside of the container's `/dev`, which the agent has made.
    node: Option<PathBuf>,
}

impl Default for Disks {
    fn default() -> Self {
        Self { bus: Bus::default(), stalled_after: STALLED_AFTER, users: Mutex::default() }
    }
}

impl Disks {
    /// Brings the wanted disks up and adds them to the container's spec, or none.
    pub(super) async fn come(
        &self,
        id: &str,
        wanted: &[Disk],
        spec: &mut Spec,
    ) -> Result<Vec<Visited>, ContainerError> {
        let mut visited = Vec::new();
        for (index, disk) in wanted.iter().enumerate() {
            let node = Path::new(NODES).join(format!("{id}-{index}"));
            let outcome = match self.come_to(disk).await {
                Ok(mut found) => {
                    let added = add(spec, disk, &mut found, node);
                    visited.push(found);
                    added
                }
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                self.leave(&visited).await;
                return Err(error);
            }
        }
        Ok(visited)
    }

    /// Lets go of disks, flushed; what goes wrong is logged and does not keep the next from going.
    pub(super) async fn leave(&self, visited: &[Visited]) {
        for disk in visited {
            if let Some(node) = &disk.node
                && let Err(error) = std::fs::remove_file(node)
            {
                tracing::warn!(node = %node.display(), %error, "a disk's node is left");
            }
            let turn = self.turn(disk.target);
            let mut users = turn.lock().await;
            *users = users.saturating_sub(1);
            if *users == 0 {
                self.remove(disk.target).await;
            }
        }
    }

    async fn remove(&self, target: u32) {
        let bus = self.bus.clone();
        let mut removal = tokio::task::spawn_blocking(move || bus.remove(target));
        let mut written = self.bus.written(target);
        loop {
            match timeout(self.stalled_after, &mut removal).await {
                Ok(removed) => {
                    return match removed.map_err(io::Error::from).flatten() {
                        Ok(()) => tracing::debug!(target, "disk flushed and removed"),
                        Err(error) => tracing::warn!(target, %error, "a disk is not removed in order"),
                    };
                }
                Err(_elapsed) => {
                    let before = std::mem::replace(&mut written, self.bus.written(target));
                    if before == written {
                        return tracing::warn!(target, stalled = ?self.stalled_after, "a disk does not flush");
                    }
                }
            }
        }
    }

    fn turn(&self, target: u32) -> Arc<tokio::sync::Mutex<u32>> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(users.entry(target).or_default())
    }

    async fn come_to(&self, disk: &Disk) -> Result<Visited, ContainerError> {
        let path = PathBuf::from(&disk.path);
        let failed = |act| {
            let path = path.clone();
            move |source| ContainerError::Disk { path, act, source }
        };
        if !path.is_absolute() {
            return Err(failed("place it")(io::ErrorKind::InvalidInput.into()));
        }
        let turn = self.turn(disk.target);
        let mut users = turn.lock().await;
        let (target, until) = (disk.target, Instant::now() + APPEARS_WITHIN);
        loop {
            let (bus, serial) = (self.bus.clone(), disk.serial.clone());
            match blocking(move || bus.attach(target, &serial)).await {
                Ok(()) => break,
                // On a machine with PCI the controller comes with the first disk, and the kernel finds it by itself.
                Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < until => {
                    sleep(LOOK_AGAIN).await;
                }
                Err(source) => return Err(failed("ask the controller for it")(source)),
            }
        }
        let number = loop {
            let (bus, serial) = (self.bus.clone(), disk.serial.clone());
            match blocking(move || bus.usable(target, &serial)).await {
                Ok(number) => break number,
                Err(_) if Instant::now() < until => sleep(LOOK_AGAIN).await,
                Err(source) => return Err(failed("find it")(source)),
            }
        };
        *users = users.saturating_add(1);
        Ok(Visited { target, path, number, node: None })
    }
}

/// Gives the container a node of the disk, and the right to use it. libcontainer makes nodes below `/dev` only: one
/// elsewhere is made here and bound to its place.
fn add(spec: &mut Spec, disk: &Disk, found: &mut Visited, node: PathBuf) -> Result<(), ContainerError> {
    let Some(mut linux) = spec.linux().clone() else { return Ok(()) };
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.extend(rule(found.number, &disk.access));
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    if found.path.starts_with("/dev") {
        let mut devices = linux.devices().clone().unwrap_or_default();
        devices.extend(device(disk, found));
        linux.set_devices(Some(devices));
    } else {
        make_node(&node, disk, found.number).map_err(|source| ContainerError::Disk {
            path: found.path.clone(),
            act: "make its node",
            source,
        })?;
        let mut mount = Mount::default();
        mount
            .set_destination(found.path.clone())
            .set_typ(Some("bind".to_owned()))
            .set_source(Some(node.clone()))
            .set_options(Some(vec!["bind".to_owned(), "rprivate".to_owned()]));
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        mounts.push(mount);
        spec.set_mounts(Some(mounts));
        found.node = Some(node);
    }
    spec.set_linux(Some(linux));
    Ok(())
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

fn device(disk: &Disk, found: &Visited) -> Option<LinuxDevice> {
    let device = LinuxDeviceBuilder::default()
        .path(found.path.clone())
        .typ(LinuxDeviceType::B)
        .major(i64::from(found.number.major))
        .minor(i64::from(found.number.minor))
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
    // Not what the umask left of it.
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

    fn visited(path: &str) -> Visited {
        Visited { target: 0, path: path.into(), number: Number { major: 8, minor: 16 }, node: None }
    }

    #[test]
    fn a_container_gets_a_node_and_the_right_to_it() {
        let mut spec: Spec = serde_json::from_str(SPEC).unwrap();
        let path = "/dev/xvda";
        add(&mut spec, &disk(path), &mut visited(path), PathBuf::from("/nonexistent/node")).unwrap();
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
    async fn a_disk_is_waited_for_as_long_as_it_writes() {
        let (dir, bus) = super::super::scsi::tests::kernel();
        // Opening it waits for whoever writes to it.
        let fifo = dir.path().join("dev/sdb");
        std::fs::remove_file(&fifo).unwrap();
        rustix::fs::mkfifoat(CWD, &fifo, Mode::from_raw_mode(0o600)).unwrap();
        let figures = dir.path().join("sys/bus/scsi/devices/1:0:7:0/block/sdb/stat");
        let write =
            |sectors: u32| std::fs::write(&figures, format!("1 0 8 0 5 0 {sectors} 0 0 0 0\n")).unwrap();
        write(0);
        let disks = Disks { bus, stalled_after: Duration::from_millis(300), users: Mutex::default() };
        let removed = disks.remove(7);
        let busy = async {
            for sectors in 1..10 {
                write(sectors);
                sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::pin!(removed);
        tokio::select! {
            biased;
            () = &mut removed => panic!("given up while it writes"),
            () = busy => {}
        }
        removed.await;
        drop(std::fs::OpenOptions::new().read(true).write(true).open(fifo).unwrap());
    }

    #[tokio::test]
    async fn a_controller_that_comes_with_the_disk_is_waited_for() {
        let (dir, bus) = super::super::scsi::tests::kernel();
        let hosts = dir.path().join("sys/class/scsi_host");
        std::fs::rename(hosts.join("host1"), dir.path().join("host1")).unwrap();
        let disks = Disks { bus, ..Disks::default() };
        let wanted = Disk { target: 7, serial: "disk9".into(), ..disk("/dev/xvda") };
        let come = disks.come_to(&wanted);
        tokio::pin!(come);
        let early = timeout(Duration::from_millis(20), &mut come).await;
        assert!(early.is_err(), "{early:?}");
        std::fs::rename(dir.path().join("host1"), hosts.join("host1")).unwrap();
        assert_eq!(come.await.unwrap().number, Number { major: 8, minor: 16 });
    }

    #[tokio::test]
    async fn a_path_that_is_none_is_refused() {
        let mut spec: Spec = serde_json::from_str(SPEC).unwrap();
        let error = Disks::default().come("c", &[disk("xvda")], &mut spec).await.unwrap_err();
        assert!(error.to_string().contains("xvda"), "{error}");
    }
}
