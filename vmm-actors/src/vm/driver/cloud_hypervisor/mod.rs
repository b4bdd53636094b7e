//! Cloud Hypervisor: PCI, on KVM alone. Its API is HTTP on a unix socket; it serves the guest's vsock itself.

mod api;
mod body;
mod boot;
mod carrier;
mod disk;
mod error;
mod info;
mod resize;
mod trial;
mod version;

use async_trait::async_trait;
use bulkhead_config::{CloudHypervisor, Hypervisor, Settings};
use serde::{Deserialize, Serialize};

use crate::vm::driver::kvm_trial::KvmTrial;
use crate::vm::{
    Ability, Acceleration, Capabilities, Device, DiskBus, Driver, DriverState, GuestState, Hotplug,
    LaunchSpec, Launched, Size, Sizes, TapHandover, VmError, VmRecord,
};
use api::Api;
use error::CloudHypervisorError;
use info::Info;

/// What this driver has not yet.
const NOT_BUILT: &str = "which this release cannot";
/// What a VM was made without.
const NO_BLOCK_VOLUMES: &str = "its pod was made with [vm] block_volumes = false; set it to true, restart bulkhead-sandboxer and make the pod anew";

/// What the driver keeps with each VM.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct State {
    /// The version of its VMM, as that gave it.
    version: String,
    /// Whether it takes block devices of the host.
    block_volumes: bool,
}

/// Starts VMs by Cloud Hypervisor. One for the service: it knows whether KVM works here.
#[derive(Debug)]
pub(super) struct CloudHypervisorDriver {
    settings: CloudHypervisor,
    kvm: KvmTrial,
}

impl CloudHypervisorDriver {
    /// A driver with these settings. Nothing is started before [`probe`](Driver::probe) or the first launch.
    pub(super) fn new(settings: &Settings) -> Self {
        let own = settings.cloud_hypervisor.clone();
        let vmm = trial::vmm(own.path.clone(), &settings.guest.kernel);
        let kvm = KvmTrial::new(vmm, settings.sandboxer.run_dir.clone(), trial::BUDGET);
        Self { kvm, settings: own }
    }
}

/// The API of a VM: its socket is where its record says.
fn api(vm: &VmRecord) -> Api {
    Api::new(vm.dir.vmm_sock())
}

#[async_trait]
impl Driver for CloudHypervisorDriver {
    fn hypervisor(&self) -> Hypervisor {
        Hypervisor::CloudHypervisor
    }

    async fn probe(&self) -> Result<Acceleration, VmError> {
        version::of_program(&self.settings.path).await?;
        match self.kvm.outcome().await {
            Ok(()) => Ok(Acceleration::Hardware),
            Err(reason) => Err(CloudHypervisorError::KvmUnusable { reason }.into()),
        }
    }

    fn name(&self, vm: &VmRecord) -> String {
        let State { version, .. } = vm.state.unpack();
        if version.is_empty() { "cloud-hypervisor".to_owned() } else { format!("cloud-hypervisor/{version}") }
    }

    fn capabilities(&self, vm: &VmRecord) -> Capabilities {
        let State { block_volumes, .. } = vm.state.unpack();
        Capabilities {
            shared_fs: Ability::Can,
            disk_bus: DiskBus::Pci,
            tap: TapHandover::Descriptor,
            hotplug: Hotplug {
                disk: Ability::when(block_volumes, NO_BLOCK_VOLUMES),
                net: Ability::cannot(NOT_BUILT),
                fs: Ability::cannot(NOT_BUILT),
                vfio: Ability::cannot(NOT_BUILT),
            },
            resize: Ability::Can,
            snapshot: Ability::cannot(NOT_BUILT),
        }
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Launched, VmError> {
        let acceleration = self.probe().await?;
        let vmm = boot::spawn(&self.settings.path, &self.settings.extra_args, &spec)?;
        let version = boot::boot(&Api::new(spec.dir.vmm_sock()), &vmm, &spec).await?;
        let state = DriverState::pack(&State { version, block_volumes: spec.block_volumes });
        Ok(Launched { vmm, vsock_helper: None, acceleration, state })
    }

    async fn guest_state(&self, vm: &VmRecord) -> Result<GuestState, VmError> {
        Ok(Info::of(&api(vm)).await?.guest_state())
    }

    async fn add_device(&self, vm: &VmRecord, device: Device) -> Result<(), VmError> {
        match device {
            Device::Disk(disk) => {
                self.require(vm, "take block devices", &self.capabilities(vm).hotplug.disk)?;
                Ok(disk::add(&api(vm), &disk).await?)
            }
        }
    }

    async fn remove_device(&self, vm: &VmRecord, id: &str) -> Result<(), VmError> {
        Ok(disk::remove(&api(vm), id).await?)
    }

    async fn sizes(&self, vm: &VmRecord) -> Result<Sizes, VmError> {
        resize::sizes(&api(vm)).await
    }

    async fn resize(&self, vm: &VmRecord, to: Size) -> Result<Size, VmError> {
        resize::resize(&api(vm), to).await
    }
}

#[cfg(test)]
mod tests;
