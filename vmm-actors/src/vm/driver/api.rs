//! The trait of a driver, and what it answers.

use std::fmt;

use async_trait::async_trait;
use bulkhead_config::Hypervisor;
use serde::Serialize;

use super::capabilities::{Ability, Capabilities};
use super::device::Device;
use crate::host::process::OwnedProcess;
use crate::runtime_dir::VmDir;
use crate::vm::error::VmError;
use crate::vm::launch::LaunchSpec;
use crate::vm::record::{Acceleration, DriverState, VmRecord};
use crate::vm::size::Size;

/// Starts VMs of one kind and speaks to their API. One for the whole service.
///
/// The settings that it has are for VMs that it launches. What a running VM is its record says: an earlier instance may
/// have launched it by other settings.
#[async_trait]
pub trait Driver: fmt::Debug + Send + Sync + 'static {
    /// For the record and for Status.
    fn hypervisor(&self) -> Hypervisor;

    /// Finds out how guests will run on this host. May take some seconds the first time, so the service asks when it
    /// starts; a launch waits for the answer.
    ///
    /// # Errors
    /// [`VmError::Driver`] if the settings ask for something that this host does not have.
    async fn probe(&self) -> Result<Acceleration, VmError>;

    /// The driver and the machine type of this VM, for people.
    fn name(&self, vm: &VmRecord) -> String;

    /// What this VM can do. What is not among it, callers do not ask for; the methods below refuse it.
    fn capabilities(&self, vm: &VmRecord) -> Capabilities;

    /// Starts the VM's processes and answers when they run. Dropping the future ends what it had started.
    ///
    /// # Errors
    /// Whatever kept a process from running; none is left then.
    async fn launch(&self, spec: LaunchSpec) -> Result<Launched, VmError>;

    /// Asks the VMM what the guest is doing.
    ///
    /// # Errors
    /// [`VmError::Driver`] if the VMM does not answer.
    async fn guest_state(&self, vm: &VmRecord) -> Result<GuestState, VmError>;

    /// Plugs a device into a running VM. Idempotent: a device that is plugged in already stays.
    ///
    /// # Errors
    /// [`VmError::Unsupported`], or [`VmError::Driver`] with what the VMM says; the device is not plugged in then.
    async fn add_device(&self, vm: &VmRecord, device: Device) -> Result<(), VmError>;

    /// Unplugs the device that was added with this id, without waiting for the guest. A no-op if no device has this id.
    ///
    /// # Errors
    /// [`VmError::Unsupported`], or [`VmError::Driver`] with what the VMM says.
    async fn remove_device(&self, vm: &VmRecord, id: &str) -> Result<(), VmError>;

    /// How large a running VM is, and how large it can become while it runs.
    ///
    /// # Errors
    /// [`VmError::Unsupported`], or [`VmError::Driver`] with what the VMM says.
    async fn sizes(&self, vm: &VmRecord) -> Result<Sizes, VmError>;

    /// Changes the number of processors and the memory of a running VM, and answers when the VMM says that it is so:
    /// its guest may have to be told to use them. Idempotent.
    ///
    /// # Errors
    /// [`VmError::Unsupported`], [`VmError::NoRoom`] with nothing changed, [`VmError::NotResized`] when the guest did
    /// not take or give what it was to, or [`VmError::Driver`] with what the VMM says.
    async fn resize(&self, vm: &VmRecord, to: Size) -> Result<Size, VmError>;

    /// Returns an error if the VM cannot do `what`.
    ///
    /// # Errors
    /// [`VmError::Unsupported`] with the driver's name and the reason.
    fn require(&self, vm: &VmRecord, what: &'static str, ability: &Ability) -> Result<(), VmError> {
        match ability {
            Ability::Can => Ok(()),
            Ability::Cannot(why) => {
                Err(VmError::Unsupported { driver: self.name(vm), what, why: why.clone().into_owned() })
            }
        }
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
    /// What the driver will want to know of this VM.
    pub state: DriverState,
}

impl Launched {
    /// What a successor must know.
    #[must_use]
    pub fn record(&self, hypervisor: Hypervisor, dir: VmDir) -> VmRecord {
        VmRecord {
            hypervisor,
            acceleration: self.acceleration,
            vmm: self.vmm.identity().clone(),
            vsock_helper: self.vsock_helper.as_ref().map(|helper| helper.identity().clone()),
            dir,
            state: self.state.clone(),
        }
    }
}

/// How large a VM is, and can become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Now, by the VMM.
    pub now: Size,
    /// The most of each that it can get while it runs.
    pub limit: Size,
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
