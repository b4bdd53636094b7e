//! The containers actor: decides by [`table`](super::table), then acts.

use actix::{Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, WrapFuture};
use bulkhead_protocol::error::chain;
use tracing::{Instrument, Span, warn};

use super::error::ContainerError;
use super::hotplug::{Hotplug, WantedDisk};
use super::messages::{
    Close, ContainerRequest, DetachUnused, Forget, Prepare, PreparedContainer, Release, RunningPod, Started,
};
use super::record::{ContainerRecord, ContainersRecord};
use super::steps::{make_mounts, read, release_mounts};
use super::table::{OnPrepare, OnRelease, Table};
use crate::agent::Agent;
use crate::ask::{AskError, Request, answer};
use crate::guest_spec::GuestSpec;
use crate::id::{ContainerId, SandboxId};
use crate::mounts::Mounts;
use crate::orphan::EndWhenOrphaned;
use crate::pod_spec::PodSpec;
use crate::record_part::{RecordError, RecordHandle};
use crate::trace::step;
use crate::vm::Vm;

/// As many requests may wait here as in the sandbox, which passes them on.
const MAILBOX: usize = 256;

/// The containers of one pod; see the [module](super).
#[derive(Debug)]
pub struct Containers {
    context: PodContext,
    record: ContainersRecord,
    table: Table,
    hotplug: Hotplug,
    /// The sandbox has begun to end.
    closed: bool,
}

/// What a containers actor is told of its pod, and whom it speaks to.
#[derive(Debug, Clone)]
pub struct PodContext {
    /// The pod's sandbox.
    pub sandbox: SandboxId,
    /// The pod.
    pub pod: PodSpec,
    /// Who mounts.
    pub mounts: Addr<Mounts>,
    /// Who attaches and detaches disks.
    pub vm: Addr<Vm>,
    /// Who knows what the guest can do.
    pub agent: Addr<Agent>,
    /// Who makes the containers' part of the record durable.
    pub record: RecordHandle<ContainersRecord>,
    /// For lines in the log.
    pub span: Span,
}

impl Containers {
    /// The containers of a pod that is new, or, where some are `recorded`, one that an earlier process or an earlier life
    /// of its sandbox's actor left.
    #[must_use]
    pub fn new(context: PodContext, recorded: ContainersRecord) -> Self {
        Self {
            table: Table::recorded(&recorded),
            hotplug: Hotplug::new(context.vm.clone(), context.agent.clone()),
            record: recorded,
            context,
            closed: false,
        }
    }

    /// Hands what is known now to the owner of the record; answers when that is durable.
    fn save(&self) -> impl Future<Output = Result<(), AskError<RecordError>>> + use<> {
        self.context.record.save(self.record.clone())
    }

    /// The same, where nobody is to hear of a failure.
    fn saved(&self) -> impl Future<Output = ()> + use<> {
        let saved = self.save();
        let saved = async move {
            if let Err(failed) = saved.await {
                warn!(error = chain(&failed), "the record is older than the truth");
            }
        };
        saved.instrument(self.context.span.clone())
    }

    fn save_in_background(&self, ctx: &mut Context<Self>) {
        ctx.spawn(self.saved().into_actor(self));
    }

    /// Records the container while its spec is read, and then makes what that asks for.
    fn prepare(
        &mut self,
        Prepare { request, pod }: Prepare,
        again: OnPrepare,
        call: Span,
        ctx: &mut Context<Self>,
    ) {
        let (id, container) = (request.id.clone(), request.id.clone());
        let record =
            ContainerRecord { bundle: request.bundle.clone(), stdio: request.stdio.clone(), guest_pid: None };
        self.record.by_id.insert(id.clone(), record);
        let saved = self.save();
        let reading = read(call.clone(), request, self.context.pod.clone());
        let recorded = {
            let call = call.clone();
            async move {
                let saved = step(&call, "record the container", saved);
                let (read, saved) = tokio::join!(reading, saved);
                let read = read?;
                saved.map_err(|source| ContainerError::Record { container, source })?;
                Ok::<_, ContainerError>(read)
            }
        };
        let recorded = recorded.instrument(self.context.span.clone()).into_actor(self);
        let made = recorded.then(move |read, containers, _| {
            let made = read.and_then(|read| containers.make(pod, read, again, call));
            let made = async move { made?.await };
            made.instrument(containers.context.span.clone()).into_actor(containers)
        });
        ctx.spawn(made.map(move |outcome, containers, ctx| containers.prepared(id, outcome, ctx)));
    }

    /// Makes what a recorded container needs: first its disks, which are recorded before, and then its mounts.
    fn make(
        &mut self,
        pod: RunningPod,
        (request, spec, wanted): (ContainerRequest, GuestSpec, Vec<WantedDisk>),
        again: OnPrepare,
        call: Span,
    ) -> Result<impl Future<Output = Result<PreparedContainer, ContainerError>> + use<>, ContainerError> {
        if self.closed {
            return Err(ContainerError::Ended(self.context.sandbox.clone()));
        }
        let (container, mounts, before) =
            (request.id.clone(), self.context.mounts.clone(), self.record.disks.clone());
        let not_attached = |source| ContainerError::Attach { container: request.id.clone(), source };
        let attaching = self.hotplug.attach(&mut self.record.disks, &request.id, wanted, &pod.disk_hotplug);
        let attaching = attaching.map_err(not_attached)?;
        let saved = (self.record.disks != before).then(|| self.save());
        Ok(async move {
            if let Some(saved) = saved {
                let saved = step(&call, "record its block devices", saved).await;
                saved.map_err(|source| ContainerError::Record { container: container.clone(), source })?;
            }
            let attached = attaching.run(&call).await;
            let disks =
                attached.map_err(|source| ContainerError::Attach { container: container.clone(), source })?;
            if again == OnPrepare::MakeAgain {
                release_mounts(&mounts, &container).await?;
            }
            let prepared = step(&call, "make its mounts", make_mounts(&mounts, pod, request, spec)).await?;
            Ok(PreparedContainer { disks, ..prepared })
        })
    }

    fn prepared(
        &mut self,
        id: ContainerId,
        outcome: Result<PreparedContainer, ContainerError>,
        ctx: &mut Context<Self>,
    ) {
        match outcome {
            Ok(made) => {
                if self.table.made(&id, &made) == OnRelease::Undo {
                    self.undo(id, ctx);
                }
            }
            Err(failed) => self.not_prepared(id, failed, ctx),
        }
    }

    /// Whoever hears of the failure finds nothing of the container.
    fn not_prepared(&mut self, id: ContainerId, failed: ContainerError, ctx: &mut Context<Self>) {
        let Some((prepared, mut release)) = self.table.not_made(&id) else { return };
        self.record.by_id.remove(&id);
        self.record.disks.leave(&id);
        let detached = self.hotplug.detach(&self.record.disks).into_actor(self);
        ctx.spawn(detached.map(move |outcomes, containers, ctx| {
            if let Err(failed) = containers.hotplug.detached(&mut containers.record.disks, outcomes) {
                let (span, error) = (&containers.context.span, chain(&failed));
                warn!(parent: span, container = %id, error, "its block devices are left");
            }
            let saved = containers.saved();
            let told = async move {
                saved.await;
                failed.tell(prepared);
                release.answer(|| Ok(()));
            };
            ctx.spawn(told.into_actor(containers));
        }));
    }

    /// Detaches what only this container had, and unmounts what it had.
    fn undo(&mut self, id: ContainerId, ctx: &mut Context<Self>) {
        let call = self.table.release_call(&id).unwrap_or_else(Span::none);
        self.record.disks.leave(&id);
        let (detached, mounts, released) =
            (self.hotplug.detach(&self.record.disks), self.context.mounts.clone(), id.clone());
        let undone = async move {
            let detached = detached.await;
            (detached, step(&call, "undo its mounts", release_mounts(&mounts, &released)).await)
        };
        let undone = undone.instrument(self.context.span.clone()).into_actor(self);
        ctx.spawn(undone.map(move |(detached, released), containers, ctx| {
            let detached = containers.hotplug.detached(&mut containers.record.disks, detached);
            let detached =
                detached.map_err(|source| ContainerError::Detach { container: id.clone(), source });
            containers.undone(&id, released.and(detached), ctx);
        }));
    }

    fn undone(&mut self, id: &ContainerId, outcome: Result<(), ContainerError>, ctx: &mut Context<Self>) {
        let Some(mut waiters) = self.table.undone(id, outcome.is_ok()) else { return };
        match outcome {
            Ok(()) => {
                self.record.by_id.remove(id);
                self.save_in_background(ctx);
                waiters.answer(|| Ok(()));
            }
            Err(failed) => failed.tell(waiters),
        }
    }
}

impl Actor for Containers {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        ctx.spawn(EndWhenOrphaned);
    }
}

impl Handler<Request<Prepare>> for Containers {
    type Result = ();

    fn handle(&mut self, Request { command, reply }: Request<Prepare>, ctx: &mut Self::Context) {
        if self.closed {
            return answer(reply, Err(ContainerError::Ended(self.context.sandbox.clone())));
        }
        let call = reply.call().clone();
        match self.table.prepare(&command.request.id, reply) {
            OnPrepare::Nothing => {}
            again @ (OnPrepare::Make | OnPrepare::MakeAgain) => self.prepare(command, again, call, ctx),
        }
    }
}

impl Handler<Request<Release>> for Containers {
    type Result = ();

    fn handle(
        &mut self,
        Request { command: Release { id }, reply }: Request<Release>,
        ctx: &mut Self::Context,
    ) {
        if self.table.release(&id, reply) == OnRelease::Undo {
            self.undo(id, ctx);
        }
    }
}

impl Handler<Started> for Containers {
    type Result = ();

    fn handle(&mut self, Started { id, guest_pid }: Started, ctx: &mut Self::Context) {
        let Some(container) = self.record.by_id.get_mut(&id) else { return };
        container.guest_pid = Some(guest_pid);
        self.save_in_background(ctx);
    }
}

impl Handler<DetachUnused> for Containers {
    type Result = ();

    fn handle(&mut self, DetachUnused: DetachUnused, ctx: &mut Self::Context) {
        if self.record.disks.unused().is_empty() {
            return;
        }
        let detached = self.hotplug.detach(&self.record.disks).into_actor(self);
        ctx.spawn(detached.map(|outcomes, containers, ctx| {
            match containers.hotplug.detached(&mut containers.record.disks, outcomes) {
                Ok(()) => containers.save_in_background(ctx),
                Err(failed) => {
                    let (span, error) = (&containers.context.span, chain(&failed));
                    warn!(parent: span, error, "a block device is still attached");
                }
            }
        }));
    }
}

impl Handler<Close> for Containers {
    type Result = ();

    fn handle(&mut self, Close: Close, _: &mut Self::Context) {
        self.closed = true;
    }
}

impl Handler<Forget> for Containers {
    type Result = ();

    fn handle(&mut self, Forget: Forget, _: &mut Self::Context) {
        self.table = Table::default();
        self.record.clear();
        self.hotplug.forget();
    }
}
