//! What is kept in memory of a process, and how others refer to it.

use std::sync::Arc;

use bulkhead_protocol::agent;
use tokio::sync::watch;

use crate::error::TaskError;
use crate::lifecycle::{Event, Refusal, State, Step, step};
use crate::runtime::clock;
use crate::runtime::shared_task::SharedTask;
use crate::stdio::{self, Streams};

/// What never changes of a container.
#[derive(Debug)]
pub(super) struct ContainerInfo {
    /// As containerd named it.
    pub(super) id: String,
    /// containerd's directory for it.
    pub(super) bundle: String,
}

/// What never changes of a process.
#[derive(Debug)]
struct ProcessInfo {
    /// Its id among the execs; empty for the init process.
    exec: String,
    stdio: stdio::Request,
    created_nanos: i64,
}

/// A process, owned by the pod: its state, the work under way with it, its streams.
#[derive(Debug)]
pub(super) struct Process {
    info: Arc<ProcessInfo>,
    state: watch::Sender<State>,
    /// Its pid, also when it is gone; 0 when it never had one.
    pub(super) last_pid: u32,
    /// Its creation, for repeated calls.
    pub(super) creation: Option<SharedTask<u32>>,
    /// Its start, for repeated calls.
    pub(super) start: Option<SharedTask<u32>>,
    /// Its removal, for repeated calls.
    pub(super) removal: Option<SharedTask<()>>,
    /// Its running streams.
    pub(super) streams: Option<Streams>,
}

impl Process {
    /// A process that is about to be created.
    pub(super) fn new(exec: String, stdio: stdio::Request) -> Self {
        Self {
            info: Arc::new(ProcessInfo { exec, stdio, created_nanos: clock::now_nanos() }),
            state: watch::Sender::new(State::Creating),
            last_pid: 0,
            creation: None,
            start: None,
            removal: None,
            streams: None,
        }
    }

    /// A reference to it, for others.
    pub(super) fn reference(&self, container: &Arc<ContainerInfo>) -> ProcessRef {
        ProcessRef { container: container.clone(), process: self.info.clone(), state: self.state.subscribe() }
    }

    /// Whether the reference is to this process, and not to another one with the same id.
    pub(super) fn is(&self, process: &ProcessRef) -> bool {
        Arc::ptr_eq(&self.info, &process.process)
    }

    /// Its state.
    pub(super) fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Whether there is a living process.
    pub(super) fn is_alive(&self) -> bool {
        let state = self.state();
        state.pid() > 0 && state.exit().is_none()
    }

    /// Lets the state machine decide, and takes the new state.
    pub(super) fn advance(&mut self, event: Event) -> Result<Step, Refusal> {
        let before = self.state();
        let step = step(before, event)?;
        if step.next.pid() > 0 {
            self.last_pid = step.next.pid();
        }
        if step.next != before {
            self.state.send_replace(step.next);
        }
        Ok(step)
    }

    /// The VM is gone: output that has reached the host is still delivered.
    pub(super) fn cut_streams(&mut self) {
        if let Some(streams) = &mut self.streams {
            streams.cut();
        }
    }
}

/// A reference to a process of the pod: a container's init process or one of its execs. It stays valid when the process
/// is forgotten, and is never mistaken for a later process with the same ids.
#[derive(Debug, Clone)]
pub(crate) struct ProcessRef {
    container: Arc<ContainerInfo>,
    process: Arc<ProcessInfo>,
    state: watch::Receiver<State>,
}

impl ProcessRef {
    /// The container's id.
    pub(crate) fn container_id(&self) -> &str {
        &self.container.id
    }

    /// The container's bundle.
    pub(crate) fn bundle(&self) -> &str {
        &self.container.bundle
    }

    /// The exec's id; empty for the init process.
    pub(crate) fn exec_id(&self) -> &str {
        &self.process.exec
    }

    /// What containerd asked for.
    pub(crate) fn stdio(&self) -> &stdio::Request {
        &self.process.stdio
    }

    /// The state of the process.
    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Whether it is the container's init process.
    pub(crate) fn is_init(&self) -> bool {
        self.process.exec.is_empty()
    }

    /// Whether both are of the same container.
    pub(super) fn is_of(&self, container: &Arc<ContainerInfo>) -> bool {
        Arc::ptr_eq(&self.container, container)
    }

    /// Waits for a state. A process that was forgotten in another state counts as gone.
    pub(super) async fn until(&self, wanted: impl Fn(State) -> bool) -> State {
        match self.state.clone().wait_for(|state| wanted(*state)).await {
            Ok(state) => *state,
            Err(_forgotten) => State::Gone { exit: None },
        }
    }

    /// The name of the process in error texts.
    pub(super) fn name(&self) -> String {
        let id = &self.container.id;
        if self.is_init() { format!("container {id}") } else { format!("exec {} of {id}", self.process.exec) }
    }

    /// The error "no such process".
    pub(super) fn unknown(&self) -> TaskError {
        let container = self.container.id.clone();
        if self.is_init() {
            TaskError::UnknownContainer { container }
        } else {
            TaskError::UnknownExec { container, exec: self.process.exec.clone() }
        }
    }

    /// The reference in the form of the agent's contract.
    pub(super) fn for_agent(&self) -> agent::ProcessRef {
        agent::ProcessRef {
            container_id: self.container.id.clone(),
            exec_id: self.process.exec.clone(),
            ..Default::default()
        }
    }

    /// The owner of its streams.
    pub(super) fn owner(&self) -> stdio::Owner<'_> {
        stdio::Owner { container: &self.container.id, exec: &self.process.exec }
    }

    /// A time of the guest, clamped between the creation of the process and now: guests' clocks may be off, and the
    /// exit of a container must not precede its start.
    pub(super) fn clamp_time(&self, nanos: i64) -> i64 {
        let now = clock::now_nanos();
        if nanos <= 0 { now } else { nanos.clamp(self.process.created_nanos.min(now), now) }
    }
}
