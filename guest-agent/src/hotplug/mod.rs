//! What the host adds while the VM runs, and takes away again: disks, CPUs and memory. A device is found by what its bus
//! says, so that it does not matter which VMM runs the guest.

mod block;
mod disks;
mod drivers;
pub(crate) mod resize;
mod scsi;

pub(crate) use block::Number;
pub(crate) use disks::{DiskError, Disks};
