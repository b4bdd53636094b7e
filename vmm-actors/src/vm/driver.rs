//! What a VMM must be able to do for a pod.

use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use bulkhead_config::{Hypervisor, Machine};
use serde::{Deserialize, Serialize};

use super::{Acceleration, LaunchSpec, Size, VmError, VmRecord};
use crate::host::process::OwnedProcess;
use crate::pod_dir::PodDir;

/// Starts VMs of one kind and speaks to their API. One for the whole service.
///
/// The settings that it has are for VMs that it launches. What a running VM is its record says: an earlier instance may
/// have launched it by other settings.
///
/// What a driver leaves out it cannot do: the answer is [`VmError::Unsupported`].
#[async_trait]
pub trait Driver: fmt::Debug + Send + Sync + 'static {
    /// For the record and for Status.
    fn hypervisor(&self) -> Hypervisor;

    /// The driver and the machine type of this VM, for people.
    fn name(&self, vm: &VmRecord) -> String;

    /// Starts the VM's processes and answers when they run. Dropping the future ends what it had started.
    ///
    /// # Errors
    /// Whatever kept a process from running; none is left then.
    async fn launch(&self, spec: LaunchSpec) -> Result<Launched, VmError>;

    /// Asks the VMM what the guest is doing.
    ///
    /// # Errors
    /// [`VmError::Socket`] or [`VmError::Api`] when the VMM does not answer.
    async fn guest_state(&self, vm: &VmRecord) -> Result<GuestState, VmError>;

    /// Plugs a device into a running VM. One that is plugged in already stays.
    ///
    /// # Errors
    /// [`VmError::Unsupported`], or what the VMM's API says; the device is not plugged in then.
    async fn add_device(&self, vm: &VmRecord, _device: Device) -> Result<(), VmError> {
        Err(self.unsupported(vm, "add devices to a running VM"))
    }

    /// Unplugs the device that was added with this id, without waiting for the guest. None there is fine.
    ///
    /// # Errors
    /// [`VmError::Unsupported`], or what the VMM's API says.
    async fn remove_device(&self, vm: &VmRecord, _id: &str) -> Result<(), VmError> {
        Err(self.unsupported(vm, "remove devices from a running VM"))
    }

    /// How large a running VM is, and how large it can become while it runs.
    ///
    /// # Errors
    /// [`VmError::Unsupported`], or what the VMM's API says.
    async fn extent(&self, vm: &VmRecord) -> Result<Extent, VmError> {
        Err(self.unsupported(vm, "resize a running VM"))
    }

    /// Changes the number of processors and the memory of a running VM, and answers when the VMM says that it is so:
    /// its guest may have to be told to use them. A VM of that size already is fine.
    ///
    /// # Errors
    /// [`VmError::Unsupported`], [`VmError::NoRoom`] with nothing changed, [`VmError::NotResized`] when the guest did
    /// not take or give what it was to, or what the VMM's API says.
    async fn resize(&self, vm: &VmRecord, _to: Size) -> Result<Size, VmError> {
        Err(self.unsupported(vm, "resize a running VM"))
    }

    /// The answer of a driver that cannot.
    fn unsupported(&self, vm: &VmRecord, what: &'static str) -> VmError {
        VmError::Unsupported { driver: self.name(vm), what }
    }
}

/// The processes of a VM, armed.
#[derive(Debug)]
pub struct Launched {
    /// The VMM.
    pub vmm: OwnedProcess,
    /// The vsock helper; none for a VMM that serves vsock itself.
    pub vsock_helper: Option<OwnedProcess>,
    /// How the guest runs.
    pub acceleration: Acceleration,
    /// The machine type.
    pub machine: Machine,
    /// Whether it takes block devices of the host.
    pub block_volumes: bool,
}

impl Launched {
    /// What a successor must know.
    #[must_use]
    pub fn record(&self, hypervisor: Hypervisor, dir: PodDir) -> VmRecord {
        VmRecord {
            hypervisor,
            acceleration: self.acceleration,
            machine: Some(self.machine),
            block_volumes: self.block_volumes,
            vmm: self.vmm.identity().clone(),
            vsock_helper: self.vsock_helper.as_ref().map(|helper| helper.identity().clone()),
            dir,
        }
    }
}

/// How large a VM is, and can become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Now, by the VMM.
    pub has: Size,
    /// The most of each that it can get while it runs.
    pub most: Size,
}

/// What a guest is doing, by its VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// Its processors run.
    Running,
    /// They are stopped, for the reason that the VMM names.
    Stopped(String),
}

/// A device for a running VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// A disk.
    Disk(Disk),
}

/// A disk of the guest that is a block device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Names it for [`Driver::remove_device`], and is its serial number in the guest.
    pub id: String,
    /// The SCSI target at which the guest finds it.
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
