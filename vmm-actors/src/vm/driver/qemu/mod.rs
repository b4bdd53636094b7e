//! QEMU: `microvm` or `q35`, on KVM where it truly works, by emulation elsewhere. Its API is QMP; the guest's vsock
//! is served by `vhost-device-vsock`, one for each VM.

mod args;
mod clock;
mod disk;
mod error;
mod helper;
mod qmp;
mod resize;
mod trial;

use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use async_trait::async_trait;
use bulkhead_config::{Accelerator, Hypervisor, Machine, Qemu, Settings};

use serde::{Deserialize, Serialize};

use crate::host::process::{OwnedProcess, ProcessError, Spawn};
use crate::host::socket;
use crate::vm::driver::kvm_trial::{CpuBudget, KvmTrial};
use crate::vm::driver::payload;
use crate::vm::{
    Ability, Acceleration, Capabilities, Device, DiskBus, Driver, DriverState, GuestState, Hotplug,
    LaunchSpec, Launched, Size, Sizes, TapHandover, VmError, VmRecord,
};
use args::{CommandLine, Descriptors};
use error::QemuError;

/// Key of the VMM's program in the settings.
const PATH_SETTING: &str = "[qemu] path";

/// What a `microvm` lacks.
const NEEDS_Q35: &str = "which needs [qemu] machine = \"q35\"";
/// What no machine has yet.
const NOT_BUILT: &str = "which this release cannot";
/// What a VM without a controller for disks lacks.
const NO_CONTROLLER: &str = "its pod was made with [vm] block_volumes = false; set it to true, restart bulkhead-sandboxer and make the pod anew";

/// What the driver keeps with each VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct State {
    /// None in records of releases that did not write it: QEMU knows.
    machine: Option<Machine>,
    /// Whether it takes block devices of the host. Those of releases that did not write it do.
    block_volumes: bool,
}

impl Default for State {
    fn default() -> Self {
        Self { machine: None, block_volumes: true }
    }
}

impl State {
    fn of(vm: &VmRecord) -> Self {
        vm.state.unpack()
    }
}

/// Starts VMs by QEMU. One for the service: it knows whether KVM works here.
#[derive(Debug)]
pub(super) struct QemuDriver {
    settings: Qemu,
    kvm: KvmTrial,
}

impl QemuDriver {
    /// A driver with these settings. Nothing is started before [`probe`](Self::probe) or the first launch.
    pub(super) fn new(settings: &Settings) -> Self {
        let budget = match settings.qemu.accelerator {
            Accelerator::Kvm => CpuBudget::LONG,
            Accelerator::Auto | Accelerator::Tcg => CpuBudget::SHORT,
        };
        let vmm = trial::vmm(settings.qemu.path.clone(), &settings.guest.kernel);
        let kvm = KvmTrial::new(vmm, settings.sandboxer.run_dir.clone(), budget);
        Self { settings: settings.qemu.clone(), kvm }
    }

    async fn require_resize(&self, vm: &VmRecord) -> Result<(), VmError> {
        let can = Ability::when(machine_of(vm).await? == Machine::Q35, NEEDS_Q35);
        self.require(vm, "resize a running VM", &can)
    }

    fn spawn(
        &self,
        spec: LaunchSpec,
        acceleration: Acceleration,
        vsock: OwnedFd,
    ) -> Result<OwnedProcess, QemuError> {
        let api = spec.dir.vmm_sock();
        let api = socket::listen(&api).map_err(|source| QemuError::Socket {
            act: "listen on",
            path: api,
            source,
        })?;
        let mut fds = Numbered::default();
        let descriptors = Descriptors { api: fds.add(api.into()), vsock: fds.add(vsock), taps: Vec::new() };
        let LaunchSpec { nics, .. } = &spec;
        let taps = nics.iter().map(|nic| nic.tap.try_clone()).collect::<Result<Vec<_>, _>>();
        let taps = taps.map_err(|source| QemuError::StartVmm {
            setting: PATH_SETTING,
            source: ProcessError::Start {
                program: self.settings.path.clone(),
                step: "passing a tap",
                source,
            },
        })?;
        let descriptors =
            Descriptors { taps: taps.into_iter().map(|tap| fds.add(tap)).collect(), ..descriptors };
        let line = CommandLine {
            machine: self.settings.machine,
            acceleration,
            tsc_khz: match acceleration {
                Acceleration::Hardware => None,
                Acceleration::Emulation => clock::tsc_khz(),
            },
            spec: &spec,
            descriptors: &descriptors,
            extra_args: &self.settings.extra_args,
        };
        let start = Spawn {
            program: self.settings.path.clone(),
            args: line.args(),
            output: spec.dir.vmm_output(),
            fds: fds.list,
            cgroup: spec.cgroup.clone(),
            env: Vec::new(),
        };
        OwnedProcess::spawn(start).map_err(|source| QemuError::StartVmm { setting: PATH_SETTING, source })
    }
}

#[async_trait]
impl Driver for QemuDriver {
    fn hypervisor(&self) -> Hypervisor {
        Hypervisor::Qemu
    }

    async fn probe(&self) -> Result<Acceleration, VmError> {
        match self.settings.accelerator {
            Accelerator::Tcg => Ok(Acceleration::Emulation),
            Accelerator::Auto => Ok(match self.kvm.outcome().await {
                Ok(()) => Acceleration::Hardware,
                Err(_reported) => Acceleration::Emulation,
            }),
            Accelerator::Kvm => match self.kvm.outcome().await {
                Ok(()) => Ok(Acceleration::Hardware),
                Err(reason) => Err(QemuError::KvmUnusable { reason }.into()),
            },
        }
    }

    fn name(&self, vm: &VmRecord) -> String {
        match State::of(vm).machine {
            Some(Machine::Q35) => "qemu/q35".to_owned(),
            Some(Machine::Microvm) => "qemu/microvm".to_owned(),
            None => "qemu".to_owned(),
        }
    }

    fn capabilities(&self, vm: &VmRecord) -> Capabilities {
        let State { machine, block_volumes } = State::of(vm);
        // Of a VM whose record does not say, only QEMU knows: it is asked, and then says no if need be.
        let is_q35 = machine != Some(Machine::Microvm);
        Capabilities {
            shared_fs: Ability::Can,
            disk_bus: DiskBus::Scsi,
            tap: TapHandover::Descriptor,
            hotplug: Hotplug {
                disk: Ability::when(block_volumes, NO_CONTROLLER),
                net: Ability::cannot(NOT_BUILT),
                fs: Ability::cannot(NOT_BUILT),
                vfio: Ability::cannot(NOT_BUILT),
            },
            resize: Ability::when(is_q35, NEEDS_Q35),
            snapshot: Ability::cannot(NOT_BUILT),
        }
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Launched, VmError> {
        readable("[guest] kernel", &spec.kernel)?;
        readable("[guest] image", &spec.image)?;
        let acceleration = self.probe().await?;
        let (vsock_helper, vsock) = helper::start(&self.settings.vsock_path, &spec).await?;
        let state = State { machine: Some(self.settings.machine), block_volumes: spec.block_volumes };
        let vmm = self.spawn(spec, acceleration, vsock)?;
        let state = DriverState::pack(&state);
        Ok(Launched { vmm, vsock_helper: Some(vsock_helper), acceleration, state })
    }

    async fn guest_state(&self, vm: &VmRecord) -> Result<GuestState, VmError> {
        Ok(qmp::guest_state(&vm.dir.vmm_sock()).await?)
    }

    async fn add_device(&self, vm: &VmRecord, device: Device) -> Result<(), VmError> {
        match device {
            Device::Disk(disk) => {
                self.require(vm, "take block devices", &self.capabilities(vm).hotplug.disk)?;
                Ok(disk::add(&vm.dir.vmm_sock(), &disk, machine_of(vm).await?).await?)
            }
        }
    }

    async fn remove_device(&self, vm: &VmRecord, id: &str) -> Result<(), VmError> {
        Ok(disk::remove(&vm.dir.vmm_sock(), id).await?)
    }

    async fn sizes(&self, vm: &VmRecord) -> Result<Sizes, VmError> {
        self.require_resize(vm).await?;
        resize::sizes(&vm.dir.vmm_sock()).await
    }

    async fn resize(&self, vm: &VmRecord, to: Size) -> Result<Size, VmError> {
        self.require_resize(vm).await?;
        resize::resize(&vm.dir.vmm_sock(), to).await
    }
}

/// The machine type of a running VM, whatever the settings say by now.
async fn machine_of(vm: &VmRecord) -> Result<Machine, QemuError> {
    match State::of(vm).machine {
        Some(machine) => Ok(machine),
        None => qmp::machine(&vm.dir.vmm_sock()).await,
    }
}

/// Says early and by name what QEMU would say late and in its own words.
fn readable(setting: &'static str, path: &Path) -> Result<(), QemuError> {
    payload::readable(path).map_err(|source| QemuError::Unusable { setting, path: path.to_owned(), source })
}

/// Descriptors for a child, numbered from 3 on.
#[derive(Debug, Default)]
struct Numbered {
    list: Vec<(OwnedFd, RawFd)>,
}

impl Numbered {
    fn add(&mut self, fd: OwnedFd) -> RawFd {
        let number = self.list.last().map_or(3, |(_, number)| number.saturating_add(1));
        self.list.push((fd, number));
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A VM as its record says.
    fn vm(state: &str) -> VmRecord {
        let process = r#"{"pid": 2, "start_time": 3, "boot_id": "b"}"#;
        let comma = if state.is_empty() { "" } else { "," };
        serde_json::from_str(&format!(
            r#"{{"hypervisor": "qemu", "acceleration": "tcg", "vmm": {process}, "vsock_helper": null, "dir": "/run/b/s/p"
                {comma} {state}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn a_vm_can_do_what_its_record_says_whatever_the_settings_are() {
        let mut settings = Settings::default();
        settings.qemu.machine = Machine::Microvm;
        let driver = QemuDriver::new(&settings);
        let microvm = driver.capabilities(&vm(r#""machine": "microvm", "block_volumes": true"#));
        assert_eq!(microvm.resize, Ability::cannot(NEEDS_Q35));
        assert_eq!(microvm.hotplug.disk, Ability::Can);
        let q35 = driver.capabilities(&vm(r#""machine": "q35", "block_volumes": false"#));
        assert_eq!((q35.resize, q35.hotplug.disk), (Ability::Can, Ability::cannot(NO_CONTROLLER)));
        let unknown = vm("");
        assert_eq!(driver.name(&unknown), "qemu");
        let unknown = driver.capabilities(&unknown);
        assert!(unknown.resize.is_there() && unknown.hotplug.disk.is_there(), "QEMU is asked: {unknown:?}");
    }

    #[test]
    fn the_drivers_state_lies_beside_the_rest_of_the_record() {
        let state = State { machine: Some(Machine::Q35), block_volumes: true };
        let record = VmRecord { state: DriverState::pack(&state), ..vm("") };
        let written = serde_json::to_value(&record).unwrap();
        assert_eq!((&written["machine"], &written["block_volumes"]), (&"q35".into(), &true.into()));
        let read: VmRecord = serde_json::from_value(written).unwrap();
        assert_eq!((State::of(&read), &read), (state, &record));
    }
}
