//! The VM's virtio-scsi controller, by way of sysfs. Everything here may block.
//!
//! Its modules are loaded when the first disk is wanted, and it is never searched: the host says at which target a
//! disk is, and 255 others would have to be asked.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::kernel::modules;

/// What drives the controller and what drives its disks.
const MODULES: [&str; 2] = ["virtio_scsi", "sd_mod"];
/// `proc_name` of the controller's driver (the kernel's `drivers/scsi/virtio_scsi.c`).
const DRIVER: &str = "virtio_scsi";
/// Bytes before the serial number in vital product data page 80h (SPC-4, 7.8.15).
const PAGE_HEADER: usize = 4;

/// Number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// The kernel's view of the controller.
#[derive(Debug, Clone)]
pub(super) struct Bus {
    sys: PathBuf,
    dev: PathBuf,
}

impl Default for Bus {
    fn default() -> Self {
        Self { sys: "/sys".into(), dev: "/dev".into() }
    }
}

impl Bus {
    /// Has the kernel look for a disk at a target. It may be usable a moment later only.
    pub(super) fn attach(&self, target: u32, serial: &str) -> io::Result<()> {
        for name in MODULES {
            modules::demand(name).map_err(io::Error::other)?;
        }
        let host = self.host()?;
        let device = self.device(host, target);
        if device.exists() && serial_of(&device)? != serial {
            tracing::warn!(target, "the disk that was here before is still known, removing it");
            std::fs::write(device.join("delete"), "1")?;
        }
        let scan = self.sys.join(format!("class/scsi_host/host{host}/scan"));
        // Channel, target, LUN.
        std::fs::write(scan, format!("0 {target} 0"))
    }

    /// The number of the disk at a target, once it can be opened.
    pub(super) fn usable(&self, target: u32, serial: &str) -> io::Result<Number> {
        let device = self.device(self.host()?, target);
        let found = serial_of(&device)?;
        if found != serial {
            return Err(io::Error::other(format!(
                "disk {found:?} is at SCSI target {target}, not {serial:?}"
            )));
        }
        let name = block_name(&device)?;
        File::open(self.dev.join(&name))?;
        number(&std::fs::read_to_string(device.join("block").join(&name).join("dev"))?)
    }

    /// Writes what the kernel still holds of the disk at a target, and has it forgotten. None there is fine.
    pub(super) fn remove(&self, target: u32) -> io::Result<()> {
        let device = self.device(self.host()?, target);
        if !device.exists() {
            return Ok(());
        }
        let flushed = block_name(&device).and_then(|name| File::open(self.dev.join(name))?.sync_all());
        std::fs::write(device.join("delete"), "1")?;
        flushed
    }

    /// Sectors written to the disk at a target so far (the kernel's Documentation/block/stat.rst); none when it is
    /// not known.
    pub(super) fn written(&self, target: u32) -> Option<u64> {
        let device = self.device(self.host().ok()?, target);
        let name = block_name(&device).ok()?;
        let figures = std::fs::read_to_string(device.join("block").join(name).join("stat")).ok()?;
        figures.split_whitespace().nth(6)?.parse().ok()
    }

    /// Number of the controller among the kernel's SCSI hosts.
    fn host(&self) -> io::Result<u32> {
        for entry in std::fs::read_dir(self.sys.join("class/scsi_host"))? {
            let entry = entry?;
            let driver = std::fs::read_to_string(entry.path().join("proc_name")).unwrap_or_default();
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("host")?.parse().ok());
            if let (DRIVER, Some(number)) = (driver.trim(), number) {
                return Ok(number);
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "this VM has no virtio-scsi controller"))
    }

    /// Directory of the device at channel 0, LUN 0 of a target.
    fn device(&self, host: u32, target: u32) -> PathBuf {
        self.sys.join(format!("bus/scsi/devices/{host}:0:{target}:0"))
    }
}

fn serial_of(device: &Path) -> io::Result<String> {
    let page = std::fs::read(device.join("vpd_pg80"))?;
    Ok(String::from_utf8_lossy(page.get(PAGE_HEADER..).unwrap_or_default()).trim().to_owned())
}

/// Name of the one block device of a SCSI device, once its driver has made it.
fn block_name(device: &Path) -> io::Result<std::ffi::OsString> {
    let first = std::fs::read_dir(device.join("block"))?.next();
    first.ok_or(io::ErrorKind::NotFound)?.map(|entry| entry.file_name())
}

/// Reads `major:minor`.
fn number(text: &str) -> io::Result<Number> {
    let parsed = text
        .trim()
        .split_once(':')
        .and_then(|(major, minor)| Some(Number { major: major.parse().ok()?, minor: minor.parse().ok()? }));
    parsed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no device number")))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A kernel with the controller as host 1 and one disk, `sdb`, at target 7.
    pub(in crate::container) fn kernel() -> (tempfile::TempDir, Bus) {
        let dir = tempfile::tempdir().unwrap();
        let bus = Bus { sys: dir.path().join("sys"), dev: dir.path().join("dev") };
        let write = |path: &str, content: &[u8]| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        write("sys/class/scsi_host/host0/proc_name", b"ata_piix\n");
        write("sys/class/scsi_host/host1/proc_name", b"virtio_scsi\n");
        write("sys/class/scsi_host/host1/scan", b"");
        write("sys/bus/scsi/devices/1:0:7:0/vpd_pg80", b"\0\x80\0\x05disk9");
        write("sys/bus/scsi/devices/1:0:7:0/block/sdb/dev", b"8:16\n");
        write("dev/sdb", b"");
        (dir, bus)
    }

    fn written(bus: &Bus, path: &str) -> String {
        std::fs::read_to_string(bus.sys.join(path)).unwrap()
    }

    #[test]
    fn a_disk_is_known_by_target_and_serial() {
        let (_dir, bus) = kernel();
        assert_eq!(bus.usable(7, "disk9").unwrap(), Number { major: 8, minor: 16 });
        let other = bus.usable(7, "disk8").unwrap_err().to_string();
        assert!(other.contains("disk9") && other.contains("target 7"), "{other}");
        bus.usable(6, "disk9").unwrap_err();
        assert_eq!(bus.written(7), None);
        let stat = "     100  0   800   12   7   1   56   3   0   9   15\n";
        std::fs::write(bus.sys.join("bus/scsi/devices/1:0:7:0/block/sdb/stat"), stat).unwrap();
        assert_eq!(bus.written(7), Some(56));
    }

    #[test]
    fn a_disk_without_its_block_device_is_not_usable_yet() {
        let (dir, bus) = kernel();
        std::fs::remove_file(dir.path().join("dev/sdb")).unwrap();
        bus.usable(7, "disk9").unwrap_err();
        std::fs::remove_dir_all(bus.sys.join("bus/scsi/devices/1:0:7:0/block/sdb")).unwrap();
        assert_eq!(bus.usable(7, "disk9").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_removed_disk_is_deleted_and_none_is_fine() {
        let (_dir, bus) = kernel();
        bus.remove(7).unwrap();
        assert_eq!(written(&bus, "bus/scsi/devices/1:0:7:0/delete"), "1");
        bus.remove(8).unwrap();
    }

    #[test]
    fn a_target_is_asked_for_and_what_was_there_before_goes() {
        let (_dir, bus) = kernel();
        bus.attach(7, "disk10").unwrap();
        assert_eq!(written(&bus, "bus/scsi/devices/1:0:7:0/delete"), "1");
        assert_eq!(written(&bus, "class/scsi_host/host1/scan"), "0 7 0");
    }

    #[test]
    fn a_vm_without_a_controller_says_so() {
        let (dir, bus) = kernel();
        std::fs::remove_dir_all(dir.path().join("sys/class/scsi_host/host1")).unwrap();
        let error = bus.attach(7, "disk9").unwrap_err().to_string();
        assert!(error.contains("virtio-scsi"), "{error}");
    }

    #[test]
    fn numbers_are_read() {
        assert_eq!(number("259:3\n").unwrap(), Number { major: 259, minor: 3 });
        number("8").unwrap_err();
    }
}
