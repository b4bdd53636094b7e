//! Finds block devices by their serial numbers in sysfs, whatever bus they are on. Everything here may block.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes before the serial number in vital product data page 80h of a SCSI device (SPC-4, 7.8.15).
const PAGE_HEADER: usize = 4;

/// Major and minor number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// Where the kernel's file systems of devices are mounted.
#[derive(Debug, Clone)]
pub(super) struct Devices {
    /// sysfs.
    pub(super) sys: PathBuf,
    /// devtmpfs.
    pub(super) dev: PathBuf,
}

impl Default for Devices {
    fn default() -> Self {
        Self { sys: "/sys".into(), dev: "/dev".into() }
    }
}

impl Devices {
    /// The number of the block device with a serial number, once it can be opened.
    pub(super) fn usable(&self, serial: &str) -> io::Result<Number> {
        let name = self.name(serial)?;
        File::open(self.dev.join(&name))?;
        number(&std::fs::read_to_string(self.block(&name).join("dev"))?)
    }

    /// Flushes a block device, and removes it if it is on a SCSI bus; other buses notice by themselves when the host
    /// detaches a device. No-op if there is no such device.
    pub(super) fn remove(&self, serial: &str) -> io::Result<()> {
        let name = match self.name(serial) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found?,
        };
        let flushed = File::open(self.dev.join(&name)).and_then(|device| device.sync_all());
        let delete = self.block(&name).join("device/delete");
        if delete.parent().is_some_and(is_scsi) {
            std::fs::write(delete, "1")?;
        }
        flushed
    }

    /// Sectors written to a block device so far (the kernel's Documentation/block/stat.rst); none when that is not
    /// known.
    pub(super) fn written(&self, serial: &str) -> Option<u64> {
        let statistics = std::fs::read_to_string(self.block(&self.name(serial).ok()?).join("stat")).ok()?;
        statistics.split_whitespace().nth(6)?.parse().ok()
    }

    /// Name of the block device with a serial number.
    fn name(&self, serial: &str) -> io::Result<OsString> {
        let mut seen = Vec::new();
        for entry in std::fs::read_dir(self.sys.join("block"))? {
            let name = entry?.file_name();
            match serial_of_block(&self.block(&name)) {
                Some(found) if found == serial => return Ok(name),
                Some(found) => seen.push(format!("{} {found:?}", name.display())),
                None => {}
            }
        }
        let text = format!("no block device has the serial number {serial:?}, there are {seen:?}");
        Err(io::Error::new(io::ErrorKind::NotFound, text))
    }

    /// Directory of a block device.
    fn block(&self, name: &OsStr) -> PathBuf {
        self.sys.join("block").join(name)
    }
}

/// The serial number of a block device: the attribute `serial` of a virtio block device, or what the device of a SCSI
/// disk says.
fn serial_of_block(block: &Path) -> Option<String> {
    let serial = std::fs::read(block.join("serial")).ok().map(|serial| plain(&serial));
    serial.or_else(|| serial_of_scsi(&block.join("device")))
}

/// The unit serial number of a SCSI device, by its directory.
pub(super) fn serial_of_scsi(device: &Path) -> Option<String> {
    let page = std::fs::read(device.join("vpd_pg80")).ok()?;
    Some(plain(page.get(PAGE_HEADER..).unwrap_or_default()))
}

fn is_scsi(device: &Path) -> bool {
    device.join("vpd_pg80").exists()
}

/// A serial number without the blanks and zero bytes that pad it.
fn plain(serial: &[u8]) -> String {
    String::from_utf8_lossy(serial).trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned()
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

    /// A kernel with a SCSI disk, `sdb`, at target 7 of host 1, and a virtio block device, `vda`.
    pub(in crate::hotplug) fn kernel() -> (tempfile::TempDir, Devices) {
        let dir = tempfile::tempdir().unwrap();
        let devices = Devices { sys: dir.path().join("sys"), dev: dir.path().join("dev") };
        let write = |path: &str, content: &[u8]| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        write("sys/class/scsi_host/host1/scan", b"");
        write("sys/bus/scsi/devices/1:0:7:0/vpd_pg80", b"\0\x80\0\x05disk9");
        write("sys/block/sdb/dev", b"8:16\n");
        let device = dir.path().join("sys/block/sdb/device");
        std::os::unix::fs::symlink("../../bus/scsi/devices/1:0:7:0", device).unwrap();
        write("dev/sdb", b"");
        write("sys/block/vda/dev", b"254:0\n");
        write("sys/block/vda/serial", b"disk3");
        write("sys/block/vda/device/modalias", b"virtio:d00000002v00001AF4\n");
        write("dev/vda", b"");
        write("sys/block/loop0/dev", b"7:0\n");
        (dir, devices)
    }

    pub(in crate::hotplug) fn content(devices: &Devices, path: &str) -> String {
        std::fs::read_to_string(devices.sys.join(path)).unwrap()
    }

    #[test]
    fn a_disk_is_found_by_its_serial_number_on_any_bus() {
        let (_dir, devices) = kernel();
        assert_eq!(devices.usable("disk9").unwrap(), Number { major: 8, minor: 16 });
        assert_eq!(devices.usable("disk3").unwrap(), Number { major: 254, minor: 0 });
        let other = devices.usable("disk8").unwrap_err().to_string();
        assert!(other.contains("disk8") && other.contains("disk9") && other.contains("sdb"), "{other}");
        assert_eq!(devices.written("disk9"), None);
        let stat = "     100  0   800   12   7   1   56   3   0   9   15\n";
        std::fs::write(devices.sys.join("block/sdb/stat"), stat).unwrap();
        assert_eq!(devices.written("disk9"), Some(56));
    }

    #[test]
    fn a_serial_number_is_read_without_its_padding() {
        let (_dir, devices) = kernel();
        std::fs::write(devices.sys.join("block/vda/serial"), b"disk3\0\0\0\n").unwrap();
        assert_eq!(devices.usable("disk3").unwrap(), Number { major: 254, minor: 0 });
    }

    #[test]
    fn a_disk_without_its_block_device_is_not_usable_yet() {
        let (dir, devices) = kernel();
        std::fs::remove_file(dir.path().join("dev/sdb")).unwrap();
        devices.usable("disk9").unwrap_err();
        std::fs::remove_dir_all(devices.sys.join("block/sdb")).unwrap();
        assert_eq!(devices.usable("disk9").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn removing_a_scsi_disk_deletes_it_and_is_idempotent() {
        let (_dir, devices) = kernel();
        devices.remove("disk9").unwrap();
        assert_eq!(content(&devices, "bus/scsi/devices/1:0:7:0/delete"), "1");
        devices.remove("disk8").unwrap();
    }

    #[test]
    fn removing_another_disk_only_flushes_it() {
        let (dir, devices) = kernel();
        devices.remove("disk3").unwrap();
        assert!(!dir.path().join("sys/block/vda/device/delete").exists());
        std::fs::remove_file(dir.path().join("dev/vda")).unwrap();
        devices.remove("disk3").unwrap_err();
    }

    #[test]
    fn device_numbers_are_read() {
        assert_eq!(number("259:3\n").unwrap(), Number { major: 259, minor: 3 });
        number("8").unwrap_err();
    }
}
