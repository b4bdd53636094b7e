//! The sandbox actor: decides by [`state`](super::lifecycle::state), then acts.

mod child_events;
mod containers;
mod metrics;
mod observe;
mod origin;
mod update;

pub use origin::Origin;
pub(crate) use origin::{Left, Place};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, SpawnHandle, WrapFuture,
};
use bulkhead_protocol::error::chain;
use tracing::{Instrument, Span, error, info, info_span, warn};

use crate::ask::{Request, tell};
use crate::containers::DetachUnused;
use crate::id::SandboxId;
use crate::record_part::RecordHandle;
use crate::resize::beyond_the_pod;
use crate::sandbox::children::{Children, NodeContext, Parent};
use crate::sandbox::error::SandboxError;
use crate::sandbox::lifecycle::bring_up::{BringUp, BroughtUp};
use crate::sandbox::lifecycle::release::{Release, Scope};
use crate::sandbox::lifecycle::state::{Cause, Class, Effect, Event, State};
use crate::sandbox::lifecycle::timeline::Timeline;
use crate::sandbox::messages::{
    Abandon, Exited, Happened, Orphan, START_OVERDUE, Shutdown, Start, Started, Stop, Wait,
};
use crate::sandbox::record::recorder::Recorder;
use crate::sandbox::record::{Nanos, Phase, Record, RecordError};
use crate::waiters::Waiters;
use origin::StartMode;

/// Requests of one pod that may wait: kubelet asks for Status often, and every container adds a few calls.
const MAILBOX: usize = 256;

/// One pod's sandbox; see the [module](super).
pub struct Sandbox {
    node: NodeContext,
    record: Record,
    state: State,
    children: Option<Children>,
    span: Span,
    timeline: Timeline,
    warnings: Vec<String>,
    /// New limits are being set.
    updating: bool,
    ended_at: Option<Nanos>,
    left: Vec<String>,
    bringing_up: Option<SpawnHandle>,
    releasing: bool,
    create: Waiters<(), SandboxError>,
    start: Waiters<Started, SandboxError>,
    stop: Waiters<(), SandboxError>,
    wait: Waiters<Exited, SandboxError>,
    start_mode: Option<StartMode>,
    place: Place,
    recorder: Recorder,
}

impl Sandbox {
    /// A sandbox at the beginning of its life, or of its life under this process.
    #[must_use]
    pub(crate) fn new(origin: Origin, node: NodeContext, place: Place) -> Self {
        let mut create = Waiters::default();
        let (record, start_mode) = match origin {
            Origin::New { record, reply } => {
                create.add(reply);
                (*record, StartMode::BringUp)
            }
            Origin::Recovered { record, verdict } => (*record, StartMode::of(verdict)),
        };
        let (state, ended_at) = start_mode.state(&record);
        let span = info_span!("sandbox", id = %record.id);
        Self {
            recorder: Recorder::new(node.store.clone()),
            timeline: Timeline::begin(node.telemetry.clone()),
            node,
            record,
            state,
            start_mode: Some(start_mode),
            children: None,
            span,
            warnings: Vec::new(),
            updating: false,
            ended_at,
            left: Vec::new(),
            bringing_up: None,
            releasing: false,
            create,
            start: Waiters::default(),
            stop: Waiters::default(),
            wait: Waiters::default(),
            place,
        }
    }

    fn id(&self) -> SandboxId {
        self.record.id.clone()
    }

    /// Decide, then act.
    fn happen(&mut self, event: Event, ctx: &mut Context<Self>) -> Result<(), SandboxError> {
        let step = self.state.clone().on(event);
        let (state, effects) = step.map_err(|source| SandboxError::Refused { id: self.id(), source })?;
        let before = std::mem::replace(&mut self.state, state);
        self.count(&before);
        let before = before.name();
        if self.state.name() != before {
            let reason = self.state.cause().map(|cause| cause.reason.as_str());
            info!(parent: &self.span, from = before, to = self.state.name(), reason, "sandbox changed");
        }
        for effect in effects {
            self.perform(effect, ctx);
        }
        Ok(())
    }

    /// Counts the sandbox once, when it gets the cause of its end.
    fn count(&self, before: &State) {
        let (None, Some(cause)) = (before.cause(), self.state.cause()) else { return };
        if *before == State::Running {
            self.node.telemetry.ended(cause.class);
        } else {
            self.node.telemetry.did_not_start(cause.class);
        }
    }

    /// For events that no state refuses.
    fn note(&mut self, event: Event, ctx: &mut Context<Self>) {
        if let Err(refusal) = self.happen(event, ctx) {
            warn!(parent: &self.span, %refusal, "an event came at the wrong time");
        }
    }

    fn perform(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        match effect {
            Effect::AnswerCreate => self.create.answer(|| Ok(())),
            Effect::Commit => self.commit(ctx),
            Effect::KeepAndAnswerStart => self.keep_and_answer_start(),
            Effect::Release => self.release(ctx),
            Effect::FailStart(cause) => {
                let id = self.id();
                let ended = || SandboxError::Ended { id: id.clone(), cause: cause.clone() };
                self.create.answer(|| Err(ended()));
                self.start.answer(|| Err(ended()));
            }
            Effect::SaveStopped(cause) => self.save_stopped(cause, ctx),
            Effect::Forget => self.forget(ctx),
            Effect::AnswerWaits(cause) => {
                let exited = Exited { status: cause.exit_status(), at: self.end_time().into() };
                self.wait.answer(|| Ok(exited.clone()));
            }
            Effect::AnswerStops => self.stop.answer(|| Ok(())),
            Effect::FailStops => {
                let (id, left) = (self.id(), self.left.clone());
                self.stop.answer(|| Err(SandboxError::Leftover { id: id.clone(), left: left.clone() }));
            }
            Effect::Leave => self.leave(ctx),
        }
    }

    fn bring_up(&mut self, ctx: &mut Context<Self>) {
        let Some(children) = self.children.clone() else { return };
        let size = self.record.size(&self.node.settings);
        if let Some(text) = beyond_the_pod(&self.record.cgroup, &self.record.pod, size) {
            warn!("{text}");
        }
        let own = ctx.address();
        let host_ready = move || {
            if let Err(refusal) = tell(&own, Happened(Event::HostReady)) {
                warn!(%refusal, "Create is answered with Start's progress only");
            }
        };
        let bring_up = BringUp {
            node: self.node.clone(),
            record: self.record.clone(),
            recorder: self.recorder.clone(),
            children,
            timeline: self.timeline.of_call(self.create.call()),
        };
        let done = bring_up.run(host_ready).instrument(self.span.clone()).into_actor(self).map(
            |outcome, sandbox, ctx| {
                sandbox.bringing_up = None;
                match outcome {
                    Ok(up) => sandbox.brought_up(up, ctx),
                    Err(failed) => sandbox.note(Event::BringUpFailed(failed.cause()), ctx),
                }
            },
        );
        self.bringing_up = Some(ctx.spawn(done));
        ctx.run_later(START_OVERDUE, |sandbox, ctx| sandbox.note(Event::StartOverdue, ctx));
    }

    fn brought_up(&mut self, up: BroughtUp, ctx: &mut Context<Self>) {
        self.record.vm = Some(up.vm);
        self.record.virtiofsd = Some(up.virtiofsd);
        self.record.shim = Some(up.shim);
        self.record.network = up.network;
        self.record.guest_memory_volumes = up.guest_memory_volumes;
        self.note(Event::BroughtUp, ctx);
    }

    fn commit(&mut self, ctx: &mut Context<Self>) {
        self.record.phase = Phase::Running;
        let save = self.save();
        let timeline = self.timeline.of_call(self.start.call());
        let saved = async move { timeline.step("record running", save).await };
        ctx.spawn(saved.into_actor(self).map(|saved, sandbox, ctx| {
            let event = match saved {
                Ok(()) => {
                    sandbox.timeline.started();
                    Event::Committed
                }
                Err(failed) => Event::CommitFailed(Cause { class: Class::Exhausted, reason: chain(&failed) }),
            };
            sandbox.note(event, ctx);
        }));
    }

    /// Makes the record as it is now durable.
    fn save(&self) -> impl Future<Output = Result<(), RecordError>> + use<> {
        self.recorder.save(&self.record)
    }

    /// A previous process may not have got to it.
    fn detach_unused(&self) {
        let told = self.children.as_ref().map(|children| tell(&children.containers, DetachUnused));
        if let Some(Err(refusal)) = told {
            warn!(parent: &self.span, %refusal, "a block device may still be attached");
        }
    }

    fn keep_and_answer_start(&mut self) {
        if let Some(children) = &self.children {
            children.keep();
        }
        let started = Started {
            pid: self.vmm_pid(),
            created_at: self.record.created_at.into(),
            address: self.address(),
        };
        self.start.answer(|| Ok(started.clone()));
    }

    fn release(&mut self, ctx: &mut Context<Self>) {
        if let Some(under_way) = self.bringing_up.take() {
            ctx.cancel_future(under_way);
        }
        if std::mem::replace(&mut self.releasing, true) {
            return;
        }
        self.ended_at.get_or_insert_with(Nanos::now);
        let scope = self.scope();
        let Some(children) = self.children.clone() else { return };
        let (cause, ended_at) = (self.state.cause().cloned(), self.end_time());
        let call = self.stop.call().or_else(|| self.create.call()).or_else(|| self.start.call());
        let call = call.unwrap_or_else(Span::none);
        let release = Release { children, record: self.record.clone(), scope, cause, ended_at, call };
        let done = release.run().instrument(self.span.clone());
        ctx.spawn(done.into_actor(self).map(move |left, sandbox, ctx| sandbox.released(scope, left, ctx)));
    }

    fn scope(&self) -> Scope {
        if matches!(self.state, State::Stopping(_)) { Scope::Stop } else { Scope::Everything }
    }

    fn released(&mut self, scope: Scope, left: Vec<String>, ctx: &mut Context<Self>) {
        self.releasing = false;
        if scope == Scope::Stop && self.scope() == Scope::Everything {
            // Shutdown came while Stop was under way: the shim proxy that Stop leaves must go too.
            return self.release(ctx);
        }
        self.record.containers.clear();
        let event = if left.is_empty() { Event::Released } else { Event::ReleaseFailed };
        if !left.is_empty() {
            warn!(parent: &self.span, left = left.join("; "), "something could not be released");
        }
        self.left = left;
        self.note(event, ctx);
    }

    fn save_stopped(&mut self, cause: Cause, ctx: &mut Context<Self>) {
        self.record.phase = Phase::Stopped { cause, at: self.end_time() };
        let save = self.save();
        ctx.spawn(save.into_actor(self).map(|saved, sandbox, _| {
            if let Err(failed) = saved {
                // The old record says Running of a VMM that is gone: a successor comes to the same result.
                error!(parent: &sandbox.span, error = chain(&failed), "the stopped sandbox is not recorded");
            }
        }));
    }

    fn forget(&mut self, ctx: &mut Context<Self>) {
        let deleted = self.recorder.delete(&self.record);
        ctx.spawn(deleted.into_actor(self).map(|deleted, sandbox, ctx| {
            if let Err(failed) = deleted {
                error!(parent: &sandbox.span, error = chain(&failed), "the record stays");
            }
            sandbox.note(Event::Forgotten, ctx);
        }));
    }

    fn leave(&mut self, ctx: &mut Context<Self>) {
        let left = Left { id: self.id(), generation: self.place.generation };
        if let Err(refusal) = self.place.registry.try_send(left) {
            error!(parent: &self.span, %refusal, "the registry was not told; the id stays taken");
        }
        if let Some(in_order) = self.place.left_in_order.take() {
            // The registry may have gone: the process is ending.
            let _gone = in_order.send(());
        }
        ctx.stop();
    }
}

fn parent(sandbox: &Addr<Sandbox>) -> Parent {
    Parent {
        vm: sandbox.clone().recipient(),
        virtiofsd: sandbox.clone().recipient(),
        shim: sandbox.clone().recipient(),
        agent: sandbox.clone().recipient(),
        oom: sandbox.clone().recipient(),
        pressure: sandbox.clone().recipient(),
        containers: RecordHandle::new(sandbox.clone().recipient()),
    }
}

impl Actor for Sandbox {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let _in_span = self.span.clone().entered();
        let (children, gone) = Children::start(&self.node, &self.record, &parent(&ctx.address()));
        self.children = Some(children);
        match self.start_mode.take() {
            Some(StartMode::BringUp) => self.bring_up(ctx),
            Some(StartMode::Undo(cause)) => self.note(Event::BringUpFailed(cause), ctx),
            Some(StartMode::Lost(cause)) => self.died(cause.reason, ctx),
            Some(StartMode::Adopt) if gone.is_empty() => {
                self.children.iter().for_each(Children::watch_memory);
                self.detach_unused();
                self.measure(ctx);
                info!(pid = self.vmm_pid(), "took over a running sandbox");
            }
            // It ended after the verdict on its record: nobody watches it, so nobody else will tell.
            Some(StartMode::Adopt) => {
                let parts = gone.join(" and ");
                self.died(format!("{parts} ended (unknown exit) while it was being taken over"), ctx);
            }
            Some(StartMode::KeepStopped(_)) | None => {}
        }
    }
}

impl Handler<Request<Start>> for Sandbox {
    type Result = ();

    fn handle(&mut self, Request { command: Start, reply }: Request<Start>, ctx: &mut Self::Context) {
        self.start.add(reply);
        if let Err(refusal) = self.happen(Event::StartAsked, ctx) {
            self.start.refuse_newest(refusal);
        }
    }
}

impl Handler<Request<Stop>> for Sandbox {
    type Result = ();

    fn handle(&mut self, Request { command: Stop, reply }: Request<Stop>, ctx: &mut Self::Context) {
        self.stop.add(reply);
        self.note(Event::StopAsked, ctx);
    }
}

impl Handler<Request<Shutdown>> for Sandbox {
    type Result = ();

    fn handle(&mut self, Request { command: Shutdown, reply }: Request<Shutdown>, ctx: &mut Self::Context) {
        self.stop.add(reply);
        self.note(Event::ShutdownAsked, ctx);
    }
}

impl Handler<Request<Wait>> for Sandbox {
    type Result = ();

    fn handle(&mut self, Request { command: Wait, reply }: Request<Wait>, _: &mut Self::Context) {
        self.wait.add(reply);
        if let State::Stopped(cause) | State::Stuck(cause) | State::Gone(cause) = &self.state {
            let exited = Exited { status: cause.exit_status(), at: self.end_time().into() };
            self.wait.answer(|| Ok(exited.clone()));
        }
    }
}

impl Handler<Abandon> for Sandbox {
    type Result = ();

    fn handle(&mut self, _: Abandon, ctx: &mut Self::Context) {
        self.note(Event::Abandoned, ctx);
    }
}

impl Handler<Orphan> for Sandbox {
    type Result = ();

    fn handle(&mut self, _: Orphan, ctx: &mut Self::Context) {
        self.note(Event::Orphaned, ctx);
    }
}

impl Handler<Happened> for Sandbox {
    type Result = ();

    fn handle(&mut self, Happened(event): Happened, ctx: &mut Self::Context) {
        self.note(event, ctx);
    }
}
