//! Start, execs, and the exit of a process.

use std::path::Path;
use std::sync::Arc;

use bulkhead_protocol::agent::CreateExecRequest;
use bulkhead_protocol::error::chain;
use tokio::sync::oneshot;

use super::error::ContainerError;
use super::process::Process;
use super::spec;
use super::state::{Ended, Event, State};
use super::{Container, Containers, Exec, KILL_LIMIT, bundle, check_id};
use crate::process::helper::{Job, PROCESS_FILE, STATE_DIR, launch};
use crate::process::reaper::Exit;
use crate::stdio::{self, Owner};

/// How the names of sockets begin that libcontainer leaves in a container's state directory after each exec.
const LEFTOVERS: &str = "tenant-";

impl Containers {
    /// Adds an exec. Nothing runs until it is started.
    pub(crate) async fn add_exec(self: Arc<Self>, request: CreateExecRequest) -> Result<(), ContainerError> {
        let (id, exec) = (request.container_id, request.exec_id);
        check_id(&exec)?;
        let container = self.find(&id)?;
        let _operation = container.operation.lock().await;
        container.check_running()?;
        let spec = spec::adapt_exec(&request.process, request.stdio.terminal, &container.inherited)
            .map_err(|source| ContainerError::ParseProcess { id: id.clone(), exec: exec.clone(), source })?;
        spec::check_environment(&spec)
            .map_err(|entry| ContainerError::BadVariable { process: format!("{id}/{exec}"), entry })?;
        let mut execs = container.execs();
        if execs.contains_key(&exec) {
            return Err(ContainerError::ExecExists { id, exec });
        }
        let process = Process::new(&id, &exec);
        let stdio = request.stdio.into_option().unwrap_or_default();
        execs.insert(exec, Arc::new(Exec { process, spec, stdio }));
        Ok(())
    }

    /// Starts a process and returns its pid. Idempotent while it runs.
    pub(crate) async fn start(self: Arc<Self>, id: String, exec: String) -> Result<u32, ContainerError> {
        let container = self.find(&id)?;
        let _operation = container.operation.lock().await;
        let process = container.process(&exec)?;
        match process.state() {
            State::Running { pid } => Ok(pid),
            State::Ended(_) => Err(ContainerError::HasEnded { process: process.name() }),
            State::Created { pid } => container.start(pid),
            State::Added => self.start_exec(&container, &exec).await,
        }
    }

    async fn start_exec(&self, container: &Arc<Container>, name: &str) -> Result<u32, ContainerError> {
        container.check_running()?;
        let exec = container.exec(name)?;
        let (id, process) = (&container.id, &exec.process);
        let kills = container.cgroup.oom_kills();
        let (stdio, prepared) = stdio::prepare(&exec.stdio, exec.spec.user().uid())?;
        let dir = bundle(id);
        write_process(&dir.join(PROCESS_FILE), &exec.spec)?;
        let job = Job::Exec { id: id.clone(), bundle: dir, console: prepared.console() };
        let launched = launch(&self.reaper, &job, stdio).await;
        remove_exec_sockets(id);
        let made = launched.map_err(|source| {
            let (id, exec) = (id.clone(), name.to_owned());
            ContainerError::StartExec { id, exec, source }
        })?;
        process.on(Event::Started { pid: made.pid })?;
        let exit = self.reaper.claim(made.pid, made.since_nanos);
        tokio::spawn(follow_exec(Arc::clone(container), Arc::clone(process), exit, kills));
        let owner =
            Owner { registry: Arc::clone(&self.streams), container: id.clone(), exec: name.to_owned() };
        process.attach(prepared.start(&owner, &process.writers_gone())?);
        tracing::debug!(process = process.name(), pid = made.pid, "started");
        Ok(made.pid)
    }
}

impl Container {
    fn check_running(&self) -> Result<(), ContainerError> {
        match self.init.state() {
            State::Running { .. } => Ok(()),
            State::Added | State::Created { .. } => {
                Err(ContainerError::NotStarted { process: self.init.name() })
            }
            State::Ended(_) => Err(ContainerError::HasEnded { process: self.init.name() }),
        }
    }

    /// Starts the waiting init process. The only use of libcontainer outside a helper: it writes a line to a socket and
    /// a new state file. It changes the working directory for that, which is changed back.
    fn start(&self, pid: u32) -> Result<u32, ContainerError> {
        let started = libcontainer::container::Container::load(Path::new(STATE_DIR).join(&self.id))
            .and_then(|mut container| container.start());
        if let Err(error) = std::env::set_current_dir("/") {
            tracing::warn!(%error, "cannot change back to the root directory");
        }
        started.map_err(|source| ContainerError::Start { id: self.id.clone(), source })?;
        self.init.on(Event::Started { pid })?;
        tracing::debug!(container = self.id, pid, "started");
        Ok(pid)
    }
}

/// Waits for the exit of an init process, then kills the rest of its container before its streams end.
pub(super) async fn follow_init(container: Arc<Container>, exit: oneshot::Receiver<Exit>) {
    let Ok(exit) = exit.await else { return };
    if let Err(error) = container.cgroup.kill() {
        tracing::warn!(container = container.id, error = %chain(&error), "processes may be left");
    }
    finish(&container, &container.init, exit, 0);
    if let Err(error) = container.cgroup.wait_empty(KILL_LIMIT).await {
        tracing::warn!(container = container.id, error = %chain(&error), "processes are left");
    }
    container.init.end_output();
}

/// Waits for the exit of an exec. Its output ends then, even if a child of it still has the pipe open.
async fn follow_exec(
    container: Arc<Container>,
    process: Arc<Process>,
    exit: oneshot::Receiver<Exit>,
    kills_before: u64,
) {
    let Ok(exit) = exit.await else { return };
    finish(&container, &process, exit, kills_before);
    process.end_output();
}

fn finish(container: &Container, process: &Process, exit: Exit, kills_before: u64) {
    let ended = Ended {
        status: exit.status,
        at_nanos: exit.at_nanos,
        oom_killed: container.cgroup.oom_kills() > kills_before,
    };
    tracing::debug!(process = process.name(), status = ended.status, oom = ended.oom_killed, "ended");
    if let Err(error) = process.on(Event::Exited(ended)) {
        tracing::error!(error = %chain(&error), "an exit in the wrong state");
    }
}

fn write_process(file: &Path, process: &oci_spec::runtime::Process) -> Result<(), ContainerError> {
    let write = || std::fs::write(file, serde_json::to_vec(process)?);
    write().map_err(|source| ContainerError::WriteFile { path: file.to_owned(), source })
}

/// Removes the sockets of execs that were started: a thousand probes must not leave a thousand of them.
fn remove_exec_sockets(id: &str) {
    let entries = std::fs::read_dir(Path::new(STATE_DIR).join(id)).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(LEFTOVERS)) {
        if let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::debug!(path = %entry.path().display(), %error, "an exec's socket stays");
        }
    }
}
