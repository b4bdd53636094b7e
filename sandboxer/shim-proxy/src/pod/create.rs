//! Create: the sandboxer prepares the host's part, the agent creates the container, the streams are connected.

use std::time::Duration;

use bulkhead_protocol::agent::{self, CreateContainerRequest};
use bulkhead_protocol::error::chain;
use bulkhead_protocol::pod::{HostSocket, PrepareContainerRequest, PrepareContainerResponse};
use containerd_shim_protos::api::Mount;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::container::Container;
use super::process::ProcessRef;
use super::{Pod, PodHandle, remove, without_deadline};
use crate::error::TaskError;
use crate::host_sockets::HostSockets;
use crate::lifecycle::{Event, State};
use crate::runtime::owner::Message;
use crate::runtime::shared_task::SharedTask;
use crate::runtime::trace::Trace;
use crate::stdio::{self, GuestEnds, HostEnds, Streams};

/// How long a failure that comes at the caller's deadline may still wait until it is undone.
const LAST_MOMENT: Duration = Duration::from_millis(50);

/// What containerd says of a new container.
#[derive(Debug)]
pub(crate) struct NewContainer {
    /// Its id.
    pub(crate) id: String,
    /// Absolute path of the bundle.
    pub(crate) bundle: String,
    /// The snapshotter's mounts, not mounted by containerd.
    pub(crate) rootfs: Vec<Mount>,
    /// Its stdio.
    pub(crate) stdio: stdio::Request,
    /// The trace that its creation belongs to.
    pub(crate) trace: Trace,
}

impl PodHandle {
    /// Creates a container and answers its pid. Runs to its end without its caller; a repeated call joins it. When it
    /// fails, nothing is left behind.
    ///
    /// # Errors
    /// What failed; [`TaskError::AlreadyExists`] for an id in use.
    pub(crate) async fn create(&self, new: NewContainer, until: Instant) -> Result<u32, TaskError> {
        // No deadline here: at `until` the work gives up by itself and answers why, once it is undone.
        self.ask(BeginCreate { new, until }).await??.join().await
    }
}

struct BeginCreate {
    new: NewContainer,
    until: Instant,
}

impl Message<Pod> for BeginCreate {
    type Answer = Result<SharedTask<u32>, TaskError>;
    fn handle(self, pod: &mut Pod) -> Self::Answer {
        pod.begin_create(self.new, self.until)
    }
}

/// The guest has created a process.
pub(super) struct Created {
    /// Which.
    pub(super) process: ProcessRef,
    /// Its pid; 0 for an exec.
    pub(super) pid: u32,
    /// Its streams.
    pub(super) streams: Streams,
    /// The host's sockets of a container.
    pub(super) sockets: Option<HostSockets>,
}

impl Message<Pod> for Created {
    type Answer = Result<State, TaskError>;
    fn handle(self, pod: &mut Pod) -> Self::Answer {
        let Self { process, pid, streams, sockets } = self;
        let container = pod.container_mut(&process).ok_or_else(|| process.unknown())?;
        if let Some(sockets) = sockets {
            container.sockets = Some(sockets);
        }
        container.process_mut(&process).ok_or_else(|| process.unknown())?.streams = Some(streams);
        let state = pod.feed(&process, Event::Created { pid })?;
        // Nothing watches an exec that has not been started: its VM may have gone meanwhile.
        if let Some(exit) = pod.handle.links.agent.gone().filter(|_| pid == 0) {
            pod.note(&process, Event::Ended(exit));
        }
        Ok(state)
    }
}

impl Pod {
    fn begin_create(&mut self, new: NewContainer, until: Instant) -> Result<SharedTask<u32>, TaskError> {
        if new.id.is_empty() || new.id.len() > 255 || !new.bundle.starts_with('/') {
            let text = format!("a container needs an id and an absolute bundle path, not {:?}", new.bundle);
            return Err(TaskError::BadRequest(text));
        }
        if let Ok(known) = self.find(&new.id, "") {
            return self.repeated_creation(&known);
        }
        let id = new.id.clone();
        let container = Container::new(id.clone(), new.bundle.clone(), new.rootfs.clone(), new.stdio.clone());
        let init = container.init();
        self.containers.insert(id, container);
        let creation = SharedTask::spawn(create(self.handle.clone(), init.clone(), new, until));
        self.keep_creation(&init, &creation);
        Ok(creation)
    }

    /// The creation of a process that is under way, for a caller that asks for the same again.
    pub(super) fn repeated_creation(&mut self, process: &ProcessRef) -> Result<SharedTask<u32>, TaskError> {
        match process.state() {
            State::Creating => {
                let creation = self.process_mut(process).and_then(|known| known.creation.clone());
                creation.ok_or(TaskError::Crashed)
            }
            State::Doomed
            | State::Created { .. }
            | State::Starting { .. }
            | State::Running { .. }
            | State::Paused { .. }
            | State::Stopped { .. }
            | State::Deleting { .. }
            | State::Gone { .. } => Err(TaskError::AlreadyExists { what: process.name() }),
        }
    }

    /// Keeps a creation for repeated calls.
    pub(super) fn keep_creation(&mut self, process: &ProcessRef, creation: &SharedTask<u32>) {
        if let Some(known) = self.process_mut(process) {
            known.creation = Some(creation.clone());
        }
    }
}

async fn create(
    pod: PodHandle,
    process: ProcessRef,
    new: NewContainer,
    until: Instant,
) -> Result<u32, TaskError> {
    let mut progress = Progress::default();
    match attempt(&pod, &process, &new, until, &mut progress).await {
        Ok((pid, streams, sockets)) => {
            let created = Created { process: process.clone(), pid, streams, sockets: Some(sockets) };
            if pod.ask(created).await??.is_missing() {
                process.until(|state| matches!(state, State::Gone { .. })).await;
                return Err(process.unknown());
            }
            info!(container = process.container_id(), pid, "created");
            Ok(pid)
        }
        Err(error) => {
            warn!(container = process.container_id(), error = chain(&error), "create failed");
            let undone = tokio::spawn(async move {
                remove::undo(&pod, &process, progress.guest, progress.host).await;
                pod.note(&process, Event::CreateFailed).await;
            });
            // Until it is undone the id stays in use. The caller gets the error at its deadline all the same.
            let latest = until.max(Instant::now() + LAST_MOMENT);
            drop(timeout_at(latest, undone).await);
            Err(error)
        }
    }
}

/// How far an attempt came: what there may be to undo.
#[derive(Debug, Default)]
struct Progress {
    host: bool,
    guest: bool,
}

async fn attempt(
    pod: &PodHandle,
    process: &ProcessRef,
    new: &NewContainer,
    until: Instant,
    progress: &mut Progress,
) -> Result<(u32, Streams, HostSockets), TaskError> {
    let links = pod.links();
    let host = HostEnds::open(&new.stdio, &links.streams).await?;
    progress.host = true;
    let mut prepared = prepare(pod, new, until).await?;
    let sockets = std::mem::take(&mut prepared.host_sockets);
    let for_guest = sockets.iter().map(socket_for_guest).collect();
    let request = CreateContainerRequest { sockets: for_guest, ..guest_request(new, prepared)? };
    let act = "create the container";
    let vsock = links.agent.ready(act, until).await?;
    progress.guest = true;
    let create = links
        .agent
        .call(act, until, |agent| async move { agent.create_container(without_deadline(), &request).await });
    // Both run to their end: what was not waited for could not be undone.
    let (created, guest) = tokio::join!(create, GuestEnds::connect(&vsock, process.owner(), &new.stdio));
    let pid = created?.pid;
    let streams = Streams::start(host, guest?);
    Ok((pid, streams, HostSockets::serve(&vsock, &new.id, sockets)))
}

/// A socket of the host in the form of the agent's contract: the guest does not learn its path.
fn socket_for_guest(socket: &HostSocket) -> agent::HostSocket {
    agent::HostSocket {
        number: socket.number,
        uid: socket.uid,
        gid: socket.gid,
        mode: socket.mode,
        ..Default::default()
    }
}

async fn prepare(
    pod: &PodHandle,
    new: &NewContainer,
    until: Instant,
) -> Result<PrepareContainerResponse, TaskError> {
    let mounts = new.rootfs.iter().map(|mount| bulkhead_protocol::pod::Mount {
        type_: mount.type_.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
        ..Default::default()
    });
    let request = PrepareContainerRequest {
        sandbox_id: pod.links().sandbox_id.clone(),
        container_id: new.id.clone(),
        bundle: new.bundle.clone(),
        rootfs: mounts.collect(),
        terminal: new.stdio.terminal,
        stdin: new.stdio.stdin.clone(),
        stdout: new.stdio.stdout.clone(),
        stderr: new.stdio.stderr.clone(),
        ..Default::default()
    };
    let call = pod.links().sandboxer.call("prepare the container", until, |sandboxer| {
        let (trace, request) = (new.trace.without_deadline(), request.clone());
        async move { sandboxer.prepare_container(trace, &request).await }
    });
    call.await
}

fn guest_request(
    new: &NewContainer,
    prepared: PrepareContainerResponse,
) -> Result<CreateContainerRequest, TaskError> {
    Ok(CreateContainerRequest {
        container_id: new.id.clone(),
        mounts: parse_all("guest mount", &prepared.guest_mounts)?,
        disks: parse_all("guest disk", &prepared.guest_disks)?,
        memory_volumes: parse_all("volume in memory", &prepared.guest_memory_volumes)?,
        spec: prepared.guest_spec,
        rootfs: prepared.guest_rootfs,
        stdio: Some(new.stdio.for_guest()).into(),
        ..Default::default()
    })
}

/// Parses messages of the agent's contract that the sandboxer has put into its answer.
fn parse_all<M: protobuf::Message>(what: &str, serialised: &[Vec<u8>]) -> Result<Vec<M>, TaskError> {
    let parsed = serialised.iter().map(|bytes| M::parse_from_bytes(bytes));
    parsed.collect::<Result<_, _>>().map_err(|error| {
        let status = ttrpc::get_status(ttrpc::Code::INTERNAL, format!("cannot read a {what}: {error}"));
        TaskError::SandboxerFailed { act: "prepare the container", status }
    })
}
