//! QEMU: `microvm` or `q35`, on KVM where it truly works, by emulation elsewhere. Its API is QMP; the guest's vsock
//! is served by `vhost-device-vsock`, one for each VM.

mod accelerator;
mod args;
mod clock;
mod disk;
mod helper;
mod qmp;
mod resize;

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use async_trait::async_trait;
use bulkhead_config::{Accelerator, Hypervisor, Machine, Qemu, Settings};

use super::{
    Acceleration, Device, Driver, Extent, GuestState, LaunchSpec, Launched, Size, VmError, VmRecord,
};
use crate::host::process::{OwnedProcess, ProcessError, Spawn};
use crate::host::socket;
use accelerator::{KvmTrial, Patience};
use args::{CommandLine, Descriptors};

/// Key of the VMM's program in the settings.
const PATH_SETTING: &str = "[qemu] path";

/// What a `microvm` cannot, and what can.
const RESIZE: &str = "resize a running VM, which needs [qemu] machine = \"q35\"";

/// Starts VMs by QEMU. One for the service: it knows whether KVM works here.
#[derive(Debug)]
pub struct QemuDriver {
    settings: Qemu,
    kvm: KvmTrial,
}

impl QemuDriver {
    /// A driver with these settings. Nothing is started before [`probe`](Self::probe) or the first launch.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let patience = match settings.qemu.accelerator {
            Accelerator::Kvm => Patience::LONG,
            Accelerator::Auto | Accelerator::Tcg => Patience::SHORT,
        };
        let (qemu, kernel) = (settings.qemu.path.clone(), settings.guest.kernel.clone());
        let kvm = KvmTrial::new(qemu, kernel, settings.sandboxer.run_dir.clone(), patience);
        Self { settings: settings.qemu.clone(), kvm }
    }

    /// Finds out how guests will run. Takes up to some seconds the first time where `/dev/kvm` exists, so the service
    /// does it when it starts; a launch waits for it.
    ///
    /// # Errors
    /// [`VmError::KvmUnusable`] when KVM is demanded and does not work.
    pub async fn probe(&self) -> Result<Acceleration, VmError> {
        match self.settings.accelerator {
            Accelerator::Tcg => Ok(Acceleration::Tcg),
            Accelerator::Auto => Ok(match self.kvm.outcome().await {
                Ok(()) => Acceleration::Kvm,
                Err(_reported) => Acceleration::Tcg,
            }),
            Accelerator::Kvm => match self.kvm.outcome().await {
                Ok(()) => Ok(Acceleration::Kvm),
                Err(reason) => Err(VmError::KvmUnusable { reason }),
            },
        }
    }

    fn spawn(
        &self,
        spec: LaunchSpec,
        acceleration: Acceleration,
        vsock: OwnedFd,
    ) -> Result<OwnedProcess, VmError> {
        let api = spec.dir.vmm_sock();
        let api =
            socket::listen(&api).map_err(|source| VmError::Socket { act: "listen on", path: api, source })?;
        let mut fds = Numbered::default();
        let descriptors = Descriptors { api: fds.add(api.into()), vsock: fds.add(vsock), taps: Vec::new() };
        let LaunchSpec { nics, .. } = &spec;
        let taps = nics.iter().map(|nic| nic.tap.try_clone()).collect::<Result<Vec<_>, _>>();
        let taps = taps.map_err(|source| VmError::StartVmm {
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
                Acceleration::Kvm => None,
                Acceleration::Tcg => clock::tsc_khz(),
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
        OwnedProcess::spawn(start).map_err(|source| VmError::StartVmm { setting: PATH_SETTING, source })
    }
}

#[async_trait]
impl Driver for QemuDriver {
    fn hypervisor(&self) -> Hypervisor {
        Hypervisor::Qemu
    }

    fn name(&self, vm: &VmRecord) -> String {
        match vm.machine {
            Some(Machine::Q35) => "qemu/q35".to_owned(),
            Some(Machine::Microvm) => "qemu/microvm".to_owned(),
            None => "qemu".to_owned(),
        }
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Launched, VmError> {
        readable("[guest] kernel", &spec.kernel)?;
        readable("[guest] image", &spec.image)?;
        let acceleration = self.probe().await?;
        let (vsock_helper, vsock) = helper::start(&self.settings.vsock_path, &spec).await?;
        let block_volumes = spec.block_volumes;
        let vmm = self.spawn(spec, acceleration, vsock)?;
        Ok(Launched {
            vmm,
            vsock_helper: Some(vsock_helper),
            acceleration,
            machine: self.settings.machine,
            block_volumes,
        })
    }

    async fn guest_state(&self, vm: &VmRecord) -> Result<GuestState, VmError> {
        qmp::guest_state(&vm.dir.vmm_sock()).await
    }

    async fn add_device(&self, vm: &VmRecord, device: Device) -> Result<(), VmError> {
        match device {
            Device::Disk(disk) => disk::add(&vm.dir.vmm_sock(), &disk, machine_of(vm).await?).await,
        }
    }

    async fn remove_device(&self, vm: &VmRecord, id: &str) -> Result<(), VmError> {
        disk::remove(&vm.dir.vmm_sock(), id).await
    }

    async fn extent(&self, vm: &VmRecord) -> Result<Extent, VmError> {
        match machine_of(vm).await? {
            Machine::Q35 => resize::extent(&vm.dir.vmm_sock()).await,
            Machine::Microvm => Err(self.unsupported(vm, RESIZE)),
        }
    }

    async fn resize(&self, vm: &VmRecord, to: Size) -> Result<Size, VmError> {
        match machine_of(vm).await? {
            Machine::Q35 => resize::resize(&vm.dir.vmm_sock(), to).await,
            Machine::Microvm => Err(self.unsupported(vm, RESIZE)),
        }
    }
}

/// The machine type of a running VM, whatever the settings say by now.
async fn machine_of(vm: &VmRecord) -> Result<Machine, VmError> {
    match vm.machine {
        Some(machine) => Ok(machine),
        None => qmp::machine(&vm.dir.vmm_sock()).await,
    }
}

/// Says early and by name what QEMU would say late and in its own words.
fn readable(setting: &'static str, path: &Path) -> Result<(), VmError> {
    std::fs::File::open(path)
        .and_then(
            |file| if file.metadata()?.is_file() { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) },
        )
        .map_err(|source| VmError::Unusable { setting, path: path.to_owned(), source })
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
