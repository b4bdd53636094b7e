//! Disks that the host attaches to the VM while it runs. A disk is known by its serial number.
//!
//! The host attaches a disk before it creates the container, and detaches it after the container's delete. Containers
//! can share a disk: it is flushed and removed in the guest when the last one that has it is deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::block::{Devices, Number};
use super::drivers::{self, SCSI_DISK, VIRTIO_BLOCK, VIRTIO_SCSI};
use super::scsi::Scan;
use crate::kernel::blocking::blocking;
use crate::kernel::modules::ModuleError;

/// How long a disk may take to become usable: milliseconds as a rule, tenths of a second under emulation.
const APPEARS_WITHIN: Duration = Duration::from_secs(20);
/// Pause between two looks for a disk.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How long a disk that is being flushed may write nothing before the flush is given up. As long as it writes, the
/// flush goes on: the disk may be slow, and the guest's memory large.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// A disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("load the driver of a disk")]
    Driver(#[source] ModuleError),
    #[error("the disk with serial number {serial:?} did not appear within {limit:?}")]
    Missing { serial: String, limit: Duration, source: io::Error },
}

/// How many containers have a disk. The lock is held while the disk is attached or detached.
type Users = Arc<tokio::sync::Mutex<u32>>;

/// The disks of the guest.
#[derive(Debug)]
pub(crate) struct Disks {
    devices: Devices,
    appears_within: Duration,
    stalled_after: Duration,
    /// By serial number.
    users: Mutex<BTreeMap<String, Users>>,
}

impl Default for Disks {
    fn default() -> Self {
        Self {
            devices: Devices::default(),
            appears_within: APPEARS_WITHIN,
            stalled_after: STALLED_AFTER,
            users: Mutex::default(),
        }
    }
}

impl Disks {
    /// Makes a disk usable for one more container. `target` is where the disk is if it is on a SCSI bus; without it,
    /// all targets are scanned.
    ///
    /// # Errors
    /// [`DiskError`]. The disk is not attached then.
    pub(crate) async fn attach(&self, serial: &str, target: Option<u32>) -> Result<Number, DiskError> {
        let users = self.users(serial);
        let mut count = users.lock().await;
        let found = self.find(serial, target).await;
        if found.is_ok() {
            *count = count.saturating_add(1);
        }
        drop(count);
        self.forget_unused(serial, &users).await;
        found
    }

    /// Detaches a disk from one container. When it was the last one, the disk is flushed and removed. Failures are
    /// logged.
    pub(crate) async fn detach(&self, serial: &str) {
        let users = self.users(serial);
        let mut count = users.lock().await;
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.remove(serial).await;
        }
        drop(count);
        self.forget_unused(serial, &users).await;
    }

    async fn find(&self, serial: &str, target: Option<u32>) -> Result<Number, DiskError> {
        let deadline = Instant::now() + self.appears_within;
        let in_use = self.lock().keys().filter(|used| *used != serial).cloned().collect();
        let mut search = Search {
            devices: self.devices.clone(),
            asked: BTreeSet::new(),
            scan: Scan { target, serial: serial.to_owned(), in_use, scanned: BTreeSet::new() },
        };
        loop {
            let found;
            (search, found) = blocking(move || {
                let found = search.step();
                (search, found)
            })
            .await;
            match found.map_err(DiskError::Driver)? {
                Ok(number) => return Ok(number),
                Err(_) if Instant::now() < deadline => sleep(LOOK_AGAIN).await,
                Err(source) => {
                    let (serial, limit) = (serial.to_owned(), self.appears_within);
                    return Err(DiskError::Missing { serial, limit, source });
                }
            }
        }
    }

    /// Flushes and removes a disk. Waits as long as the disk writes something.
    async fn remove(&self, serial: &str) {
        let (devices, of) = (self.devices.clone(), serial.to_owned());
        let mut removal = tokio::task::spawn_blocking(move || devices.remove(&of));
        let mut written = self.devices.written(serial);
        loop {
            match timeout(self.stalled_after, &mut removal).await {
                Ok(removed) => {
                    return match removed.map_err(io::Error::from).flatten() {
                        Ok(()) => tracing::debug!(serial, "disk flushed and removed"),
                        Err(error) => tracing::warn!(serial, %error, "a disk was not flushed or not removed"),
                    };
                }
                Err(_elapsed) => {
                    let before = std::mem::replace(&mut written, self.devices.written(serial));
                    if before == written {
                        return tracing::warn!(serial, stalled = ?self.stalled_after, "the flush of a disk has stalled, giving up");
                    }
                }
            }
        }
    }

    fn users(&self, serial: &str) -> Users {
        Arc::clone(self.lock().entry(serial.to_owned()).or_default())
    }

    /// Forgets the count of a disk that no container has or waits for.
    async fn forget_unused(&self, serial: &str, users: &Users) {
        let unused = *users.lock().await == 0;
        let mut all = self.lock();
        // The map's own and ours.
        if unused && Arc::strong_count(users) == 2 {
            all.remove(serial);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Users>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The search for one disk, in steps that may block.
#[derive(Debug)]
struct Search {
    devices: Devices,
    /// Modaliases whose modules were loaded, or are not in the image.
    asked: BTreeSet<String>,
    scan: Scan,
}

impl Search {
    /// Looks for the disk. If it is not there, does what makes it appear: loads the driver of its controller, scans its
    /// bus, and loads its own driver.
    fn step(&mut self) -> Result<io::Result<Number>, ModuleError> {
        let found = self.devices.usable(&self.scan.serial);
        if found.is_ok() {
            return Ok(found);
        }
        let sys = &self.devices.sys;
        drivers::load(sys, VIRTIO_BLOCK, &mut self.asked)?;
        drivers::load(sys, VIRTIO_SCSI, &mut self.asked)?;
        self.scan.run(sys);
        drivers::load(sys, SCSI_DISK, &mut self.asked)?;
        Ok(self.devices.usable(&self.scan.serial))
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode};

    use super::super::block::tests::{content, kernel};
    use super::*;

    #[tokio::test]
    async fn a_flush_is_waited_for_as_long_as_the_disk_writes() {
        let (dir, devices) = kernel();
        // Opening it waits for whoever writes to it.
        let fifo = dir.path().join("dev/sdb");
        std::fs::remove_file(&fifo).unwrap();
        rustix::fs::mkfifoat(CWD, &fifo, Mode::from_raw_mode(0o600)).unwrap();
        let statistics = dir.path().join("sys/block/sdb/stat");
        let write =
            |sectors: u32| std::fs::write(&statistics, format!("1 0 8 0 5 0 {sectors} 0 0 0 0\n")).unwrap();
        write(0);
        let disks = Disks { devices, stalled_after: Duration::from_millis(300), ..Disks::default() };
        let removed = disks.remove("disk9");
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
    async fn a_controller_that_appears_with_its_disk_is_waited_for_and_scanned() {
        let (dir, devices) = kernel();
        let (host, disk) = (dir.path().join("sys/class/scsi_host/host1"), dir.path().join("sys/block/sdb"));
        std::fs::rename(&host, dir.path().join("host1")).unwrap();
        std::fs::rename(&disk, dir.path().join("sys/sdb")).unwrap();
        let disks = Disks { devices: devices.clone(), ..Disks::default() };
        let mut attach = tokio::spawn(async move { disks.attach("disk9", Some(7)).await });
        let early = timeout(Duration::from_millis(20), &mut attach).await;
        assert!(early.is_err(), "{early:?}");
        std::fs::rename(dir.path().join("host1"), host).unwrap();
        while content(&devices, "class/scsi_host/host1/scan") != "0 7 0" {
            assert!(!attach.is_finished(), "{:?}", attach.await);
            sleep(Duration::from_millis(1)).await;
        }
        assert!(!attach.is_finished(), "the bus was scanned, and there is no disk yet");
        std::fs::rename(dir.path().join("sys/sdb"), disk).unwrap();
        assert_eq!(attach.await.unwrap().unwrap(), Number { major: 8, minor: 16 });
    }

    #[tokio::test]
    async fn a_disk_is_removed_with_its_last_user_and_then_forgotten() {
        let (_dir, devices) = kernel();
        let disks = Disks { devices: devices.clone(), ..Disks::default() };
        let delete = devices.sys.join("bus/scsi/devices/1:0:7:0/delete");
        for _ in 0..2 {
            disks.attach("disk9", Some(7)).await.unwrap();
        }
        disks.detach("disk9").await;
        assert!(!delete.exists() && disks.lock().contains_key("disk9"));
        disks.detach("disk9").await;
        assert!(delete.exists() && disks.lock().is_empty());
    }

    #[tokio::test]
    async fn a_disk_that_never_appears_is_named_with_those_there_are() {
        let (_dir, devices) = kernel();
        let disks = Disks { devices, appears_within: Duration::from_millis(20), ..Disks::default() };
        let error = disks.attach("disk8", Some(8)).await.unwrap_err();
        assert!(bulkhead_protocol::error::chain(&error).contains("disk9"), "{error:?}");
        assert!(error.to_string().contains("disk8") && disks.lock().is_empty(), "{error}");
    }
}
