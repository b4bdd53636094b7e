//! A driver whose VMM is an idle process and whose guest lives in this one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bulkhead_config::Hypervisor;
use serde::{Deserialize, Serialize};

use super::fault::{EAT, Fault};
use super::guest::FakeGuest;
use crate::host::process::{OwnedProcess, ProcessIdentity, Spawn};
use crate::runtime_dir::VmDir;
use crate::vm::{
    Ability, Acceleration, Capabilities, Device, Disk, DiskBus, Driver, DriverError, DriverState, GuestState,
    Hotplug, LaunchSpec, Launched, Size, Sizes, TapHandover, VmError, VmRecord,
};

/// What the fake driver keeps with each VM.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct FakeState {
    fixed_size: bool,
    block_volumes: bool,
}

impl Default for FakeState {
    fn default() -> Self {
        Self { fixed_size: false, block_volumes: true }
    }
}

/// What a fake VMM says when it does not do what it is asked.
#[derive(Debug, thiserror::Error)]
#[error("the fake VMM: {0}")]
struct FakeError(String);

impl From<FakeError> for VmError {
    fn from(error: FakeError) -> Self {
        Self::Driver(DriverError::new(error, false))
    }
}

/// Launches fake VMs. Scripted faults are used up in order, one for each launch; without one all is well.
#[derive(Debug, Default)]
pub struct FakeDriver {
    state: Mutex<State>,
    boot_time: Duration,
    with_vsock_helper: bool,
    room: Option<Size>,
    fixed_size: bool,
}

#[derive(Debug, Default)]
struct State {
    faults: std::collections::VecDeque<Fault>,
    launched: Vec<ProcessIdentity>,
    guests: Vec<FakeGuest>,
    helpers: Vec<ProcessIdentity>,
    resized: Vec<(u32, u32)>,
    disk_fault: Option<Fault>,
    disks: Vec<Disk>,
    disk_calls: Vec<String>,
    sizes: BTreeMap<PathBuf, (Size, Fault)>,
    nameless: bool,
}

impl FakeDriver {
    /// A driver whose guests announce themselves `boot_time` after their launch.
    #[must_use]
    pub fn new(boot_time: Duration) -> Self {
        Self { boot_time, ..Self::default() }
    }

    /// Scripts the next launch that has no script yet.
    #[must_use]
    pub fn then(self, fault: Fault) -> Self {
        self.state().faults.push_back(fault);
        self
    }

    /// Gives every VM a vsock helper: one more idle process.
    #[must_use]
    pub fn with_vsock_helper(self) -> Self {
        Self { with_vsock_helper: true, ..self }
    }

    /// Lets VMs grow to this while they run.
    #[must_use]
    pub fn with_room(self, room: Size) -> Self {
        Self { room: Some(room), ..self }
    }

    /// Launches VMs whose size cannot change. Those of other instances are what their records say.
    #[must_use]
    pub fn with_fixed_size(self) -> Self {
        Self { fixed_size: true, ..self }
    }

    /// Takes this VM, which another instance launched, for one of this size.
    #[must_use]
    pub fn with_vm(self, dir: &VmDir, size: Size) -> Self {
        self.state().sizes.insert(dir.path().to_owned(), (size, Fault::None));
        self
    }

    /// What this VM has.
    #[must_use]
    pub fn size(&self, dir: &VmDir) -> Option<Size> {
        self.state().sizes.get(dir.path()).map(|(size, _)| *size)
    }

    /// What VMs were resized to: processors, and memory in MiB.
    #[must_use]
    pub fn resized(&self) -> Vec<(u32, u32)> {
        self.state().resized.clone()
    }

    /// The disks that are plugged in, in order, whatever VM they are in.
    #[must_use]
    pub fn disks(&self) -> Vec<Disk> {
        self.state().disks.clone()
    }

    /// What was plugged in and out, in order: `+disk0`, `-disk0`.
    #[must_use]
    pub fn disk_calls(&self) -> Vec<String> {
        self.state().disk_calls.clone()
    }

    /// As if a predecessor's VMM had this disk.
    #[must_use]
    pub fn with_disks(self, disks: Vec<Disk>) -> Self {
        self.state().disks = disks;
        self
    }

    /// Nothing goes wrong with disks any more.
    pub fn heal_disks(&self) {
        self.state().disk_fault = None;
    }

    /// Every vsock helper that was ever started, in order.
    #[must_use]
    pub fn vsock_helpers(&self) -> Vec<ProcessIdentity> {
        self.state().helpers.clone()
    }

    /// Whoever asks for the driver's name next panics.
    pub fn panic_once(&self) {
        self.state().nameless = true;
    }

    /// Every VMM that was ever started, in order.
    #[must_use]
    pub fn launched(&self) -> Vec<ProcessIdentity> {
        self.state().launched.clone()
    }

    /// What the guests of this sandbox were asked, in order: the names of calls.
    #[must_use]
    pub fn calls(&self, sandbox: &str) -> Vec<String> {
        self.state()
            .guests
            .iter()
            .filter(|guest| guest.owner() == sandbox)
            .flat_map(FakeGuest::calls)
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Driver for FakeDriver {
    fn hypervisor(&self) -> Hypervisor {
        Hypervisor::default()
    }

    async fn probe(&self) -> Result<Acceleration, VmError> {
        Ok(Acceleration::Emulation)
    }

    #[allow(clippy::panic, reason = "a test asked for it")]
    fn name(&self, vm: &VmRecord) -> String {
        if std::mem::take(&mut self.state().nameless) {
            panic!("the fake driver was told to panic");
        }
        if vm.state.unpack::<FakeState>().fixed_size { "fake/fixed" } else { "fake" }.to_owned()
    }

    fn capabilities(&self, vm: &VmRecord) -> Capabilities {
        let FakeState { fixed_size, block_volumes } = vm.state.unpack();
        let cannot = || Ability::cannot("which no fake can");
        Capabilities {
            shared_fs: Ability::Can,
            disk_bus: DiskBus::Scsi,
            tap: TapHandover::Descriptor,
            hotplug: Hotplug {
                disk: Ability::when(
                    block_volumes,
                    "its pod was made with [vm] block_volumes = false; set it to true",
                ),
                net: cannot(),
                fs: cannot(),
                vfio: cannot(),
            },
            resize: Ability::when(!fixed_size && self.room.is_some(), "which this fake was told not to"),
            snapshot: cannot(),
        }
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Launched, VmError> {
        let fault = self.state().faults.pop_front().unwrap_or_default();
        if fault == Fault::LaunchFails {
            let (driver, why) = ("fake".to_owned(), "as it was told".to_owned());
            return Err(VmError::Unsupported { driver, what: "launch what is to fail", why });
        }
        if fault == Fault::LaunchHangs {
            return std::future::pending().await;
        }
        if matches!(fault, Fault::RefusesDisk(_) | Fault::KeepsDisks) {
            self.state().disk_fault = Some(fault.clone());
        }
        self.state().sizes.insert(spec.dir.path().to_owned(), (spec.size, fault.clone()));
        let script = script(&fault);
        let vmm = start(&spec, &script, spec.dir.vmm_output())?;
        let helper =
            if self.with_vsock_helper { Some(start(&spec, IDLE, spec.dir.vsock_output())?) } else { None };
        let guest = FakeGuest::start(spec.dir.clone(), vmm.identity().clone(), fault, self.boot_time)
            .map_err(|error| {
                FakeError(format!("cannot listen on {}: {error}", spec.dir.vsock().display()))
            })?;
        let mut state = self.state();
        state.launched.push(vmm.identity().clone());
        state.helpers.extend(helper.as_ref().map(|helper| helper.identity().clone()));
        state.guests.push(guest);
        Ok(Launched {
            vmm,
            vsock_helper: helper,
            acceleration: Acceleration::Emulation,
            state: DriverState::pack(&FakeState {
                fixed_size: self.fixed_size,
                block_volumes: spec.block_volumes,
            }),
        })
    }

    async fn guest_state(&self, _: &VmRecord) -> Result<GuestState, VmError> {
        Ok(GuestState::Running)
    }

    async fn add_device(&self, _: &VmRecord, Device::Disk(disk): Device) -> Result<(), VmError> {
        // As long as a VMM may take.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut state = self.state();
        state.disk_calls.push(format!("+{}", disk.id));
        if let Some(Fault::RefusesDisk(path)) = &state.disk_fault
            && disk.path.ends_with(path)
        {
            return Err(FakeError(format!("told to refuse {path}")).into());
        }
        if state.disks.iter().all(|there| there.id != disk.id) {
            state.disks.push(disk);
        }
        Ok(())
    }

    async fn remove_device(&self, _: &VmRecord, id: &str) -> Result<(), VmError> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut state = self.state();
        state.disk_calls.push(format!("-{id}"));
        if state.disk_fault == Some(Fault::KeepsDisks) {
            return Err(FakeError("told to keep it".to_owned()).into());
        }
        state.disks.retain(|disk| disk.id != id);
        Ok(())
    }

    async fn sizes(&self, vm: &VmRecord) -> Result<Sizes, VmError> {
        self.require(vm, "resize a running VM", &self.capabilities(vm).resize)?;
        let now = self.state().sizes.get(vm.dir.path()).map(|(size, _)| *size);
        let sizes = now.zip(self.room).map(|(now, limit)| Sizes { now, limit });
        Ok(sizes.ok_or_else(|| FakeError("it never ran".to_owned()))?)
    }

    async fn resize(&self, vm: &VmRecord, to: Size) -> Result<Size, VmError> {
        let limit = self.sizes(vm).await?.limit;
        if !limit.holds(to) {
            return Err(VmError::NoRoom { wanted: to, limit });
        }
        let mut state = self.state();
        state.resized.push((to.vcpus.get(), to.memory_mib.get()));
        let Some((size, fault)) = state.sizes.get_mut(vm.dir.path()) else { return Ok(to) };
        let refused = *fault == Fault::TakesNoMemory && to.memory_mib > size.memory_mib;
        size.vcpus = to.vcpus;
        if refused {
            return Err(VmError::NotResized { wanted: to, has: *size });
        }
        size.memory_mib = to.memory_mib;
        Ok(to)
    }
}

fn script(fault: &Fault) -> String {
    match fault {
        Fault::VmmExits(words) => format!("echo '{words}'; exit 3"),
        Fault::Eats(mib) => format!(
            "until [ -e \"$0/{EAT}\" ]; do sleep 0.05; done; exec dd if=/dev/zero of=/dev/null bs={mib}M count=1"
        ),
        Fault::None
        | Fault::LaunchFails
        | Fault::LaunchHangs
        | Fault::NeverAnnounces
        | Fault::AnnouncesGarbage
        | Fault::ForeignAgent
        | Fault::OldAgent
        | Fault::RefusesDisk(_)
        | Fault::KeepsDisks
        | Fault::SetupFails
        | Fault::SetupHangs
        | Fault::IgnoresPings
        | Fault::IgnoresShutdown
        | Fault::TakesNoCpus
        | Fault::TakesNoMemory => IDLE.to_owned(),
    }
}

/// A process that does nothing.
const IDLE: &str = "exec sleep 3600";

fn start(spec: &LaunchSpec, script: &str, output: PathBuf) -> Result<OwnedProcess, VmError> {
    let start = Spawn {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into(), OsString::from(spec.dir.path())],
        output,
        fds: Vec::new(),
        cgroup: spec.cgroup.clone(),
        env: Vec::new(),
    };
    OwnedProcess::spawn(start).map_err(|error| FakeError(format!("cannot start {script:?}: {error}")).into())
}
