//! Scans SCSI hosts by sysfs. The kernel does not scan by itself here (see `parameters` in `kernel/modules.rs`): a host
//! has hundreds of targets, and the sandboxer knows at which one it has attached a disk. Everything here may block.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::block::serial_of_scsi;

/// A scan for one disk.
#[derive(Debug)]
pub(super) struct Scan {
    /// Target at channel 0 and LUN 0; none: all of a host is scanned.
    pub(super) target: Option<u32>,
    /// Serial number of the disk.
    pub(super) serial: String,
    /// Serial numbers of disks that are in use.
    pub(super) in_use: BTreeSet<String>,
    /// Hosts that were scanned already.
    pub(super) scanned: BTreeSet<u32>,
}

impl Scan {
    /// Scans every host that was not scanned before. The disk may become usable only a moment later.
    pub(super) fn run(&mut self, sys: &Path) {
        for host in hosts(sys) {
            if !self.scanned.insert(host) {
                continue;
            }
            // Not an error of the search: a host need not have the target, and the disk can be on another one.
            if let Err(error) = self.host(sys, host) {
                tracing::warn!(host, target = self.target, %error, "a SCSI host was not scanned");
            }
        }
    }

    fn host(&self, sys: &Path, host: u32) -> io::Result<()> {
        if let Some(target) = self.target {
            self.remove_stale(&sys.join(format!("bus/scsi/devices/{host}:0:{target}:0")))?;
        }
        let scan = sys.join(format!("class/scsi_host/host{host}/scan"));
        // Channel, target, LUN.
        std::fs::write(scan, self.target.map_or("- - -".to_owned(), |target| format!("0 {target} 0")))
    }

    /// Removes a disk that the host has detached and the kernel still knows: the kernel does not scan a target at which
    /// it knows a device.
    fn remove_stale(&self, device: &Path) -> io::Result<()> {
        match serial_of_scsi(device) {
            Some(found) if found != self.serial && !self.in_use.contains(&found) => {
                tracing::warn!(
                    serial = found,
                    target = self.target,
                    "a disk that is gone is still known, removing it"
                );
                std::fs::write(device.join("delete"), "1")
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Numbers of the kernel's SCSI hosts. None where it has no SCSI.
fn hosts(sys: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir(sys.join("class/scsi_host")).into_iter().flatten().flatten();
    let number = |name: std::ffi::OsString| name.to_str()?.strip_prefix("host")?.parse().ok();
    entries.filter_map(|entry| number(entry.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::block::tests::{content, kernel};
    use super::*;

    fn scan(target: Option<u32>, serial: &str, in_use: &[&str]) -> Scan {
        let in_use = in_use.iter().map(|serial| (*serial).to_owned()).collect();
        Scan { target, serial: serial.to_owned(), in_use, scanned: BTreeSet::new() }
    }

    #[test]
    fn the_hinted_target_is_scanned_and_a_disk_that_is_gone_is_removed() {
        let (_dir, devices) = kernel();
        scan(Some(7), "disk10", &[]).run(&devices.sys);
        assert_eq!(content(&devices, "bus/scsi/devices/1:0:7:0/delete"), "1");
        assert_eq!(content(&devices, "class/scsi_host/host1/scan"), "0 7 0");
    }

    #[test]
    fn neither_the_disk_itself_nor_one_that_is_in_use_is_removed() {
        let (dir, devices) = kernel();
        scan(Some(7), "disk9", &[]).run(&devices.sys);
        scan(Some(7), "disk10", &["disk9"]).run(&devices.sys);
        assert!(!dir.path().join("sys/bus/scsi/devices/1:0:7:0/delete").exists());
    }

    #[test]
    fn without_a_hint_all_of_a_host_is_scanned() {
        let (_dir, devices) = kernel();
        scan(None, "disk10", &[]).run(&devices.sys);
        assert_eq!(content(&devices, "class/scsi_host/host1/scan"), "- - -");
    }

    #[test]
    fn a_host_is_scanned_once_and_one_that_appears_later_then() {
        let (dir, devices) = kernel();
        let hosts = dir.path().join("sys/class/scsi_host");
        let mut scan = scan(Some(7), "disk9", &[]);
        scan.run(&devices.sys);
        std::fs::write(hosts.join("host1/scan"), "").unwrap();
        std::fs::create_dir(hosts.join("host2")).unwrap();
        std::fs::write(hosts.join("host2/scan"), "").unwrap();
        scan.run(&devices.sys);
        assert_eq!(content(&devices, "class/scsi_host/host1/scan"), "");
        assert_eq!(content(&devices, "class/scsi_host/host2/scan"), "0 7 0");
    }

    #[test]
    fn a_host_that_cannot_be_scanned_does_not_keep_the_next_from_it() {
        let (dir, devices) = kernel();
        for host in ["host0", "host2"] {
            std::fs::create_dir_all(dir.path().join("sys/class/scsi_host").join(host).join("scan")).unwrap();
        }
        scan(Some(7), "disk9", &[]).run(&devices.sys);
        assert_eq!(content(&devices, "class/scsi_host/host1/scan"), "0 7 0");
    }
}
