//! Device nodes and device rules: numbers of the host mean nothing in the guest, but for the kernel's fixed ones.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::{Note, SpecError};

/// Devices with the same number and meaning in every Linux (Documentation/admin-guide/devices.txt), none of which
/// reaches hardware: null, zero, full, random, urandom; tty, console, ptmx.
const FIXED: [(i64, i64); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];

/// Unix98 pseudo terminals (same list).
const PTS_MAJOR: i64 = 136;

/// The device nodes that the guest makes.
///
/// # Errors
/// [`SpecError::HostDevice`] for any that is not one of the fixed ones.
pub(super) fn guest_devices(devices: Vec<LinuxDevice>) -> Result<Vec<LinuxDevice>, SpecError> {
    match devices.iter().find(|device| !is_fixed(device)) {
        None => Ok(devices),
        Some(device) => Err(SpecError::HostDevice {
            path: device.path().clone(),
            kind: device.typ().as_str().to_owned(),
            major: device.major(),
            minor: device.minor(),
        }),
    }
}

/// The device rules that hold in the guest: general ones and those for fixed devices.
pub(super) fn guest_rules(rules: Vec<LinuxDeviceCgroup>, notes: &mut Vec<Note>) -> Vec<LinuxDeviceCgroup> {
    let (kept, dropped): (Vec<_>, Vec<_>) = rules.into_iter().partition(means_the_same);
    notes.extend(
        dropped
            .iter()
            .map(|rule| Note::LeftOut { setting: "linux.resources.devices", value: rule.to_string() }),
    );
    kept
}

fn is_fixed(device: &LinuxDevice) -> bool {
    match device.typ() {
        LinuxDeviceType::P => true,
        LinuxDeviceType::C | LinuxDeviceType::U => FIXED.contains(&(device.major(), device.minor())),
        LinuxDeviceType::A | LinuxDeviceType::B => false,
    }
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
        (Some(major), Some(minor)) => FIXED.contains(&(major, minor)),
        (None, Some(_)) | (Some(_), None) => false,
    }
}
