//! Block devices of the host for containers: attached to the VM before the guest is asked for the container, and
//! detached when the last one that had them has gone, after the guest has flushed them and let go.

use std::sync::Arc;

use actix::Addr;
use bulkhead_protocol::FEATURE_DISKS;
use bulkhead_protocol::agent::Disk as GuestDisk;
use futures::FutureExt;
use futures::future::join_all;
use tracing::Span;

use super::attachments::{Attachment, Attachments};
use super::disks::{Disk, Disks, Key, id};
use super::error::{AttachError, ContainerError};
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
) -> Result<Vec<WantedDisk>, ContainerError> {
    let found = tokio::task::spawn_blocking(move || {
        let find = |disk: HostDisk| match BlockDevice::find(disk.number) {
            Ok(device) => Ok(WantedDisk { disk, device }),
            Err(source) => Err((disk.path, source)),
        };
        disks.into_iter().map(find).collect::<Result<Vec<_>, _>>()
    });
    match found.await {
        Ok(found) => found.map_err(|(path, source)| ContainerError::HostDisk {
            container: container.clone(),
            path,
            source,
        }),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The disks of one container on their way into the VM.
pub(super) struct AttachingDisks {
    agent: Addr<Agent>,
    steps: Vec<(WantedDisk, Disk, Attachment)>,
}

impl AttachingDisks {
    /// Waits until all are attached; returns what the guest must know of them.
    pub(super) async fn run(self, call: &Span) -> Result<Vec<GuestDisk>, AttachError> {
        if self.steps.is_empty() {
            return Ok(Vec::new());
        }
        trace::step(call, "attach block devices", self.all()).await
    }

    async fn all(self) -> Result<Vec<GuestDisk>, AttachError> {
        expect_feature(&self.agent).await?;
        let mut attached = Vec::new();
        for (wanted, disk, attachment) in self.steps {
            attachment.await.map_err(|source| AttachError::Device {
                device: wanted.device.path.clone(),
                path: wanted.disk.path.clone(),
                source,
            })?;
            attached.push(wanted.for_guest(&disk));
        }
        Ok(attached)
    }
}

/// A guest of an older image would leave the disks out without a word.
async fn expect_feature(agent: &Addr<Agent>) -> Result<(), AttachError> {
    let view = ask(agent, agent::Observe).await;
    match view.ok().and_then(|view| view.guest) {
        Some(guest) if !guest.features.iter().any(|feature| feature == FEATURE_DISKS) => {
            Err(AttachError::OldGuest { agent_build: guest.agent_build })
        }
        // After a restart it may not have been reached yet.
        Some(_) | None => Ok(()),
    }
}

/// What became of each disk that was to be detached.
pub(super) type DetachOutcomes = Vec<(u32, Result<(), AskError<VmError>>)>;

/// The way of disks into the VM, and out of it.
#[derive(Debug)]
pub(super) struct Hotplug {
    vm: Addr<Vm>,
    agent: Addr<Agent>,
    attachments: Attachments,
}

impl Hotplug {
    pub(super) fn new(vm: Addr<Vm>, agent: Addr<Agent>) -> Self {
        Self { vm, agent, attachments: Attachments::default() }
    }

    /// Settles which disks a container gets, and begins to attach those that are new.
    pub(super) fn attach(
        &mut self,
        disks: &mut Disks,
        container: &ContainerId,
        wanted: Vec<WantedDisk>,
        ability: &Ability,
    ) -> Result<AttachingDisks, AttachError> {
        if let Ability::Cannot(why) = ability
            && !wanted.is_empty()
        {
            return Err(AttachError::Incapable(why.clone().into_owned()));
        }
        let keys: Vec<Key> = wanted.iter().map(WantedDisk::key).collect();
        let disks = disks.want(container, &keys).map_err(AttachError::TooMany)?;
        let step = |(wanted, disk): (WantedDisk, Disk)| {
            let attachment = self.attachments.0.entry(disk.number());
            let attachment = attachment.or_insert_with(|| attach_disk(self.vm.clone(), wanted.for_vm(&disk)));
            (wanted, disk, attachment.clone())
        };
        let steps = wanted.into_iter().zip(disks).map(step).collect();
        Ok(AttachingDisks { agent: self.agent.clone(), steps })
    }

    /// Detaches the disks that nobody uses. [`Hotplug::detached`] takes the outcomes.
    pub(super) fn detach(&self, disks: &Disks) -> impl Future<Output = DetachOutcomes> + use<> {
        let (vm, unused) = (self.vm.clone(), disks.unused());
        async move { join_all(unused.into_iter().map(|number| detach(&vm, number))).await }
    }

    /// Forgets the disks that were detached; the others are tried again with the next container that goes.
    ///
    /// # Errors
    /// Why the last of the others is still attached.
    pub(super) fn detached(
        &mut self,
        disks: &mut Disks,
        outcomes: DetachOutcomes,
    ) -> Result<(), AskError<VmError>> {
        let mut result = Ok(());
        for (number, outcome) in outcomes {
            match outcome {
                Ok(()) => {
                    disks.unplugged(number);
                    self.attachments.0.remove(&number);
                }
                Err(failed) => result = Err(failed),
            }
        }
        result
    }

    /// The VM has gone, and every disk with it.
    pub(super) fn forget(&mut self) {
        self.attachments.0.clear();
    }
}

fn attach_disk(vm: Addr<Vm>, disk: vm::Disk) -> Attachment {
    let device = Device::Disk(disk);
    let attached = async move { ask(&vm, vm::AddDevice { device }).await.map_err(Arc::new) };
    attached.boxed_local().shared()
}

async fn detach(vm: &Addr<Vm>, number: u32) -> (u32, Result<(), AskError<VmError>>) {
    let outcome = match ask(vm, vm::RemoveDevice { id: id(number) }).await {
        // The VM has ended, or is about to.
        Ok(()) | Err(AskError::Failed(VmError::Refused { .. })) => Ok(()),
        Err(failed) => Err(failed),
    };
    (number, outcome)
}
