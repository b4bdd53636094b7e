//! What a VMM must be able to do for a pod.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;

use async_trait::async_trait;
use bulkhead_config::Hypervisor;
use serde::Serialize;

use super::{Acceleration, LaunchSpec, VmError, VmRecord};
use crate::host::process::OwnedProcess;
use crate::pod_dir::PodDir;

/// Starts VMs of one kind and speaks to their API. One for the whole service.
///
/// What a driver leaves out it cannot do: the answer is [`VmError::Unsupported`].
#[async_trait]
pub trait Driver: fmt::Debug + Send + Sync + 'static {
    /// For the record and for Status.
    fn hypervisor(&self) -> Hypervisor;

    /// The driver and its machine type, for people.
    fn name(&self) -> String;

    /// Starts the VM's processes and answers when they run. Dropping the future ends what it had started.
    ///
    /// # Errors
    /// Whatever kept a process from running; none is left then.
    async fn launch(&self, spec: LaunchSpec) -> Result<Launched, VmError>;

    /// Asks the VMM what the guest is doing.
    ///
    /// # Errors
    /// [`VmError::Socket`] or [`VmError::Api`] when the VMM does not answer.
    async fn guest_state(&self, dir: &PodDir) -> Result<GuestState, VmError>;

    /// Plugs a device into a running VM.
    ///
    /// # Errors
    /// [`VmError::Unsupported`], or what the VMM's API says.
    async fn add_device(&self, _dir: &PodDir, _device: Device) -> Result<(), VmError> {
        Err(self.unsupported("add devices to a running VM"))
    }

    /// Unplugs the device that was added with this id.
    ///
    /// # Errors
    /// [`VmError::Unsupported`], or what the VMM's API says.
    async fn remove_device(&self, _dir: &PodDir, _id: &str) -> Result<(), VmError> {
        Err(self.unsupported("remove devices from a running VM"))
    }

    /// Changes the number of processors and the memory of a running VM.
    ///
    /// # Errors
    /// [`VmError::Unsupported`], or what the VMM's API says.
    async fn resize(
        &self,
        _dir: &PodDir,
        _vcpus: NonZeroU32,
        _memory_mib: NonZeroU32,
    ) -> Result<(), VmError> {
        Err(self.unsupported("resize a running VM"))
    }

    /// The answer of a driver that cannot.
    fn unsupported(&self, what: &'static str) -> VmError {
        VmError::Unsupported { driver: self.name(), what }
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
}

impl Launched {
    /// What a successor must know.
    #[must_use]
    pub fn record(&self, hypervisor: Hypervisor, dir: PodDir) -> VmRecord {
        VmRecord {
            hypervisor,
            acceleration: self.acceleration,
            vmm: self.vmm.identity().clone(),
            vsock_helper: self.vsock_helper.as_ref().map(|helper| helper.identity().clone()),
            dir,
        }
    }
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
    /// A block device backed by a file or device of the host.
    Block {
        /// Names it for [`Driver::remove_device`].
        id: String,
        /// The backing file.
        path: PathBuf,
        /// Whether the guest may write.
        access: Access,
    },
}

/// What a guest may do with a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}
