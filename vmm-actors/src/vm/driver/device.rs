//! Devices for a running VM, as every driver takes them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A device for a running VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// A disk.
    Disk(Disk),
}

/// A disk of the guest that is a block device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Names it for [`Driver::remove_device`](super::Driver::remove_device), and is its serial number in the guest,
    /// by which the guest finds it whatever bus it is on.
    pub id: String,
    /// Differs from that of every other disk of the VM at the time. A driver whose bus has addresses of its own choice
    /// puts the disk there, and the guest is told of it as a hint.
    pub slot: u8,
    /// The host's device.
    pub path: PathBuf,
    /// Whether the guest may write.
    pub access: Access,
    /// Smallest unit that can be written, in bytes.
    pub logical_block_size: u32,
    /// Smallest unit that can be written without reading first, in bytes.
    pub physical_block_size: u32,
}

/// What a guest may do with a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}
