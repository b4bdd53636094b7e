//! What a VM can do, as data: callers look here before they ask a driver for anything.

use std::borrow::Cow;

/// What one VM can do. A driver knows it from the VM's record alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The guest can mount a directory of the host (virtio-fs).
    pub shared_fs: Ability,
    /// The bus on which its disks are.
    pub disk_bus: DiskBus,
    /// How the VMM is given a tap.
    pub tap: TapHandover,
    /// Which devices can be added to the running VM, and removed again.
    pub hotplug: Hotplug,
    /// Its processors and memory can change while it runs.
    pub resize: Ability,
    /// Its state can be written to a file and restored from there.
    pub snapshot: Ability,
}

/// Which kinds of devices can be added to a running VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hotplug {
    /// [`Device::Disk`](super::Device::Disk).
    pub disk: Ability,
    /// A network device.
    pub net: Ability,
    /// A shared file system.
    pub fs: Ability,
    /// A device of the host, by VFIO.
    pub vfio: Ability,
}

/// Whether a VM can do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ability {
    /// It can.
    Can,
    /// It cannot. The text says why, or what the user would have to change, and follows "…, ": "which needs …".
    Cannot(Cow<'static, str>),
}

impl Ability {
    /// It cannot, for this reason.
    #[must_use]
    pub const fn cannot(why: &'static str) -> Self {
        Self::Cannot(Cow::Borrowed(why))
    }

    /// [`Ability::Can`] if `can` holds, else the reason.
    #[must_use]
    pub const fn when(can: bool, why_not: &'static str) -> Self {
        if can { Self::Can } else { Self::cannot(why_not) }
    }

    /// Whether the VM can do it.
    #[must_use]
    pub const fn is_there(&self) -> bool {
        matches!(self, Self::Can)
    }
}

/// The bus on which a guest finds a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskBus {
    /// One SCSI controller: the disk's [`slot`](super::Disk::slot) is its target.
    Scsi,
    /// A PCI device of its own for each disk (virtio-blk): the VMM chooses the address.
    Pci,
}

/// How a VMM is given the tap of a network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TapHandover {
    /// As an open descriptor.
    Descriptor,
    /// By the name of the link, which the VMM opens.
    Name,
}
