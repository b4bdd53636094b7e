//! The guest's own devices, for privileged containers.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceType, Spec};

/// Where the kernel keeps its device nodes (devtmpfs).
const DEV: &str = "/dev";
/// Directories and files of which a container has its own: terminals, shared memory, message queues, console.
const OWN: [&str; 4] = ["pts", "shm", "mqueue", "console"];

/// Character devices whose drivers the kernel loads when their node is opened, so that there is no node before: path,
/// major and minor number (Documentation/admin-guide/devices.txt).
const UNLOADED: [(&str, i64, i64); 3] =
    [("/dev/net/tun", 10, 200), ("/dev/fuse", 10, 229), ("/dev/loop-control", 10, 237)];

/// Adds the guest's devices to a container that may use every device, that is a privileged one.
pub(in crate::container) fn add(spec: &mut Spec, found: impl FnOnce() -> Vec<LinuxDevice>) {
    let Some(linux) = spec.linux_mut().as_mut().filter(|linux| allows_all(linux)) else { return };
    let mut devices = linux.devices().clone().unwrap_or_default();
    let news: Vec<LinuxDevice> =
        found().into_iter().filter(|new| devices.iter().all(|old| old.path() != new.path())).collect();
    devices.extend(news);
    linux.set_devices(Some(devices));
}

fn allows_all(linux: &Linux) -> bool {
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_deref());
    rules.unwrap_or_default().iter().any(allows_everything)
}

fn allows_everything(rule: &LinuxDeviceCgroup) -> bool {
    let any_number = [rule.major(), rule.minor()].iter().all(|number| number.is_none_or(|number| number < 0));
    let any_kind = matches!(rule.typ(), None | Some(LinuxDeviceType::A));
    let access = rule.access().as_deref().unwrap_or_default();
    rule.allow() && any_number && any_kind && ["r", "w", "m"].iter().all(|letter| access.contains(letter))
}

/// Every device node of the guest.
pub(in crate::container) fn of_guest() -> Vec<LinuxDevice> {
    let mut devices = Vec::new();
    collect(Path::new(DEV), &mut devices);
    for (path, major, minor) in UNLOADED {
        if devices.iter().all(|device| device.path() != Path::new(path)) {
            let device = LinuxDeviceBuilder::default().path(path).typ(LinuxDeviceType::C);
            let device = device.major(major).minor(minor).file_mode(0o666_u32).uid(0_u32).gid(0_u32);
            devices.extend(device.build());
        }
    }
    devices
}

fn collect(dir: &Path, devices: &mut Vec<LinuxDevice>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if OWN.iter().any(|own| path == Path::new(DEV).join(own)) {
            continue;
        }
        // Symbolic links are left out: the container's /dev gets its own.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            collect(&path, devices);
        } else if let Some(device) = device(&path, &metadata) {
            devices.push(device);
        }
    }
}

fn device(path: &Path, metadata: &std::fs::Metadata) -> Option<LinuxDevice> {
    let kind = metadata.file_type();
    let typ = if kind.is_char_device() {
        LinuxDeviceType::C
    } else if kind.is_block_device() {
        LinuxDeviceType::B
    } else {
        return None;
    };
    let number = metadata.rdev();
    let built = LinuxDeviceBuilder::default()
        .path(path)
        .typ(typ)
        .major(i64::from(rustix::fs::major(number)))
        .minor(i64::from(rustix::fs::minor(number)))
        .file_mode(metadata.mode() & 0o7777)
        .uid(metadata.uid())
        .gid(metadata.gid())
        .build();
    built.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(rules: &str) -> Spec {
        let device = r#"{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}"#;
        let text = format!(
            r#"{{"ociVersion": "1.2.0", "linux": {{"devices": [{device}], "resources": {{"devices": {rules}}}}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn paths(spec: &Spec) -> Vec<String> {
        let devices = spec.linux().as_ref().unwrap().devices().clone().unwrap();
        devices.iter().map(|device| device.path().display().to_string()).collect()
    }

    #[test]
    fn only_a_container_that_may_use_every_device_gets_the_guests() {
        let of_guest = || vec![LinuxDeviceBuilder::default().path("/dev/kmsg").build().unwrap()];
        let deny = r#"{"allow": false, "access": "rwm"}"#;
        let some = r#"{"allow": true, "type": "c", "access": "rwm"}"#;
        let read = r#"{"allow": true, "access": "r"}"#;
        let one = r#"{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}"#;
        let mut usual = spec(&format!("[{deny}, {some}, {read}, {one}]"));
        add(&mut usual, of_guest);
        assert_eq!(paths(&usual), ["/dev/null"]);
        for all in [r#"{"allow": true, "access": "rwm"}"#, r#"{"allow": true, "type": "a", "access": "rwm"}"#]
        {
            let mut privileged = spec(&format!("[{deny}, {all}]"));
            add(&mut privileged, of_guest);
            assert_eq!(paths(&privileged), ["/dev/null", "/dev/kmsg"]);
        }
    }

    #[test]
    fn the_guests_devices_are_listed_without_a_containers_own() {
        let found = of_guest();
        let null = found.iter().find(|device| device.path() == Path::new("/dev/null")).unwrap();
        assert_eq!((null.typ(), null.major(), null.minor()), (LinuxDeviceType::C, 1, 3));
        assert!(found.iter().all(|device| !device.path().starts_with("/dev/pts")));
        for (path, major, minor) in UNLOADED {
            let here: Vec<_> = found.iter().filter(|device| device.path() == Path::new(path)).collect();
            assert_eq!(here.len(), 1, "{path}");
            assert_eq!((here[0].major(), here[0].minor()), (major, minor), "{path}");
        }
    }
}
