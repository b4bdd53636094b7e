//! Create: the sandboxer prepares the host's part, the agent makes the container, the streams are joined.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::agent::{self, CreateContainerRequest};
use bulkhead_protocol::pod::{HostSocket, PrepareContainerRequest, PrepareContainerResponse};
use containerd_shim_protos::api::Mount;
use protobuf::Message;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};
use ttrpc::context;

use super::process::{At, Container};
use super::{Pod, remove};
use crate::error::TaskError;
use crate::host_sockets::Sockets;
use crate::lifecycle::{Event, State};
use crate::runtime::lock::locked;
use crate::runtime::shared_task::Flight;
use crate::stdio::{self, GuestEnds, HostEnds, Streams};
use crate::runtime::trace::Trace;

/// How long a failure that comes at the caller's deadline may wait for its undoing.
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

impl Pod {
    /// Creates a container and answers its pid. Runs to its end without its caller; a repeat joins it. When it
    /// fails, nothing is left.
    ///
    /// # Errors
    /// What failed; [`TaskError::AlreadyExists`] for an id in use.
    pub(crate) async fn create(
        self: &Arc<Self>,
        new: NewContainer,
        until: Instant,
    ) -> Result<u32, TaskError> {
        // Not bounded here: at `until` the work gives up by itself and says why, once it is undone.
        self.begin_create(new, until)?.join().await
    }

    fn begin_create(self: &Arc<Self>, new: NewContainer, until: Instant) -> Result<Flight<u32>, TaskError> {
        if new.id.is_empty() || new.id.len() > 255 || !new.bundle.starts_with('/') {
            let text = format!("a container needs an id and an absolute bundle path, not {:?}", new.bundle);
            return Err(TaskError::BadRequest(text));
        }
        let mut containers = locked(&self.containers);
        if let Some(known) = containers.get(&new.id) {
            let init = known.at_init();
            return match init.process.state() {
                State::Creating => init.process.creation(),
                State::Doomed
                | State::Created { .. }
                | State::Starting { .. }
                | State::Running { .. }
                | State::Paused { .. }
                | State::Stopped { .. }
                | State::Deleting { .. }
                | State::Gone { .. } => Err(TaskError::AlreadyExists { what: init.name() }),
            };
        }
        let rootfs = new.rootfs.clone();
        let container = Container::new(new.id.clone(), new.bundle.clone(), rootfs, new.stdio.clone());
        containers.insert(new.id.clone(), container.clone());
        drop(containers);
        let at = container.at_init();
        let flight = Flight::launch(create(self.clone(), at.clone(), new, until));
        at.process.set_creation(flight.clone());
        Ok(flight)
    }
}

async fn create(pod: Arc<Pod>, at: At, new: NewContainer, until: Instant) -> Result<u32, TaskError> {
    let mut reached = Reached::default();
    match attempt(&pod, &at, &new, until, &mut reached).await {
        Ok((pid, streams)) => {
            at.process.set_streams(streams);
            pod.feed(&at, Event::Created { pid })?;
            if at.process.state().is_missing() {
                at.process.until(|state| matches!(state, State::Gone { .. })).await;
                return Err(at.unknown());
            }
            info!(container = at.container.id, pid, "created");
            Ok(pid)
        }
        Err(error) => {
            warn!(container = at.container.id, error = crate::error::chain(&error), "create failed");
            let undone = tokio::spawn(async move {
                remove::undo(&pod, &at, reached.guest, reached.host).await;
                pod.note(&at, Event::CreateFailed);
            });
            // Until it is undone the id stays taken; the caller hears why it failed all the same.
            let latest = until.max(Instant::now() + LAST_MOMENT);
            drop(timeout_at(latest, undone).await);
            Err(error)
        }
    }
}

/// How far an attempt came: what there may be to undo.
#[derive(Debug, Default)]
struct Reached {
    host: bool,
    guest: bool,
}

async fn attempt(
    pod: &Arc<Pod>,
    at: &At,
    new: &NewContainer,
    until: Instant,
    reached: &mut Reached,
) -> Result<(u32, Streams), TaskError> {
    let host = HostEnds::open(&new.stdio, &pod.switchboard)?;
    reached.host = true;
    let mut prepared = prepare(pod, new, until).await?;
    let sockets = std::mem::take(&mut prepared.host_sockets);
    let shown = sockets.iter().map(shown).collect();
    let request = CreateContainerRequest { sockets: shown, ..guest_request(new, prepared)? };
    let act = "create the container";
    pod.agent.ready(act, until).await?;
    let vsock = pod.vsock.get().ok_or(TaskError::AgentUnreachable { act })?;
    reached.guest = true;
    let made = pod.agent.call(act, until, |agent| async move {
        agent.create_container(context::with_timeout(0), &request).await
    });
    // Both run to their end: an answer that is not waited for could not be undone.
    let (made, guest) = tokio::join!(made, GuestEnds::connect(vsock, at.owner(), &new.stdio));
    let pid = made?.pid;
    let streams = Streams::start(host, guest?);
    at.container.set_sockets(Sockets::serve(vsock, &new.id, sockets));
    Ok((pid, streams))
}

/// What the guest knows of a socket.
fn shown(socket: &HostSocket) -> agent::HostSocket {
    agent::HostSocket {
        number: socket.number,
        uid: socket.uid,
        gid: socket.gid,
        mode: socket.mode,
        ..Default::default()
    }
}

async fn prepare(
    pod: &Arc<Pod>,
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
        sandbox_id: pod.sandbox_id.clone(),
        container_id: new.id.clone(),
        bundle: new.bundle.clone(),
        rootfs: mounts.collect(),
        terminal: new.stdio.terminal,
        stdin: new.stdio.stdin.clone(),
        stdout: new.stdio.stdout.clone(),
        stderr: new.stdio.stderr.clone(),
        ..Default::default()
    };
    let call = pod.control.call("prepare the container", until, |sandboxer| {
        let (trace, request) = (new.trace.patient(), request.clone());
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
        mounts: parts("guest mount", &prepared.guest_mounts)?,
        disks: parts("guest disk", &prepared.guest_disks)?,
        memory_volumes: parts("volume in memory", &prepared.guest_memory_volumes)?,
        spec: prepared.guest_spec,
        rootfs: prepared.guest_rootfs,
        stdio: Some(new.stdio.for_guest()).into(),
        ..Default::default()
    })
}

/// Messages of the agent's contract, which the sandboxer has put in its answer for it.
fn parts<M: Message>(what: &str, serialised: &[Vec<u8>]) -> Result<Vec<M>, TaskError> {
    let parsed = serialised.iter().map(|bytes| M::parse_from_bytes(bytes));
    parsed.collect::<Result<_, _>>().map_err(|error| {
        let status = ttrpc::get_status(ttrpc::Code::INTERNAL, format!("cannot read a {what}: {error}"));
        TaskError::SandboxerFailed { act: "prepare the container", status }
    })
}
