//! Block devices of the host for containers: plugged into the VM before the guest is asked for the container, and
//! unplugged when the last one that had them has gone, after the guest has flushed them and let go.

use actix::{ActorFutureExt, Addr, AsyncContext, Context, WrapFuture};
use bulkhead_protocol::FEATURE_DISKS;
use bulkhead_protocol::agent::Disk as GuestDisk;
use bulkhead_protocol::error::chain;
use futures::FutureExt;
use futures::future::join_all;
use tracing::{Span, warn};

use super::actor::Sandbox;
use super::attachments::{NotPlugged, Plug};
use super::disks::{Disk, Key, id};
use super::error::{Blame, SandboxError};
use crate::agent::{self, Agent};
use crate::ask::{AskError, ask};
use crate::guest_spec::HostDisk;
use crate::host::block::BlockDevice;
use crate::id::ContainerId;
use crate::trace;
use crate::vm::{self, Ability, Access, Device, Vm, VmError};

/// A device that a container wants, and what the host says of it.
#[derive(Debug)]
pub(super) struct Wanted {
    disk: HostDisk,
    device: BlockDevice,
}

impl Wanted {
    fn key(&self) -> Key {
        let writable = self.disk.is_writable() && !self.device.read_only;
        let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
        Key { device: self.disk.number, access }
    }

    /// As the VMM is told of it.
    fn for_vm(&self, disk: &Disk) -> vm::Disk {
        vm::Disk {
            id: id(disk.number()),
            slot: disk.slot(),
            path: self.device.path.clone(),
            access: disk.access(),
            logical_block_size: self.device.logical_block_size,
            physical_block_size: self.device.physical_block_size,
        }
    }

    /// As the guest's agent is told of it.
    fn for_guest(&self, disk: &Disk) -> GuestDisk {
        GuestDisk {
            scsi_target: Some(disk.slot().into()),
            serial: id(disk.number()),
            path: self.disk.path.to_string_lossy().into_owned(),
            access: self.disk.access.clone(),
            file_mode: self.disk.file_mode.unwrap_or_default(),
            uid: self.disk.uid,
            gid: self.disk.gid,
            ..GuestDisk::default()
        }
    }
}

/// Looks the devices up on the host.
pub(super) async fn find(container: &ContainerId, disks: Vec<HostDisk>) -> Result<Vec<Wanted>, SandboxError> {
    let found = tokio::task::spawn_blocking(move || {
        let find = |disk: HostDisk| match BlockDevice::find(disk.number) {
            Ok(device) => Ok(Wanted { disk, device }),
            Err(source) => Err((disk.path, source)),
        };
        disks.into_iter().map(find).collect::<Result<Vec<_>, _>>()
    });
    match found.await {
        Ok(found) => found.map_err(|(path, source)| SandboxError::HostDisk {
            container: container.clone(),
            path,
            source,
        }),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The disks of one container on their way into the VM.
pub(super) struct Plugging {
    container: ContainerId,
    steps: Vec<(Wanted, Disk, Plug)>,
}

impl Plugging {
    /// Waits until all are plugged in; answers with what the guest must know of them.
    pub(super) async fn run(self, agent: &Addr<Agent>, call: &Span) -> Result<Vec<GuestDisk>, SandboxError> {
        if self.steps.is_empty() {
            return Ok(Vec::new());
        }
        trace::step(call, "plug in block devices", self.all(agent)).await
    }

    async fn all(self, agent: &Addr<Agent>) -> Result<Vec<GuestDisk>, SandboxError> {
        let Self { container, steps } = self;
        expect_feature(agent).await.map_err(|reason| SandboxError::Plug {
            container: container.clone(),
            blame: Blame::Caller,
            reason,
        })?;
        let mut plugged = Vec::new();
        for (wanted, disk, plug) in steps {
            plug.await.map_err(|NotPlugged { blame, reason }| SandboxError::Plug {
                container: container.clone(),
                blame,
                reason: format!(
                    "{} for {}: {reason}",
                    wanted.device.path.display(),
                    wanted.disk.path.display()
                ),
            })?;
            plugged.push(wanted.for_guest(&disk));
        }
        Ok(plugged)
    }
}

/// A guest of an older image would leave the disks out without a word.
async fn expect_feature(agent: &Addr<Agent>) -> Result<(), String> {
    let view = ask(agent, |reply| agent::Observe { reply }).await;
    match view.ok().and_then(|view| view.guest) {
        Some(guest) if !guest.features.iter().any(|feature| feature == FEATURE_DISKS) => Err(format!(
            "the guest's agent (build {}) knows no block devices; install the guest image of this release",
            guest.agent_build
        )),
        // After a restart it may not have been reached yet.
        Some(_) | None => Ok(()),
    }
}

/// What became of each disk that was to be unplugged.
pub(super) type Unplugged = Vec<(u32, Result<(), String>)>;

impl Sandbox {
    /// Settles which disks a container gets, and begins to plug in those that are new.
    pub(super) fn plug(
        &mut self,
        container: &ContainerId,
        wanted: Vec<Wanted>,
        vm: &Addr<Vm>,
    ) -> Result<Plugging, SandboxError> {
        if let Some(Ability::Cannot(why)) = self.disk_hotplug().filter(|_| !wanted.is_empty()) {
            return Err(SandboxError::Plug {
                container: container.clone(),
                blame: Blame::Caller,
                reason: why.into_owned(),
            });
        }
        let keys: Vec<Key> = wanted.iter().map(Wanted::key).collect();
        let disks = self.record.disks.want(container, &keys).map_err(|refusal| SandboxError::Plug {
            container: container.clone(),
            blame: Blame::Caller,
            reason: refusal.to_string(),
        })?;
        let step = |(wanted, disk): (Wanted, Disk)| {
            let plug = self.plugs.0.entry(disk.number());
            let plug = plug.or_insert_with(|| plug_in(vm.clone(), wanted.for_vm(&disk))).clone();
            (wanted, disk, plug)
        };
        let steps = wanted.into_iter().zip(disks).map(step).collect();
        Ok(Plugging { container: container.clone(), steps })
    }

    /// Whether the VM takes disks, once there is one.
    fn disk_hotplug(&self) -> Option<Ability> {
        let vm = self.record.vm.as_ref()?;
        Some(self.host.drivers.of(vm).capabilities(vm).hotplug.disk)
    }

    /// Unplugs the disks that nobody uses. [`Sandbox::unplugged`] must hear what came of it.
    pub(super) fn unplug(&self) -> impl Future<Output = Unplugged> + use<> {
        let vm = self.children.as_ref().map(|children| children.vm.clone());
        let unused = self.record.disks.unused();
        async move {
            let Some(vm) = vm else { return Vec::new() };
            join_all(unused.into_iter().map(|number| unplug(&vm, number))).await
        }
    }

    /// Forgets the disks that were unplugged; the others are tried again with the next container that goes.
    pub(super) fn unplugged(&mut self, outcomes: Unplugged) -> Result<(), String> {
        let mut result = Ok(());
        for (number, outcome) in outcomes {
            match outcome {
                Ok(()) => {
                    self.record.disks.unplugged(number);
                    self.plugs.0.remove(&number);
                }
                Err(reason) => result = Err(reason),
            }
        }
        result
    }

    /// What a previous process did not get to.
    pub(super) fn unplug_in_background(&mut self, ctx: &mut Context<Self>) {
        if self.record.disks.unused().is_empty() {
            return;
        }
        ctx.spawn(self.unplug().into_actor(self).map(|outcomes, sandbox, ctx| {
            match sandbox.unplugged(outcomes) {
                Ok(()) => sandbox.save_in_background(ctx),
                Err(reason) => warn!(parent: &sandbox.span, reason, "a block device is still plugged in"),
            }
        }));
    }

    /// The VM has gone, and every disk with it.
    pub(super) fn forget_disks(&mut self) {
        self.record.disks.clear();
        self.plugs.0.clear();
    }
}

fn plug_in(vm: Addr<Vm>, disk: vm::Disk) -> Plug {
    let plugged = async move {
        let device = Device::Disk(disk);
        let added = ask(&vm, |reply| vm::AddDevice { device, reply }).await;
        added.map_err(|failed| NotPlugged { blame: blame(&failed), reason: chain(&failed) })
    };
    plugged.boxed_local().shared()
}

/// A VM that was made without block devices takes none, however often it is asked.
fn blame(failed: &AskError<VmError>) -> Blame {
    match failed {
        AskError::Failed(VmError::Unsupported { .. }) => Blame::Caller,
        AskError::Failed(_) | AskError::Busy(_) | AskError::Gone(_) => Blame::Host,
    }
}

async fn unplug(vm: &Addr<Vm>, number: u32) -> (u32, Result<(), String>) {
    let outcome = match ask(vm, |reply| vm::RemoveDevice { id: id(number), reply }).await {
        // The VM has ended, or is about to.
        Ok(()) | Err(AskError::Failed(VmError::Refused { .. })) => Ok(()),
        Err(failed) => Err(chain(&failed)),
    };
    (number, outcome)
}
