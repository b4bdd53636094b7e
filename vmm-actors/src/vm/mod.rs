//! The virtual machine of one pod.
//!
//! | | |
//! |---|---|
//! | Owns | the VMM process, the vsock helper beside it, the way to the VMM's API |
//! | Hears | [`Boot`], [`Keep`], [`Shutdown`], [`AddDevice`], [`RemoveDevice`], [`Measure`], [`Resize`], [`Observe`] |
//! | Tells | [`VmmExited`], once, to its parent |
//! | Ends when | its parent drops the address; it answers for an ended VM until then |
//! | Queue | 16: one parent that has at most a few commands under way |
//!
//! [`Boot`] answers when the processes run, not when the guest does: that is the agent's announcement to tell. Until
//! [`Keep`] the end of this actor is the end of the VM; from then on the processes belong to the durable record.
//! The guest's console goes to a file that is emptied when it has grown too large; while no sandboxer runs, nobody does
//! that, and the file ends at the bound of the pod's directory. The death of the vsock helper is the end of the VM:
//! nothing can talk to the guest any more.

mod actor;
mod driver;
mod error;
mod launch;
mod messages;
mod output;
mod record;
mod size;

pub use actor::Vm;
pub use driver::{
    Ability, Access, Capabilities, Device, Disk, DiskBus, Driver, Drivers, GuestState, Hotplug, Launched,
    Sizes, TapHandover,
};
pub use error::{DriverError, VmError};
pub use launch::{LaunchSpec, Nic, Share};
pub use messages::{
    AddDevice, Boot, Booted, EndCause, Keep, Measure, Observe, RemoveDevice, Resize, Shutdown, VmView,
    VmmExited,
};
pub use record::{Acceleration, DriverState, VmRecord};
pub use size::Size;
