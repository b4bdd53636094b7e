//! New limits for a pod that runs: either all of them hold afterwards, or none does and the answer says why.

use actix::{ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};
use bulkhead_protocol::error::chain;
use tracing::{info, warn};

use super::Sandbox;
use crate::ask::{ReplyTo, Request, answer};
use crate::resize::{Allotment, Change, ResizeError, measured};
use crate::sandbox::error::SandboxError;
use crate::sandbox::lifecycle::state::State;
use crate::sandbox::messages::Update;
use crate::sandbox::record::Phase;
use crate::vm::Size;

/// How the warning of a VM that is larger than its pod begins.
const KEEPS: &str = "the VM keeps";

impl Handler<Request<Update>> for Sandbox {
    type Result = ();

    fn handle(&mut self, Request { command: update, reply }: Request<Update>, ctx: &mut Context<Self>) {
        let id = self.id();
        let (Some(children), State::Running) = (&self.children, &self.state) else {
            let source = Box::new(ResizeError::NotRunning { state: self.state.name() });
            return answer(reply, Err(SandboxError::Unchangeable { id, source }));
        };
        let (actors, before) = (children.of_resize(), self.record.allotment(&self.node.settings));
        if std::mem::replace(&mut self.updating, true) {
            return answer(reply, Err(SandboxError::Busy(id)));
        }
        let made = async move {
            let has = measured(&actors.vm).await.unwrap_or(before.size);
            let after = before.updated(&update.resources, &update.overhead, has);
            (Change { before, has, after }.make(&actors).await, has)
        };
        ctx.spawn(made.into_actor(self).map(move |(made, has), sandbox, ctx| {
            sandbox.updating = false;
            match made {
                Ok(after) => sandbox.changed(after, reply, ctx),
                Err(source) => {
                    sandbox.sized(source.has().unwrap_or(has), ctx);
                    answer(reply, Err(SandboxError::Unchangeable { id, source: Box::new(source) }));
                }
            }
        }));
    }
}

impl Sandbox {
    /// The new limits hold: they belong into the record, beside what else has happened meanwhile.
    fn changed(&mut self, after: Allotment, reply: ReplyTo<Update>, ctx: &mut Context<Self>) {
        let (size, is_beyond) = (after.size, after.is_beyond());
        self.record.allot(after);
        self.warnings.retain(|text| !text.starts_with(KEEPS));
        if is_beyond {
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
        let measured = async move { measured(&children.vm).await };
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
