//! The way in for the services: every request a node can have about its sandboxes, as async functions.
//!
//! Each call is a message to an actor; dropping its future takes nothing back. A caller of Create or Start that goes
//! away before the answer says so with [`Sandboxes::abandon`].

use std::sync::Arc;

use actix::{Actor, Addr, Handler, Message};
use bulkhead_config::Settings;
use futures::future::join_all;

use crate::ask::{AskError, Command, Request, ask};
use crate::containers::{self, ContainerRequest, PreparedContainer};
use crate::id::{ContainerId, SandboxId};
use crate::pod_spec::Resources;
use crate::registry::{self, List, Lookup, RecoveryReport, Registry};
use crate::sandbox::record::{RecordError, Store};
use crate::sandbox::{
    Abandon, CreateSandbox, Exited, Metrics, NodeContext, Observe, Orphan, PodMetrics, PrepareContainer,
    Sandbox, SandboxError, Shutdown, Snapshot, Start, Started, Stop, Update, Wait,
};
use crate::telemetry::Telemetry;
use crate::vm::Drivers;

/// A handle to every sandbox of the node.
#[derive(Debug, Clone)]
pub struct Sandboxes {
    registry: Addr<Registry>,
}

impl Sandboxes {
    /// Reads the records, takes over what runs, and answers when every sandbox can be asked about. What else is to be
    /// done goes on behind it. Must be called on an actix system.
    ///
    /// # Errors
    /// [`RecordError`] when the state directory cannot be used.
    pub fn start_up(
        settings: Arc<Settings>,
        drivers: Drivers,
        telemetry: Telemetry,
    ) -> Result<(Self, RecoveryReport), RecordError> {
        let store = Store::open(&settings.sandboxer.state_dir)?;
        let (recovered, report) = registry::recover(&store, &settings.sandboxer.run_dir)?;
        report.count_in(&telemetry);
        let node = NodeContext { settings, drivers, store, telemetry };
        Ok((Self { registry: Registry::new(node, recovered).start() }, report))
    }

    /// Makes a sandbox: its host side is there and its VM is being launched when this answers.
    ///
    /// # Errors
    /// [`SandboxError::AlreadyExists`], or [`SandboxError::Ended`] with what failed; nothing is left then.
    pub async fn create(&self, request: CreateSandbox) -> Result<(), SandboxError> {
        let id = request.id.clone();
        let asked = ask(&self.registry, registry::Create { request: Box::new(request) });
        asked.await.map_err(|error| flatten(error, &id))
    }

    /// Waits until the sandbox runs.
    ///
    /// # Errors
    /// [`SandboxError::Ended`] with what failed (nothing is left then), [`SandboxError::Refused`],
    /// [`SandboxError::NotFound`].
    pub async fn start(&self, id: &SandboxId) -> Result<Started, SandboxError> {
        self.command(id, Start).await
    }

    /// The caller of Create or Start went away unanswered: undo the sandbox. One that runs, and so was answered, and
    /// an unknown one are left alone.
    pub async fn abandon(&self, id: &SandboxId) {
        if let Ok(sandbox) = self.lookup(id).await {
            // A closed mailbox has nothing to abandon.
            let _closed = sandbox.send(Abandon).await;
        }
    }

    /// Ends the VM and releases everything. An unknown sandbox is stopped already.
    ///
    /// # Errors
    /// [`SandboxError::Leftover`] with what could not be released.
    pub async fn stop(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.done_when_gone(id, self.command(id, Stop).await).await
    }

    /// Stops and forgets. An unknown sandbox is forgotten already.
    ///
    /// # Errors
    /// [`SandboxError::Leftover`] with what could not be released.
    pub async fn shutdown(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.done_when_gone(id, self.command(id, Shutdown).await).await
    }

    /// Waits for the sandbox's end.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`]; [`SandboxError::Gone`] when asking again may succeed.
    pub async fn wait(&self, id: &SandboxId) -> Result<Exited, SandboxError> {
        self.command(id, Wait).await
    }

    /// What is there to see.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`].
    pub async fn status(&self, id: &SandboxId) -> Result<Snapshot, SandboxError> {
        self.query(id, Observe).await
    }

    /// What is there to see of every sandbox.
    pub async fn list(&self) -> Vec<Snapshot> {
        let sandboxes = self.registry.send(List).await.unwrap_or_default();
        let snapshots = join_all(sandboxes.iter().map(|sandbox| sandbox.send(Observe))).await;
        snapshots.into_iter().flatten().collect()
    }

    /// The pod's figures as the host sees them.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::NoMetrics`], [`SandboxError::Resources`].
    pub async fn metrics(&self, id: &SandboxId) -> Result<PodMetrics, SandboxError> {
        self.command(id, Metrics).await
    }

    /// Gives a running pod other limits; what is not set keeps what it is.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`]; [`SandboxError::Unchangeable`] with what cannot be changed, and then nothing is;
    /// [`SandboxError::Record`] when they hold for this life of the service only.
    pub async fn update(
        &self,
        id: &SandboxId,
        resources: Resources,
        overhead: Resources,
    ) -> Result<(), SandboxError> {
        self.command(id, Update { resources, overhead }).await
    }

    /// containerd's store does not know this sandbox: end it.
    pub async fn orphan(&self, id: &SandboxId) {
        if let Ok(sandbox) = self.lookup(id).await {
            // A closed mailbox has nothing to end.
            let _closed = sandbox.send(Orphan).await;
        }
    }

    /// Makes what a container needs: its block devices and mounts.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::Gone`], or [`SandboxError::Container`] with what failed; nothing is left
    /// then.
    pub async fn prepare_container(
        &self,
        id: &SandboxId,
        request: ContainerRequest,
    ) -> Result<PreparedContainer, SandboxError> {
        self.command(id, PrepareContainer { request }).await
    }

    /// Undoes [`Sandboxes::prepare_container`]. Unknown ones are undone already.
    ///
    /// # Errors
    /// [`SandboxError::Container`] with what could not be undone; a repeat tries it again.
    pub async fn release_container(
        &self,
        id: &SandboxId,
        container: ContainerId,
    ) -> Result<(), SandboxError> {
        let released = self.command(id, containers::Release { id: container }).await;
        self.done_when_gone(id, released).await
    }

    /// Notes a container's pid in the guest.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`].
    pub async fn container_started(
        &self,
        id: &SandboxId,
        container: ContainerId,
        guest_pid: u32,
    ) -> Result<(), SandboxError> {
        self.query(id, containers::Started { id: container, guest_pid }).await
    }

    /// Stop, Shutdown and release have reached their end when the sandbox is not there, or left while they were on
    /// their way to it.
    async fn done_when_gone(
        &self,
        id: &SandboxId,
        outcome: Result<(), SandboxError>,
    ) -> Result<(), SandboxError> {
        match outcome {
            Err(SandboxError::NotFound(_)) => Ok(()),
            Err(SandboxError::Gone(_)) if self.lookup(id).await.is_err() => Ok(()),
            other => other,
        }
    }

    async fn lookup(&self, id: &SandboxId) -> Result<Addr<Sandbox>, SandboxError> {
        let found = self.registry.send(Lookup(id.clone())).await;
        found.ok().flatten().ok_or_else(|| SandboxError::NotFound(id.clone()))
    }

    async fn command<C>(&self, id: &SandboxId, command: C) -> Result<C::Answer, SandboxError>
    where
        C: Command<Error: Into<SandboxError>>,
        Sandbox: Handler<Request<C>>,
    {
        let sandbox = self.lookup(id).await?;
        ask(&sandbox, command).await.map_err(|error| flatten(error, id))
    }

    async fn query<M>(&self, id: &SandboxId, query: M) -> Result<M::Result, SandboxError>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        Sandbox: Handler<M>,
    {
        let answer = self.lookup(id).await?.send(query).await;
        answer.map_err(|_closed| SandboxError::NotFound(id.clone()))
    }
}

fn flatten(error: AskError<impl Into<SandboxError>>, id: &SandboxId) -> SandboxError {
    match error {
        AskError::Failed(error) => error.into(),
        AskError::Busy(_) => SandboxError::Busy(id.clone()),
        AskError::Gone(_) => SandboxError::Gone(id.clone()),
    }
}
