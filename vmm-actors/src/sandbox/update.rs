//! New limits for a pod that runs: either all of them hold afterwards, or none does and the answer says why.

use actix::{ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};
use tracing::{info, warn};

use super::actor::Sandbox;
use super::children::Children;
use super::error::{SandboxError, chain};
use super::messages::Update;
use super::record::Record;
use super::sizing::Size;
use super::state::State;
use crate::ask::{AskError, answer, ask};
use crate::cgroup::{self, CgroupError, Limits};
use crate::vm;

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
    /// Decides. A VM keeps what it has: it grows with its pod, and never shrinks.
    fn of(record: &Record, update: &Update, settings: &bulkhead_config::Settings) -> Self {
        let before = record.size(settings);
        let mut after = record.clone();
        after.pod.resources = record.pod.resources.updated(&update.resources);
        after.pod.overhead = record.pod.overhead.updated(&update.overhead);
        after.size = Some(Size::of(&after.pod.resources, &settings.vm).at_least(before));
        Self { before, old: record.host_limits(settings), after }
    }

    /// Makes it so. On error everything is as it was.
    async fn make(self, children: Children, settings: &bulkhead_config::Settings) -> Result<Record, String> {
        let (record, size) = (self.after.cgroup.clone(), self.after.size(settings));
        if size != self.before {
            let resize = |reply| vm::Resize { vcpus: size.vcpus, memory_mib: size.memory_mib, reply };
            let resized = ask(&children.vm, resize).await;
            resized.map_err(|failed| {
                format!(
                    "{}: {}; nothing was changed, a new pod would have it",
                    self.before.growth(size),
                    chain(&failed)
                )
            })?;
        }
        let limits = self.after.host_limits(settings);
        let needed_bytes = self.after.needed_bytes(settings);
        let new = limits.clone();
        let update = |reply| cgroup::Update { record: record.clone(), limits: new, needed_bytes, reply };
        match ask(&children.cgroup, update).await {
            Ok(()) => Ok(self.after),
            Err(failed) => {
                // What was refused before anything was written has nothing to take back.
                if !matches!(failed, AskError::Failed(CgroupError::TooSmall { .. })) {
                    let limits = self.old.instead_of(&limits);
                    let back = |reply| cgroup::Update { record, limits, needed_bytes: 0, reply };
                    if let Err(second) = ask(&children.cgroup, back).await {
                        warn!(error = chain(&second), "some of the new limits hold");
                    }
                }
                Err(chain(&failed))
            }
        }
    }
}

impl Handler<Update> for Sandbox {
    type Result = ();

    fn handle(&mut self, update: Update, ctx: &mut Context<Self>) {
        let id = self.id();
        let (Some(children), State::Running) = (self.children.clone(), &self.state) else {
            let reason = format!("it is {}", self.state.name());
            return answer(update.reply, Err(SandboxError::Unchangeable { id, reason }));
        };
        let settings = std::sync::Arc::clone(&self.host.settings);
        let change = Change::of(&self.record, &update, &settings);
        let made = async move { change.make(children, &settings).await };
        ctx.spawn(made.into_actor(self).map(move |made, sandbox, ctx| match made {
            Ok(after) => sandbox.changed(after, update, ctx),
            Err(reason) => answer(update.reply, Err(SandboxError::Unchangeable { id, reason })),
        }));
    }
}

impl Sandbox {
    /// The new limits hold: they belong into the record, beside what else has happened meanwhile.
    fn changed(&mut self, after: Record, update: Update, ctx: &mut Context<Self>) {
        self.record.pod.resources = after.pod.resources;
        self.record.pod.overhead = after.pod.overhead;
        self.record.size = after.size;
        let wanted = Size::of(&self.record.pod.resources, &self.host.settings.vm);
        let size = self.record.size(&self.host.settings);
        if wanted != size {
            let Size { vcpus, memory_mib } = size;
            self.warning(format!(
                "the VM keeps its {vcpus} CPUs and {memory_mib} MiB, whatever the new limits are"
            ));
        }
        info!(parent: &self.span, size = ?self.record.size, "the pod's limits were changed");
        let (id, save) = (self.id(), self.save());
        let saved = async move {
            let saved = save.await.map_err(|source| SandboxError::Record { id, source });
            answer(update.reply, saved);
        };
        ctx.spawn(saved.into_actor(self));
    }
}
