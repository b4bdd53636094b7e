//! New limits for a pod that runs.

use actix::Addr;
use bulkhead_protocol::error::chain;
use tracing::warn;

use super::allotment::Allotment;
use super::error::ResizeError;
use super::growth::Resize;
use crate::agent::Agent;
use crate::ask::{AskError, ask};
use crate::cgroup::{self, Cgroup, CgroupError};
use crate::vm::{self, Size, Vm};

/// Who is asked.
#[derive(Debug, Clone)]
pub(crate) struct Actors {
    pub(crate) vm: Addr<Vm>,
    pub(crate) agent: Addr<Agent>,
    pub(crate) cgroup: Addr<Cgroup>,
}

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    /// Now, but for the VM's size.
    pub(crate) before: Allotment,
    /// The VM's size now.
    pub(crate) has: Size,
    /// With the new limits, and the VM's new size.
    pub(crate) after: Allotment,
}

impl Change {
    /// Makes it so. On error everything is as it was, but for a VM that does not give back what it was given.
    pub(crate) async fn make(self, actors: &Actors) -> Result<Allotment, ResizeError> {
        let (from, to) = (self.has, self.after.size);
        let growth = if from == to {
            None
        } else {
            let growth = Resize::prepare(&actors.vm, &actors.agent, from, to).await;
            Some(growth.map_err(|source| ResizeError::CannotGrow { from, to, source })?)
        };
        // Before the guest can use it, the host has to allow it.
        self.limit(&actors.cgroup).await.map_err(ResizeError::Limits)?;
        if let Some(growth) = growth
            && let Err(failed) = growth.grow().await
        {
            self.unlimit(&actors.cgroup).await;
            return Err(failed);
        }
        Ok(self.after)
    }

    /// The new limits on the host, or none of them.
    async fn limit(&self, cgroup: &Addr<Cgroup>) -> Result<(), AskError<CgroupError>> {
        let update = cgroup::Update {
            limits: self.after.host_limits(),
            needed_bytes: self.after.needed_bytes(),
            planned_bytes: self.after.planned_bytes(),
        };
        let Err(failed) = ask(cgroup, update).await else { return Ok(()) };
        // What was refused before anything was written has nothing to take back.
        if !matches!(failed, AskError::Failed(CgroupError::TooSmall { .. })) {
            self.unlimit(cgroup).await;
        }
        Err(failed)
    }

    async fn unlimit(&self, cgroup: &Addr<Cgroup>) {
        let limits = self.before.host_limits().instead_of(&self.after.host_limits());
        let back = cgroup::Update { limits, needed_bytes: 0, planned_bytes: None };
        if let Err(failed) = ask(cgroup, back).await {
            warn!(error = chain(&failed), "some of the new limits hold");
        }
    }
}

/// What the VMM says; none where it cannot say.
pub(crate) async fn measured(vm: &Addr<Vm>) -> Option<Size> {
    ask(vm, vm::Measure).await.ok().map(|sizes| sizes.now)
}
