//! Containers' mounts in the pod's share: asked for by the shim proxy, recorded before they are made.

use std::path::PathBuf;

use actix::{ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};
use bulkhead_protocol::error::chain;
use tracing::{Span, info, warn};

use super::actor::Sandbox;
use super::children::Children;
use super::container_table::Container;
use super::error::{Blame, SandboxError};
use super::hotplug::{self, WantedDisk};
use super::messages::{
    ContainerRequest, ContainerStarted, PrepareContainer, PreparedContainer, ReleaseContainer,
};
use super::record::ContainerRecord;
use super::state::State;
use super::waiters::Waiters;
use crate::ask::{AskError, ReplyTo, Request, ask};
use crate::guest_spec::{Bind, GuestSpec, LeftToGuest, Propagation, ReadOnly, Target, for_guest};
use crate::id::ContainerId;
use crate::mounts;
use crate::pod_spec::PodSpec;
use crate::trace::step;

impl Handler<Request<PrepareContainer>> for Sandbox {
    type Result = ();

    fn handle(
        &mut self,
        Request { command: PrepareContainer { request }, reply }: Request<PrepareContainer>,
        ctx: &mut Context<Self>,
    ) {
        if self.state != State::Running {
            let state = self.state.name();
            drop(reply.send(Err(SandboxError::NotRunning { id: self.id(), state })));
            return;
        }
        match self.containers.0.get_mut(&request.id) {
            Some(Container::Prepared(prepared)) => drop(reply.send(Ok(prepared.clone()))),
            Some(Container::Preparing { prepared, .. }) => prepared.add(reply),
            Some(Container::Releasing(_)) => drop(reply.send(Err(SandboxError::Busy(self.id())))),
            Some(Container::Recorded) | None => self.prepare(request, reply, ctx),
        }
    }
}

impl Handler<Request<ReleaseContainer>> for Sandbox {
    type Result = ();

    fn handle(
        &mut self,
        Request { command: ReleaseContainer { id }, reply }: Request<ReleaseContainer>,
        ctx: &mut Context<Self>,
    ) {
        match self.containers.0.get_mut(&id) {
            None => drop(reply.send(Ok(()))),
            Some(Container::Preparing { release, .. } | Container::Releasing(release)) => release.add(reply),
            Some(Container::Prepared(_) | Container::Recorded) => {
                let mut waiters = Waiters::default();
                waiters.add(reply);
                self.undo_container(id, waiters, ctx);
            }
        }
    }
}

impl Handler<ContainerStarted> for Sandbox {
    type Result = ();

    fn handle(&mut self, ContainerStarted { id, guest_pid }: ContainerStarted, ctx: &mut Context<Self>) {
        let Some(container) = self.record.containers.get_mut(&id) else { return };
        container.guest_pid = Some(guest_pid);
        self.save_in_background(ctx);
    }
}

impl Sandbox {
    fn prepare(
        &mut self,
        request: ContainerRequest,
        reply: ReplyTo<PrepareContainer>,
        ctx: &mut Context<Self>,
    ) {
        let Some(children) = self.children.clone() else { return };
        let id = request.id.clone();
        let call = reply.call().clone();
        let mut prepared = Waiters::default();
        prepared.add(reply);
        let container = Container::Preparing { prepared, release: Waiters::default() };
        let again = self.containers.0.insert(id.clone(), container).is_some();
        let record =
            ContainerRecord { bundle: request.bundle.clone(), stdio: request.stdio.clone(), guest_pid: None };
        self.record.containers.insert(id.clone(), record);
        let pod = self.record.pod.clone();
        let reading = call.clone();
        let read = async move {
            let mut spec = step(&reading, "read the spec", read_spec(&request, &pod)).await?;
            for note in &spec.notes {
                info!(container = %request.id, %note, "spec made fit for the guest");
            }
            let wanted = hotplug::find(&request.id, std::mem::take(&mut spec.disks)).await?;
            Ok((request, spec, wanted))
        };
        let made = read.into_actor(self).then(move |read, sandbox, _| {
            let made = read.map(|read| sandbox.make(children, read, again, call));
            async move { made?.await }.into_actor(sandbox)
        });
        ctx.spawn(made.map(move |outcome, sandbox, ctx| sandbox.prepared(id, outcome, ctx)));
    }

    /// Records what the container needs, and then makes it: first its disks, then its mounts.
    fn make(
        &mut self,
        children: Children,
        (request, spec, wanted): (ContainerRequest, GuestSpec, Vec<WantedDisk>),
        again: bool,
        call: Span,
    ) -> impl Future<Output = Result<PreparedContainer, SandboxError>> + use<> {
        // It makes the share its root (`--sandbox=namespace`).
        let server = self
            .record
            .virtiofsd
            .as_ref()
            .map(|virtiofsd| mounts::FileServer { process: virtiofsd.process.clone(), share: "/".into() });
        let memory_of = self.record.guest_memory_volumes.then(|| self.record.pod.uid.clone());
        let running = self.state == State::Running;
        let attaching = if running {
            self.attach(&request.id, wanted, &children.vm)
        } else {
            Err(SandboxError::Gone(self.id()))
        };
        let (sandbox, save) = (self.id(), self.save());
        async move {
            let attaching = attaching?;
            let saved = step(&call, "record the container", save).await;
            saved.map_err(|source| SandboxError::Record { id: sandbox, source })?;
            let disks = attaching.run(&children.agent, &call).await?;
            if again {
                release_mounts(&children.mounts, &request.id).await?;
            }
            let mounts = make_mounts((&children.mounts, server, memory_of), request, spec);
            let prepared = step(&call, "make its mounts", mounts).await?;
            Ok(PreparedContainer { disks, ..prepared })
        }
    }

    fn prepared(
        &mut self,
        id: ContainerId,
        outcome: Result<PreparedContainer, SandboxError>,
        ctx: &mut Context<Self>,
    ) {
        // A release of the whole sandbox clears the map; the callers then hear that it ended.
        let Some(Container::Preparing { mut prepared, mut release }) = self.containers.0.remove(&id) else {
            return;
        };
        match outcome {
            Ok(container) => {
                prepared.answer(|| Ok(container.clone()));
                self.containers.0.insert(id.clone(), Container::Prepared(container));
                if !release.is_empty() {
                    self.undo_container(id, release, ctx);
                }
            }
            Err(failed) => {
                self.record.containers.remove(&id);
                self.record.disks.leave(&id);
                // Whoever hears of the failure finds nothing of the container.
                ctx.spawn(self.detach().into_actor(self).map(move |outcomes, sandbox, ctx| {
                    if let Err(reason) = sandbox.detached(outcomes) {
                        warn!(parent: &sandbox.span, container = %id, reason, "its block devices are left");
                    }
                    sandbox.save_in_background(ctx);
                    prepared.fail(failed, &sandbox.id());
                    release.answer(|| Ok(()));
                }));
            }
        }
    }

    fn undo_container(&mut self, id: ContainerId, waiters: Waiters<()>, ctx: &mut Context<Self>) {
        let Some(children) = self.children.clone() else { return };
        let call = waiters.call().unwrap_or_else(Span::none);
        self.containers.0.insert(id.clone(), Container::Releasing(waiters));
        self.record.disks.leave(&id);
        let unplug = self.detach();
        let released = {
            let id = id.clone();
            let release =
                async move { step(&call, "undo its mounts", release_mounts(&children.mounts, &id)).await };
            async move { (unplug.await, release.await) }
        };
        ctx.spawn(released.into_actor(self).map(move |(unplugged, released), sandbox, ctx| {
            let Some(Container::Releasing(mut waiters)) = sandbox.containers.0.remove(&id) else { return };
            let unplugged = sandbox.detached(unplugged);
            let unplugged =
                unplugged.map_err(|reason| SandboxError::Detach { container: id.clone(), reason });
            match released.and(unplugged) {
                Ok(()) => {
                    sandbox.record.containers.remove(&id);
                    sandbox.save_in_background(ctx);
                    waiters.answer(|| Ok(()));
                }
                Err(failed) => {
                    // Still recorded: the next release, or the end of the sandbox, tries again.
                    sandbox.containers.0.insert(id, Container::Recorded);
                    waiters.fail(failed, &sandbox.id());
                }
            }
        }));
    }

    pub(super) fn save_in_background(&self, ctx: &mut Context<Self>) {
        ctx.spawn(self.save().into_actor(self).map(|saved, sandbox, _| {
            if let Err(failed) = saved {
                warn!(parent: &sandbox.span, error = chain(&failed), "the record is older than the truth");
            }
        }));
    }
}

async fn read_spec(request: &ContainerRequest, pod: &PodSpec) -> Result<GuestSpec, SandboxError> {
    let path: PathBuf = request.bundle.join("config.json");
    let container = request.id.clone();
    let config = tokio::fs::read(&path).await.map_err(|source| SandboxError::ReadBundle {
        container: container.clone(),
        path,
        source,
    })?;
    let target = Target {
        container_id: request.id.as_str(),
        shared_pid_namespace: pod.shared_pid_namespace,
        inherited_limits: &pod.inherited_limits,
    };
    for_guest(&config, target).map_err(|source| SandboxError::Spec { container, source })
}

async fn make_mounts(
    (mounts, server, memory_of): (&actix::Addr<mounts::Mounts>, Option<mounts::FileServer>, Option<String>),
    request: ContainerRequest,
    mut spec: GuestSpec,
) -> Result<PreparedContainer, SandboxError> {
    let ContainerRequest { id, rootfs, .. } = request;
    let container = id.clone();
    let volumes = mounts::Volumes { binds: spec.binds.iter().map(bind_mount).collect(), memory_of };
    let asked = ask(mounts, mounts::Prepare { container: id, rootfs, volumes, server });
    let made = asked.await.map_err(|failed| not_mounted(container.clone(), &failed))?;
    let left = LeftToGuest {
        sockets: made.sockets.iter().map(|socket| socket.number).collect(),
        memory: made.memory.iter().map(|volume| volume.number).collect(),
        read_only: made.read_only_in_guest,
    };
    if let Err(source) = spec.settle(container.as_str(), &left) {
        if let Err(left) = release_mounts(mounts, &container).await {
            warn!(%container, error = chain(&left), "mounts are left");
        }
        return Err(SandboxError::Spec { container, source });
    }
    let rootfs = spec.rootfs.to_string_lossy().into_owned();
    let memory = made.memory.into_iter().map(memory_volume).collect();
    Ok(PreparedContainer { spec: spec.spec_json, rootfs, sockets: made.sockets, memory, disks: Vec::new() })
}

fn memory_volume(volume: mounts::MemoryVolume) -> bulkhead_protocol::agent::MemoryVolume {
    let mounts::MemoryVolume { number, name, size_bytes, root, sub_path, sub } = volume;
    bulkhead_protocol::agent::MemoryVolume {
        number,
        name,
        size_bytes,
        uid: root.uid,
        gid: root.gid,
        mode: root.mode,
        sub_path,
        sub_uid: sub.uid,
        sub_gid: sub.gid,
        sub_mode: sub.mode,
        ..Default::default()
    }
}

fn bind_mount(bind: &Bind) -> mounts::BindMount {
    let mut options = vec![if bind.recursive { "rbind" } else { "bind" }.to_owned()];
    match bind.read_only {
        ReadOnly::Nothing => {}
        ReadOnly::Top => options.push("ro".to_owned()),
        ReadOnly::Below => options.push("rro".to_owned()),
    }
    match bind.propagation {
        Propagation::Private => options.push("rprivate".to_owned()),
        Propagation::FromHost => options.push("rslave".to_owned()),
    }
    mounts::BindMount { source: bind.source.clone(), number: bind.index, options }
}

async fn release_mounts(mounts: &actix::Addr<mounts::Mounts>, id: &ContainerId) -> Result<(), SandboxError> {
    let (container, owned) = (id.clone(), id.clone());
    let asked = ask(mounts, mounts::Release { container: owned });
    asked.await.map_err(|failed| not_mounted(container, &failed))
}

fn not_mounted(container: ContainerId, failed: &AskError<mounts::MountsError>) -> SandboxError {
    let blame = match failed {
        AskError::Failed(error) if error.is_callers() => Blame::Caller,
        AskError::Failed(_) | AskError::Busy(_) | AskError::Gone(_) => Blame::Host,
    };
    SandboxError::Mount { container, blame, reason: chain(failed) }
}
