//! Which block devices of the host are attached to the VM, as which disks, and for which containers. Pure.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::host::block::Number;
use crate::id::ContainerId;
use crate::vm::Access;

/// SCSI targets of a controller: 0 to 254.
const SLOTS: u32 = 255;

/// The disks of a pod, for the record. What is here is, or may be, attached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disks {
    /// Number of the next disk. None comes twice in a VM's life: the guest may learn late that a disk has gone, and
    /// must not take another for it.
    next: u32,
    disks: Vec<Disk>,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    number: u32,
    major: u32,
    minor: u32,
    access: Access,
    /// Empty: it is to go.
    users: BTreeSet<ContainerId>,
}

/// What makes two containers share a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) device: Number,
    pub(super) access: Access,
}

impl Disk {
    fn key(&self) -> Key {
        Key { device: Number { major: self.major, minor: self.minor }, access: self.access }
    }

    /// The number of this disk in the VM's life.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn access(&self) -> Access {
        self.access
    }

    pub(super) fn slot(&self) -> u8 {
        slot(self.number)
    }
}

/// Name of a disk: its id for the VMM and its serial number in the guest.
pub(super) fn id(number: u32) -> String {
    format!("disk{number}")
}

fn slot(number: u32) -> u8 {
    // The remainder is less than 255.
    u8::try_from(number % SLOTS).unwrap_or(u8::MAX)
}

/// Every target of the controller is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pod can have {SLOTS} block devices at a time, and has them")]
pub struct TooMany;

impl Disks {
    /// The container wants these devices and no others: answers the disk for each, in order. One that a container has
    /// already serves all.
    pub(super) fn want(&mut self, container: &ContainerId, keys: &[Key]) -> Result<Vec<Disk>, TooMany> {
        let mut wanted = Vec::new();
        for key in keys {
            let known = self.disks.iter().position(|disk| !disk.users.is_empty() && disk.key() == *key);
            let index = match known {
                Some(index) => index,
                None => self.add(*key)?,
            };
            if let Some(disk) = self.disks.get_mut(index) {
                disk.users.insert(container.clone());
                wanted.push(disk.clone());
            }
        }
        for disk in &mut self.disks {
            if !wanted.iter().any(|wanted| wanted.number == disk.number) {
                disk.users.remove(container);
            }
        }
        Ok(wanted)
    }

    /// A disk that has no user yet; answers where it is in the list.
    fn add(&mut self, key: Key) -> Result<usize, TooMany> {
        let taken = |number: u32| self.disks.iter().any(|disk| disk.slot() == slot(number));
        let mut free = (0..SLOTS).map(|step| self.next.wrapping_add(step)).filter(|number| !taken(*number));
        let number = free.next().ok_or(TooMany)?;
        self.next = number.wrapping_add(1);
        let Key { device: Number { major, minor }, access } = key;
        self.disks.push(Disk { number, major, minor, access, users: BTreeSet::new() });
        Ok(self.disks.len().saturating_sub(1))
    }

    /// The container has gone, and with it its claim to any disk.
    pub(super) fn leave(&mut self, container: &ContainerId) {
        for disk in &mut self.disks {
            disk.users.remove(container);
        }
    }

    /// Numbers of the disks that nobody uses: to be unplugged.
    pub(super) fn unused(&self) -> Vec<u32> {
        self.disks.iter().filter(|disk| disk.users.is_empty()).map(Disk::number).collect()
    }

    /// The disk has been unplugged.
    pub(super) fn unplugged(&mut self, number: u32) {
        self.disks.retain(|disk| disk.number != number);
    }

    /// The VM has gone, and its disks with it.
    pub(super) fn clear(&mut self) {
        self.disks.clear();
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.disks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str) -> ContainerId {
        ContainerId::new(id).unwrap()
    }

    fn key(minor: u32, access: Access) -> Key {
        Key { device: Number { major: 7, minor }, access }
    }

    fn numbers(wanted: &[Disk]) -> Vec<u32> {
        wanted.iter().map(Disk::number).collect()
    }

    const RW: Access = Access::ReadWrite;
    const RO: Access = Access::ReadOnly;

    #[test]
    fn a_device_is_one_disk_for_all_that_may_do_the_same_with_it() {
        let mut disks = Disks::default();
        let first = disks.want(&container("a"), &[key(0, RW), key(1, RW), key(0, RW)]).unwrap();
        assert_eq!(numbers(&first), [0, 1, 0]);
        let second = disks.want(&container("b"), &[key(0, RW), key(0, RO)]).unwrap();
        assert_eq!(numbers(&second), [0, 2], "read-only is another disk");
        disks.leave(&container("a"));
        assert_eq!(disks.unused(), [1]);
        disks.leave(&container("b"));
        assert_eq!(disks.unused(), [0, 1, 2]);
    }

    #[test]
    fn a_disk_that_is_to_go_serves_nobody_and_no_number_comes_again() {
        let mut disks = Disks::default();
        disks.want(&container("a"), &[key(0, RW)]).unwrap();
        disks.leave(&container("a"));
        let again = disks.want(&container("b"), &[key(0, RW)]).unwrap();
        assert_eq!(numbers(&again), [1]);
        disks.unplugged(0);
        assert_eq!((disks.unused(), disks.count()), (Vec::new(), 1));
        let next = disks.want(&container("c"), &[key(5, RW)]).unwrap();
        assert_eq!(numbers(&next), [2], "nor its number");
    }

    #[test]
    fn a_container_that_asks_again_keeps_what_it_has_and_lets_go_of_the_rest() {
        let mut disks = Disks::default();
        disks.want(&container("a"), &[key(0, RW), key(1, RW)]).unwrap();
        assert_eq!(numbers(&disks.want(&container("a"), &[key(1, RW)]).unwrap()), [1]);
        assert_eq!(disks.unused(), [0]);
    }

    #[test]
    fn slots_are_used_again_only_when_they_are_free() {
        let mut disks = Disks::default();
        for minor in 0..SLOTS {
            disks.want(&container("a"), &[key(minor, RW)]).unwrap();
            disks.want(&container(&format!("keeps{minor}")), &[key(minor, RW)]).unwrap();
        }
        assert_eq!(disks.want(&container("b"), &[key(999, RW)]).unwrap_err(), TooMany);
        disks.leave(&container("keeps7"));
        disks.unplugged(7);
        let disk = disks.want(&container("b"), &[key(999, RW)]).unwrap().remove(0);
        assert_eq!((disk.number(), disk.slot()), (SLOTS + 7, 7));
    }
}
