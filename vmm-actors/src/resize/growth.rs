//! A running VM becomes larger: first whether it can, then VMM and guest in turn, and back on any failure.

use actix::Addr;
use bulkhead_protocol::error::chain;

use super::error::{GrowthError, ResizeError};
use crate::agent::{self, Agent, Capacity};
use crate::ask::{AskError, ask};
use crate::vm::{self, Size, Vm, VmError};

/// Of what is added to a guest, the part that its kernel may keep for itself before we say that it did not take it.
const KEPT: u64 = 64;

/// A growth that VMM and guest are able to make.
#[derive(Debug)]
pub(super) struct Resize {
    vm: Addr<Vm>,
    agent: Addr<Agent>,
    from: Size,
    to: Size,
    /// What the guest used before.
    guest: Capacity,
}

impl Resize {
    /// Asks both. Nothing is changed.
    pub(super) async fn prepare(
        vm: &Addr<Vm>,
        agent: &Addr<Agent>,
        from: Size,
        to: Size,
    ) -> Result<Self, GrowthError> {
        let limit = ask(vm, vm::Measure).await.map_err(GrowthError::Vm)?.limit;
        if !limit.holds(to) {
            return Err(GrowthError::Vm(AskError::Failed(VmError::NoRoom { wanted: to, limit })));
        }
        let guest = ask(agent, agent::Grow { to: None }).await.map_err(GrowthError::Guest)?;
        Ok(Self { vm: vm.clone(), agent: agent.clone(), from, to, guest })
    }

    /// Makes it so, and believes it when the guest says so. On error the VM is what [`ResizeError::NotGrown`] says.
    pub(super) async fn grow(&self) -> Result<(), ResizeError> {
        let Err(source) = self.forth().await else { return Ok(()) };
        let has = self.back().await;
        Err(ResizeError::NotGrown { from: self.from, to: self.to, has, source })
    }

    async fn forth(&self) -> Result<(), GrowthError> {
        ask(&self.vm, vm::Resize { to: self.to }).await.map_err(GrowthError::Vm)?;
        let to = Some(wanted(self.guest, self.from, self.to));
        ask(&self.agent, agent::Grow { to }).await.map_err(GrowthError::Guest)?;
        Ok(())
    }

    /// What the VM has afterwards.
    async fn back(&self) -> Size {
        match ask(&self.vm, vm::Resize { to: self.from }).await {
            Ok(has) | Err(AskError::Failed(VmError::NotResized { has, .. })) => has,
            // Nobody knows. What it may have is what the host has to give.
            Err(failed) => {
                tracing::warn!(error = chain(&failed), "cannot take a growth back");
                self.to
            }
        }
    }
}

/// What a guest has to use after it has grown.
fn wanted(guest: Capacity, from: Size, to: Size) -> Capacity {
    let more = to.memory_bytes().saturating_sub(from.memory_bytes());
    let memory_bytes = match more {
        0 => 0,
        more => guest.memory_bytes.saturating_add(more - more / KEPT),
    };
    Capacity { cpus: to.vcpus.get(), memory_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_to_use_what_it_was_given() {
        let size = |vcpus: u32, memory_mib: u32| Size {
            vcpus: vcpus.try_into().unwrap(),
            memory_mib: memory_mib.try_into().unwrap(),
        };
        let guest = Capacity { cpus: 1, memory_bytes: 200 << 20 };
        assert_eq!(
            wanted(guest, size(1, 256), size(2, 256)),
            Capacity { cpus: 2, memory_bytes: 0 },
            "its memory is not looked at when none was added"
        );
        let all = wanted(guest, size(1, 256), size(1, 320));
        assert_eq!(all, Capacity { cpus: 1, memory_bytes: (200 + 63) << 20 });
    }
}
