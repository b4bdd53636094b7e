//! Hotplug: disks, CPUs and memory that the host adds while the VM runs, and disks that it takes away. Devices are
//! found by what their buses say, so that it does not matter which VMM runs the guest.

mod block;
mod disks;
mod drivers;
pub(crate) mod resize;
mod scsi;

pub(crate) use block::Number;
pub(crate) use disks::{DiskError, Disks};
