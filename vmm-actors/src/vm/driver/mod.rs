//! What a VMM must be able to do for a pod, and one folder for each VMM that can. No other folder names a VMM.

mod api;
mod capabilities;
mod cloud_hypervisor;
mod device;
mod drivers;
mod kvm_trial;
mod payload;
mod qemu;

pub use api::{Driver, GuestState, Launched, Sizes};
pub use capabilities::{Ability, Capabilities, DiskBus, Hotplug, TapHandover};
pub use device::{Access, Device, Disk};
pub use drivers::Drivers;
