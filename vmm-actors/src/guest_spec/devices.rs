//! Device nodes and device rules: numbers of the host mean nothing in the guest, but for the kernel's fixed ones. A
//! block device of the host becomes a disk of the VM, and the guest makes its node and its rule.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::error::SpecError;
use super::note::Note;
use crate::host::block::Number;

/// Devices with the same number and meaning in every Linux (Documentation/admin-guide/devices.txt), none of which
/// reaches hardware: null, zero, full, random, urandom; tty, console, ptmx.
const FIXED: [(i64, i64); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];

/// Classes of a kernel that are no hardware of the node either (same list): /dev/net/tun, /dev/fuse and
/// /dev/loop-control. The guest's kernel has its own.
const CLASSES: [(i64, i64); 3] = [(10, 200), (10, 229), (10, 237)];

/// Unix98 pseudo terminals (same list).
const PTS_MAJOR: i64 = 136;

/// A block device of the host that a container wants at a place of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDisk {
    /// Where the container sees it.
    pub path: PathBuf,
    /// Which it is on the host.
    pub number: Number,
    /// What the container may do with it: letters of r, w and m, as in an OCI device rule.
    pub access: String,
    /// Permissions of the container's node; none: the guest's usual.
    pub file_mode: Option<u32>,
    /// Owner of the container's node.
    pub uid: u32,
    /// Group of the container's node.
    pub gid: u32,
}

impl HostDisk {
    /// Whether the container may write to it.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.access.contains('w')
    }
}

/// The devices of a container.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes that the guest makes as the spec says.
    pub(super) nodes: Vec<LinuxDevice>,
    /// What is plugged into the VM.
    pub(super) disks: Vec<HostDisk>,
}

/// Read, write and make nodes.
const EVERYTHING: &str = "rwm";

/// How a container's own devices are told from those that containerd adds of itself.
///
/// containerd writes a rule for each device that a container asks for. Of a privileged container it throws them all
/// away for one that allows everything; and unless it is told not to, it adds every device of the host, which always
/// include `/dev/null`. No container asks for that: it has it anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Those with a rule of their own.
    ByRule,
    /// All that are listed.
    ForAll,
}

impl Asked {
    fn of(devices: &[LinuxDevice], rules: &[LinuxDeviceCgroup]) -> Self {
        let privileged = rules.iter().any(|rule| {
            let access = rule.access().as_deref().unwrap_or_default();
            let any = matches!(rule.typ(), None | Some(LinuxDeviceType::A));
            let all = rule.major().is_none_or(|n| n < 0) && rule.minor().is_none_or(|n| n < 0);
            rule.allow() && any && all && EVERYTHING.chars().all(|letter| access.contains(letter))
        });
        if privileged && !devices.iter().any(is_fixed) { Self::ForAll } else { Self::ByRule }
    }
}

/// Sorts the devices.
///
/// # Errors
/// [`SpecError::HostDevice`] for one that is neither fixed nor a block device, [`SpecError::EveryHostDevice`] for one
/// that the container did not ask for, see [`Asked`].
pub(super) fn plan(devices: Vec<LinuxDevice>, rules: &[LinuxDeviceCgroup]) -> Result<Plan, SpecError> {
    let mut plan = Plan::default();
    let asked = Asked::of(&devices, rules);
    for device in devices {
        if is_fixed(&device) || is_class(&device) {
            plan.nodes.push(device);
            continue;
        }
        let (path, kind) = (device.path().clone(), device.typ().as_str().to_owned());
        let (major, minor) = (device.major(), device.minor());
        let rule = rules.iter().rev().find(|rule| is_of(rule, &device));
        let access = match (rule, asked) {
            (Some(rule), _) => rule.access().clone().unwrap_or_default(),
            (None, Asked::ForAll) => EVERYTHING.to_owned(),
            (None, Asked::ByRule) => return Err(SpecError::EveryHostDevice { path, kind, major, minor }),
        };
        match (device.typ(), number(&device)) {
            (LinuxDeviceType::B, Some(number)) => plan.disks.push(HostDisk {
                path,
                number,
                access,
                file_mode: device.file_mode(),
                uid: device.uid().unwrap_or_default(),
                gid: device.gid().unwrap_or_default(),
            }),
            _ => return Err(SpecError::HostDevice { path, kind, major, minor }),
        }
    }
    Ok(plan)
}

/// The device rules that hold in the guest: general ones and those for fixed devices. Those for `disks` are made anew
/// in the guest.
pub(super) fn guest_rules(
    rules: Vec<LinuxDeviceCgroup>,
    disks: &[HostDisk],
    notes: &mut Vec<Note>,
) -> Vec<LinuxDeviceCgroup> {
    let (kept, mut dropped): (Vec<_>, Vec<_>) = rules.into_iter().partition(means_the_same);
    dropped.retain(|rule| {
        let names = |disk: &HostDisk| {
            rule.typ() == Some(LinuxDeviceType::B)
                && rule.major() == Some(i64::from(disk.number.major))
                && rule.minor() == Some(i64::from(disk.number.minor))
        };
        !disks.iter().any(names)
    });
    notes.extend(
        dropped
            .iter()
            .map(|rule| Note::LeftOut { setting: "linux.resources.devices", value: rule.to_string() }),
    );
    kept
}

fn number(device: &LinuxDevice) -> Option<Number> {
    let major = u32::try_from(device.major()).ok()?;
    Some(Number { major, minor: u32::try_from(device.minor()).ok()? })
}

/// Whether the rule allows something with this very device.
fn is_of(rule: &LinuxDeviceCgroup, device: &LinuxDevice) -> bool {
    rule.allow()
        && rule.typ() == Some(device.typ())
        && rule.major() == Some(device.major())
        && rule.minor() == Some(device.minor())
}

fn is_fixed(device: &LinuxDevice) -> bool {
    match device.typ() {
        LinuxDeviceType::P => true,
        LinuxDeviceType::C | LinuxDeviceType::U => FIXED.contains(&(device.major(), device.minor())),
        LinuxDeviceType::A | LinuxDeviceType::B => false,
    }
}

fn is_class(device: &LinuxDevice) -> bool {
    device.typ() == LinuxDeviceType::C && CLASSES.contains(&(device.major(), device.minor()))
}

fn means_the_same(rule: &LinuxDeviceCgroup) -> bool {
    if !rule.allow() {
        return true;
    }
    // The OCI spec leaves a number out for "all"; -1 is how older writers said it.
    let (major, minor) = (rule.major().filter(|n| *n >= 0), rule.minor().filter(|n| *n >= 0));
    match (major, minor) {
        (None, None) => true,
        (Some(PTS_MAJOR), _) => true,
        (Some(major), Some(minor)) => {
            FIXED.contains(&(major, minor))
                || (rule.typ() == Some(LinuxDeviceType::C) && CLASSES.contains(&(major, minor)))
        }
        (None, Some(_)) | (Some(_), None) => false,
    }
}
