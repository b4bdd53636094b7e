//! Block devices of the host for containers: attached to the VM before the guest is asked for the container, and
//! detached when the last one that had them has gone, after the guest has flushed them and let go.

use actix::{ActorFutureExt, Addr, AsyncContext, Context, WrapFuture};
use bulkhead_protocol::FEATURE_DISKS;
use bulkhead_protocol::agent::Disk as GuestDisk;
use bulkhead_protocol::error::chain;
use futures::FutureExt;
use futures::future::join_all;
use tracing::{Span, warn};

use super::actor::Sandbox;
use super::attachments::{Attachment, NotAttached};
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
pub(super) struct WantedDisk {
    disk: HostDisk,
    device: BlockDevice,
}

impl WantedDisk {
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
pub(super) async fn find(
    container: &ContainerId,
    disks: Vec<HostDisk>,
) -> Result<Vec<WantedDisk>, SandboxError> {
    let found = tokio::task::spawn_blocking(move || {
        let find = |disk: HostDisk| match BlockDevice::find(disk.number) {
            Ok(device) => Ok(WantedDisk { disk, device }),
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
pub(super) struct AttachingDisks {
    container: ContainerId,
    steps: Vec<(WantedDisk, Disk, Attachment)>,
}

impl AttachingDisks {
    /// Waits until all are attached; returns what the guest must know of them.
    pub(super) async fn run(self, agent: &Addr<Agent>, call: &Span) -> Result<Vec<GuestDisk>, SandboxError> {
        if self.steps.is_empty() {
            return Ok(Vec::new());
        }
        trace::step(call, "attach block devices", self.all(agent)).await
    }

    async fn all(self, agent: &Addr<Agent>) -> Result<Vec<GuestDisk>, SandboxError> {
        let Self { container, steps } = self;
        expect_feature(agent).await.map_err(|reason| SandboxError::Attach {
            container: container.clone(),
            blame: Blame::Caller,
            reason,
        })?;
        let mut attached = Vec::new();
        for (wanted, disk, attachment) in steps {
            attachment.await.map_err(|NotAttached { blame, reason }| SandboxError::Attach {
                container: container.clone(),
                blame,
                reason: format!(
                    "{} for {}: {reason}",
                    wanted.device.path.display(),
                    wanted.disk.path.display()
                ),
            })?;
            attached.push(wanted.for_guest(&disk));
        }
        Ok(attached)
    }
}

/// A guest of an older image would leave the disks out without a word.
async fn expect_feature(agent: &Addr<Agent>) -> Result<(), String> {
    let view = ask(agent, agent::Observe).await;
    match view.ok().and_then(|view| view.guest) {
        Some(guest) if !guest.features.iter().any(|feature| feature == FEATURE_DISKS) => Err(format!(
            "the guest's agent (build {}) knows no block devices; install the guest image of this release",
            guest.agent_build
        )),
        // After a restart it may not have been reached yet.
        Some(_) | None => Ok(()),
    }
}

/// What became of each disk that was to be detached.
pub(super) type DetachOutcomes = Vec<(u32, Result<(), String>)>;

impl Sandbox {
    /// Settles which disks a container gets, and begins to attach those that are new.
    pub(super) fn attach(
        &mut self,
        container: &ContainerId,
        wanted: Vec<WantedDisk>,
        vm: &Addr<Vm>,
    ) -> Result<AttachingDisks, SandboxError> {
        if let Some(Ability::Cannot(why)) = self.disk_hotplug().filter(|_| !wanted.is_empty()) {
            return Err(SandboxError::Attach {
                container: container.clone(),
                blame: Blame::Caller,
                reason: why.into_owned(),
            });
        }
        let keys: Vec<Key> = wanted.iter().map(WantedDisk::key).collect();
        let disks = self.record.disks.want(container, &keys).map_err(|refusal| SandboxError::Attach {
            container: container.clone(),
            blame: Blame::Caller,
            reason: refusal.to_string(),
        })?;
        let step = |(wanted, disk): (WantedDisk, Disk)| {
            let attachment = self.attachments.0.entry(disk.number());
            let attachment =
                attachment.or_insert_with(|| attach_disk(vm.clone(), wanted.for_vm(&disk))).clone();
            (wanted, disk, attachment)
        };
        let steps = wanted.into_iter().zip(disks).map(step).collect();
        Ok(AttachingDisks { container: container.clone(), steps })
    }

    /// Whether the VM takes disks, once there is one.
    fn disk_hotplug(&self) -> Option<Ability> {
        let vm = self.record.vm.as_ref()?;
        Some(self.node.drivers.of(vm).capabilities(vm).hotplug.disk)
    }

    /// Detaches the disks that nobody uses. [`Sandbox::detached`] takes the outcomes.
    pub(super) fn detach(&self) -> impl Future<Output = DetachOutcomes> + use<> {
        let vm = self.children.as_ref().map(|children| children.vm.clone());
        let unused = self.record.disks.unused();
        async move {
            let Some(vm) = vm else { return Vec::new() };
            join_all(unused.into_iter().map(|number| detach(&vm, number))).await
        }
    }

    /// Forgets the disks that were detached; the others are tried again with the next container that goes.
    pub(super) fn detached(&mut self, outcomes: DetachOutcomes) -> Result<(), String> {
        let mut result = Ok(());
        for (number, outcome) in outcomes {
            match outcome {
                Ok(()) => {
                    self.record.disks.unplugged(number);
                    self.attachments.0.remove(&number);
                }
                Err(reason) => result = Err(reason),
            }
        }
        result
    }

    /// Detaches what a previous process did not get to.
    pub(super) fn detach_in_background(&mut self, ctx: &mut Context<Self>) {
        if self.record.disks.unused().is_empty() {
            return;
        }
        ctx.spawn(self.detach().into_actor(self).map(
            |outcomes, sandbox, ctx| match sandbox.detached(outcomes) {
                Ok(()) => sandbox.save_in_background(ctx),
                Err(reason) => warn!(parent: &sandbox.span, reason, "a block device is still attached"),
            },
        ));
    }

    /// The VM has gone, and every disk with it.
    pub(super) fn forget_disks(&mut self) {
        self.record.disks.clear();
        self.attachments.0.clear();
    }
}

fn attach_disk(vm: Addr<Vm>, disk: vm::Disk) -> Attachment {
    let attached = async move {
        let device = Device::Disk(disk);
        let added = ask(&vm, vm::AddDevice { device }).await;
        added.map_err(|failed| NotAttached { blame: blame(&failed), reason: chain(&failed) })
    };
    attached.boxed_local().shared()
}

/// A VM that was made without block devices takes none, however often it is asked.
fn blame(failed: &AskError<VmError>) -> Blame {
    match failed {
        AskError::Failed(VmError::Unsupported { .. }) => Blame::Caller,
        AskError::Failed(_) | AskError::Busy(_) | AskError::Gone(_) => Blame::Host,
    }
}

async fn detach(vm: &Addr<Vm>, number: u32) -> (u32, Result<(), String>) {
    let outcome = match ask(vm, vm::RemoveDevice { id: id(number) }).await {
        // The VM has ended, or is about to.
        Ok(()) | Err(AskError::Failed(VmError::Refused { .. })) => Ok(()),
        Err(failed) => Err(chain(&failed)),
    };
    (number, outcome)
}
