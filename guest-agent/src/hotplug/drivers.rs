//! Loads the drivers of devices. There is no udev in the guest: the agent reads the modalias of each device on a bus
//! and loads the module that has it. Everything here may block.

use std::collections::BTreeSet;
use std::path::Path;

use crate::kernel::modules::{self, ModuleError};

/// A kind of device on a bus.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// Directory of the bus below `/sys/bus`.
    bus: &'static str,
    /// How the modaliases of such devices begin.
    modalias: &'static str,
}

/// virtio block devices (virtio specification, section 5: device id 2).
pub(super) const VIRTIO_BLOCK: Kind = Kind { bus: "virtio", modalias: "virtio:d00000002v" };
/// virtio SCSI hosts (device id 8).
pub(super) const VIRTIO_SCSI: Kind = Kind { bus: "virtio", modalias: "virtio:d00000008v" };
/// virtio memory devices (device id 24).
pub(super) const VIRTIO_MEMORY: Kind = Kind { bus: "virtio", modalias: "virtio:d00000018v" };
/// SCSI disks (peripheral device type 0, SPC-4, 6.4.2).
pub(super) const SCSI_DISK: Kind = Kind { bus: "scsi", modalias: "scsi:t-0x00" };

/// Loads the driver of every device of a kind that has none. `asked` keeps the modaliases that were looked up, so that
/// a module that the image does not have is looked up once.
///
/// # Errors
/// [`ModuleError`] for the first that does not load.
pub(super) fn load(sys: &Path, kind: Kind, asked: &mut BTreeSet<String>) -> Result<(), ModuleError> {
    for modalias in without_driver(sys, kind) {
        if asked.insert(modalias.clone()) && !modules::load_by_name(&modalias)? {
            tracing::debug!(modalias, "the image has no module for this device");
        }
    }
    Ok(())
}

/// The modaliases of devices of a kind that have no driver. None when the kernel does not have the bus.
fn without_driver(sys: &Path, kind: Kind) -> Vec<String> {
    let devices = std::fs::read_dir(sys.join("bus").join(kind.bus).join("devices"));
    let paths = devices.into_iter().flatten().flatten().map(|device| device.path());
    let undriven = paths.filter(|device| !device.join("driver").exists());
    let modaliases = undriven.filter_map(|device| std::fs::read_to_string(device.join("modalias")).ok());
    modaliases
        .map(|modalias| modalias.trim().to_owned())
        .filter(|modalias| modalias.starts_with(kind.modalias))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_of_the_kind_without_a_driver_need_one() {
        let dir = tempfile::tempdir().unwrap();
        let devices = dir.path().join("bus/virtio/devices");
        for (name, modalias, driver) in [
            ("virtio0", "virtio:d00000008v00001AF4\n", false),
            ("virtio1", "virtio:d00000008v00001AF4\n", true),
            ("virtio2", "virtio:d00000018v00001AF4\n", false),
        ] {
            std::fs::create_dir_all(devices.join(name)).unwrap();
            std::fs::write(devices.join(name).join("modalias"), modalias).unwrap();
            if driver {
                std::fs::create_dir(devices.join(name).join("driver")).unwrap();
            }
        }
        assert_eq!(without_driver(dir.path(), VIRTIO_SCSI), ["virtio:d00000008v00001AF4"]);
        assert_eq!(without_driver(dir.path(), VIRTIO_MEMORY), ["virtio:d00000018v00001AF4"]);
        assert!(without_driver(dir.path(), VIRTIO_BLOCK).is_empty());
        assert!(without_driver(dir.path(), SCSI_DISK).is_empty(), "there is no such bus");
    }

    #[test]
    fn a_modalias_is_asked_for_once() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("bus/virtio/devices/virtio0");
        std::fs::create_dir_all(&device).unwrap();
        std::fs::write(device.join("modalias"), "virtio:d00000002v00001AF4\n").unwrap();
        let mut asked = BTreeSet::from(["virtio:d00000002v00001AF4".to_owned()]);
        load(dir.path(), VIRTIO_BLOCK, &mut asked).unwrap();
        assert_eq!(asked.len(), 1);
    }
}
