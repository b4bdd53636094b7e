//! New limits for a pod that runs: either all of them hold afterwards, or none does and the answer says why.

use actix::{ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};
use bulkhead_protocol::error::chain;
use tracing::{info, warn};

use super::actor::Sandbox;
use super::children::Children;
use super::error::SandboxError;
use super::messages::Update;
use super::record::{Phase, Record};
use super::resize::{Resize, ResizeFailed};
use super::sizing::size_of;
use super::state::State;
use crate::ask::{AskError, ReplyTo, Request, answer, ask};
use crate::cgroup::{self, CgroupError, Limits};
use crate::vm::{self, Size};

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq)]
struct Change {
    /// With the new limits, and the VM's new size.
    after: Record,
    /// The VM's size now.
    before: Size,
    /// What the host allowed before, for the way back.
    old: Limits,
}

impl Change {
    /// Decides. A VM keeps what it `has`: it grows with its pod, and never shrinks.
    fn of(record: &Record, update: &Update, settings: &bulkhead_config::Settings, has: Size) -> Self {
        let mut after = record.clone();
        after.pod.resources = record.pod.resources.updated(&update.resources);
        after.pod.overhead = record.pod.overhead.updated(&update.overhead);
        after.basis = Some(record.basis(settings));
        after.size = Some(has.grown_to(size_of(&after.pod.resources, record.basis(settings))));
        Self { before: has, old: record.host_limits(settings), after }
    }

    /// Makes it so. On error everything is as it was, but for a VM that does not give back what it was given.
    async fn make(
        self,
        children: Children,
        settings: &bulkhead_config::Settings,
    ) -> Result<Record, ResizeFailed> {
        let (from, to) = (self.before, self.after.size(settings));
        let unchanged = |reason| ResizeFailed { reason, has: from };
        let growth = match from == to {
            true => None,
            false => Some(Resize::prepare(&children, from, to).await.map_err(unchanged)?),
        };
        // Before the guest can use it, the host has to allow it.
        self.limit(&children, settings).await.map_err(unchanged)?;
        if let Some(growth) = growth
            && let Err(failed) = growth.grow().await
        {
            self.unlimit(&children, settings).await;
            return Err(failed);
        }
        Ok(self.after)
    }

    /// The new limits on the host, or none of them.
    async fn limit(&self, children: &Children, settings: &bulkhead_config::Settings) -> Result<(), String> {
        let update = cgroup::Update {
            limits: self.after.host_limits(settings),
            needed_bytes: self.after.needed_bytes(settings),
            planned_bytes: self.after.planned_bytes(),
        };
        let Err(failed) = ask(&children.cgroup, update).await else { return Ok(()) };
        // What was refused before anything was written has nothing to take back.
        if !matches!(failed, AskError::Failed(CgroupError::TooSmall { .. })) {
            self.unlimit(children, settings).await;
        }
        Err(chain(&failed))
    }

    async fn unlimit(&self, children: &Children, settings: &bulkhead_config::Settings) {
        let limits = self.old.clone().instead_of(&self.after.host_limits(settings));
        let back = cgroup::Update { limits, needed_bytes: 0, planned_bytes: None };
        if let Err(failed) = ask(&children.cgroup, back).await {
            warn!(error = chain(&failed), "some of the new limits hold");
        }
    }
}

impl Handler<Request<Update>> for Sandbox {
    type Result = ();

    fn handle(&mut self, Request { command: update, reply }: Request<Update>, ctx: &mut Context<Self>) {
        let id = self.id();
        let refuse = |reason: String| Err(SandboxError::Unchangeable { id: self.id(), reason });
        let (Some(children), State::Running) = (self.children.clone(), &self.state) else {
            return answer(reply, refuse(format!("it is {}", self.state.name())));
        };
        if std::mem::replace(&mut self.updating, true) {
            return answer(reply, Err(SandboxError::Busy(id)));
        }
        let (settings, record) = (std::sync::Arc::clone(&self.node.settings), self.record.clone());
        let made = async move {
            let has = measured(&children).await.unwrap_or_else(|| record.size(&settings));
            Change::of(&record, &update, &settings, has).make(children, &settings).await
        };
        ctx.spawn(made.into_actor(self).map(move |made, sandbox, ctx| {
            sandbox.updating = false;
            match made {
                Ok(after) => sandbox.changed(after, reply, ctx),
                Err(ResizeFailed { reason, has }) => {
                    sandbox.sized(has, ctx);
                    answer(reply, Err(SandboxError::Unchangeable { id, reason }));
                }
            }
        }));
    }
}

/// What the VMM says; none where it cannot say.
async fn measured(children: &Children) -> Option<Size> {
    ask(&children.vm, vm::Measure).await.ok().map(|sizes| sizes.now)
}

impl Sandbox {
    /// The new limits hold: they belong into the record, beside what else has happened meanwhile.
    fn changed(&mut self, after: Record, reply: ReplyTo<Update>, ctx: &mut Context<Self>) {
        self.record.pod.resources = after.pod.resources;
        self.record.pod.overhead = after.pod.overhead;
        self.record.size = after.size;
        self.record.basis = after.basis;
        let size = self.record.size(&self.node.settings);
        self.warnings.retain(|text| !text.starts_with(KEEPS));
        if !size_of(&self.record.pod.resources, self.record.basis(&self.node.settings)).holds(size) {
            self.warning(format!("{KEEPS} its {size}, whatever the new limits are"));
        }
        info!(parent: &self.span, %size, "the pod's limits were changed");
        let (id, save) = (self.id(), self.save());
        let saved = async move {
            let saved = save.await.map_err(|source| SandboxError::Record { id, source });
            answer(reply, saved);
        };
        ctx.spawn(saved.into_actor(self));
    }

    /// What an earlier instance began may have changed the VM, and not the record.
    pub(super) fn measure(&self, ctx: &mut Context<Self>) {
        let Some(children) = self.children.clone() else { return };
        let measured = async move { measured(&children).await };
        ctx.spawn(measured.into_actor(self).map(|has, sandbox, ctx| {
            if let Some(has) = has {
                sandbox.sized(has, ctx);
            }
        }));
    }

    /// The VM has this size.
    fn sized(&mut self, has: Size, ctx: &mut Context<Self>) {
        let recorded = self.record.size(&self.node.settings);
        if recorded == has || self.record.phase != Phase::Running {
            return;
        }
        warn!(parent: &self.span, %recorded, %has, "the VM has another size than its record says");
        self.record.size = Some(has);
        let save = self.save();
        ctx.spawn(save.into_actor(self).map(|saved, sandbox, _| {
            if let Err(failed) = saved {
                warn!(parent: &sandbox.span, error = chain(&failed), "the VM's size is not recorded");
            }
        }));
    }
}

/// How the warning of a VM that is larger than its pod begins.
const KEEPS: &str = "the VM keeps";
