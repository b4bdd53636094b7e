//! What is kept in memory of a container and of each process in it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bulkhead_protocol::agent::ProcessRef;
use containerd_shim_protos::api::Mount;
use containerd_shim_protos::events::task as events;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::TaskError;
use crate::host_sockets::Sockets;
use crate::lifecycle::{Event, Refusal, State, Step, step};
use crate::runtime::clock;
use crate::runtime::lock::locked;
use crate::runtime::shared_task::Flight;
use crate::stdio::{self, Streams};

/// A container: its init process and its execs.
#[derive(Debug)]
pub(crate) struct Container {
    /// As containerd named it.
    pub(crate) id: String,
    /// containerd's directory for it.
    pub(crate) bundle: String,
    /// Whether subscribers have heard of an OOM kill in it.
    pub(crate) oom_told: AtomicBool,
    /// Whether containerd is known to have given it up.
    pub(crate) given_up: AtomicBool,
    init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    oom_watch: Mutex<Option<JoinHandle<()>>>,
    sockets: Mutex<Option<Sockets>>,
    /// Kept for the creation's event.
    rootfs: Mutex<Vec<Mount>>,
}

/// A process and the container it belongs to.
#[derive(Debug, Clone)]
pub(crate) struct At {
    /// The container.
    pub(crate) container: Arc<Container>,
    /// Its init process or one of its execs.
    pub(crate) process: Arc<Process>,
}

impl Container {
    /// A container about to be created.
    pub(crate) fn new(id: String, bundle: String, rootfs: Vec<Mount>, stdio: stdio::Request) -> Arc<Self> {
        Arc::new(Self {
            id,
            bundle,
            oom_told: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            init: Process::new(String::new(), stdio),
            execs: Mutex::default(),
            oom_watch: Mutex::default(),
            sockets: Mutex::default(),
            rootfs: Mutex::new(rootfs),
        })
    }

    /// Its init process.
    pub(crate) fn at_init(self: &Arc<Self>) -> At {
        At { container: self.clone(), process: self.init.clone() }
    }

    /// An exec by its id; its init process for the empty id.
    pub(crate) fn at(self: &Arc<Self>, exec: &str) -> Option<At> {
        if exec.is_empty() {
            return Some(self.at_init());
        }
        let process = locked(&self.execs).get(exec).cloned()?;
        Some(At { container: self.clone(), process })
    }

    /// Its execs first, its init process last.
    pub(crate) fn everything(self: &Arc<Self>) -> Vec<At> {
        let execs: Vec<_> = locked(&self.execs).values().cloned().collect();
        let at = |process| At { container: self.clone(), process };
        execs.into_iter().map(at).chain([self.at_init()]).collect()
    }

    /// Adds an exec about to be created; none when the id is in use.
    pub(crate) fn add_exec(self: &Arc<Self>, exec: &str, stdio: stdio::Request) -> Option<At> {
        let mut execs = locked(&self.execs);
        if execs.contains_key(exec) {
            return None;
        }
        let process = Process::new(exec.to_owned(), stdio);
        execs.insert(exec.to_owned(), process.clone());
        Some(At { container: self.clone(), process })
    }

    /// Forgets an exec.
    pub(crate) fn drop_exec(&self, process: &Arc<Process>) {
        let mut execs = locked(&self.execs);
        if execs.get(&process.exec).is_some_and(|known| Arc::ptr_eq(known, process)) {
            execs.remove(&process.exec);
        }
    }

    /// Keeps its sockets served.
    pub(crate) fn set_sockets(&self, sockets: Sockets) {
        *locked(&self.sockets) = Some(sockets);
    }

    /// Serves its sockets no more.
    pub(crate) fn drop_sockets(&self) {
        drop(locked(&self.sockets).take());
    }

    /// Forgets its execs and ends its watch.
    pub(crate) fn clear(&self) {
        self.drop_sockets();
        locked(&self.execs).clear();
        if let Some(watch) = locked(&self.oom_watch).take() {
            watch.abort();
        }
    }

    /// Keeps the task that watches for OOM kills.
    pub(crate) fn set_oom_watch(&self, watch: JoinHandle<()>) {
        *locked(&self.oom_watch) = Some(watch);
    }

    /// The event of its creation. Gives away what is kept for it.
    pub(crate) fn created(&self, pid: u32) -> events::TaskCreate {
        let stdio = &self.init.stdio;
        let io = events::TaskIO {
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            ..Default::default()
        };
        events::TaskCreate {
            container_id: self.id.clone(),
            bundle: self.bundle.clone(),
            rootfs: std::mem::take(&mut *locked(&self.rootfs)),
            io: Some(io).into(),
            pid,
            ..Default::default()
        }
    }
}

/// A process: where it is, what is under way with it, its streams.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its id among the execs; empty for the init process.
    pub(crate) exec: String,
    /// What containerd asked for, as State repeats it.
    pub(crate) stdio: stdio::Request,
    born_nanos: i64,
    state: watch::Sender<State>,
    last_pid: AtomicU32,
    creation: Mutex<Option<Flight<u32>>>,
    start: Mutex<Option<Flight<u32>>>,
    removal: Mutex<Option<Flight<()>>>,
    streams: Mutex<Option<Streams>>,
}

impl Process {
    fn new(exec: String, stdio: stdio::Request) -> Arc<Self> {
        Arc::new(Self {
            exec,
            stdio,
            born_nanos: clock::now_nanos(),
            state: watch::Sender::new(State::Creating),
            last_pid: AtomicU32::new(0),
            creation: Mutex::default(),
            start: Mutex::default(),
            removal: Mutex::default(),
            streams: Mutex::default(),
        })
    }

    /// Where it is.
    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Lets the state machine decide, and moves.
    pub(crate) fn advance(&self, event: Event) -> Result<Step, Refusal> {
        let before = self.state();
        let next = step(before, event)?;
        if next.next.pid() > 0 {
            self.last_pid.store(next.next.pid(), Ordering::Relaxed);
        }
        if next.next != before {
            self.state.send_replace(next.next);
        }
        Ok(next)
    }

    /// Its pid, also when it is gone.
    pub(crate) fn last_pid(&self) -> u32 {
        self.last_pid.load(Ordering::Relaxed)
    }

    /// Waits for a state. A process that is dropped meanwhile has been Gone before.
    pub(crate) async fn until(&self, wanted: fn(State) -> bool) -> State {
        let mut state = self.state.subscribe();
        match state.wait_for(|state| wanted(*state)).await {
            Ok(state) => *state,
            Err(_closed) => State::Gone { exit: None },
        }
    }

    /// A time of the guest, made to lie between the process's creation and now: guests' clocks may be off, and the
    /// exit time of a container must not precede its start.
    pub(crate) fn plausible(&self, nanos: i64) -> i64 {
        let now = clock::now_nanos();
        if nanos <= 0 { now } else { nanos.clamp(self.born_nanos.min(now), now) }
    }

    /// Keeps its creation for repeated calls.
    pub(crate) fn set_creation(&self, flight: Flight<u32>) {
        *locked(&self.creation) = Some(flight);
    }

    /// Its creation.
    pub(crate) fn creation(&self) -> Result<Flight<u32>, TaskError> {
        locked(&self.creation).clone().ok_or(TaskError::Crashed)
    }

    /// Keeps its start for repeated calls.
    pub(crate) fn set_start(&self, flight: Flight<u32>) {
        *locked(&self.start) = Some(flight);
    }

    /// Its start.
    pub(crate) fn start(&self) -> Result<Flight<u32>, TaskError> {
        locked(&self.start).clone().ok_or(TaskError::Crashed)
    }

    /// Keeps its removal for repeated calls.
    pub(crate) fn set_removal(&self, flight: Flight<()>) {
        *locked(&self.removal) = Some(flight);
    }

    /// Its removal.
    pub(crate) fn removal(&self) -> Result<Flight<()>, TaskError> {
        locked(&self.removal).clone().ok_or(TaskError::Crashed)
    }

    /// Keeps its streams at work.
    pub(crate) fn set_streams(&self, streams: Streams) {
        *locked(&self.streams) = Some(streams);
    }

    /// Takes the streams, to wait for their end.
    pub(crate) fn take_streams(&self) -> Option<Streams> {
        locked(&self.streams).take()
    }

    /// Ends them as they are.
    pub(crate) fn drop_streams(&self) {
        drop(self.take_streams());
    }

    /// The process has ended.
    pub(crate) fn end_streams(&self) {
        if let Some(streams) = locked(&self.streams).as_mut() {
            streams.end();
        }
    }

    /// The VM is gone.
    pub(crate) fn cut_streams(&self) {
        if let Some(streams) = locked(&self.streams).as_mut() {
            streams.cut();
        }
    }

    /// containerd will write no more to stdin.
    pub(crate) fn close_stdin(&self) {
        if let Some(streams) = locked(&self.streams).as_mut() {
            streams.close_stdin();
        }
    }
}

impl At {
    /// Whether it is the container's init process.
    pub(crate) fn is_init(&self) -> bool {
        self.process.exec.is_empty()
    }

    /// Whether there is a living process.
    pub(crate) fn is_alive(&self) -> bool {
        let state = self.process.state();
        state.pid() > 0 && state.exit().is_none()
    }

    /// For error texts.
    pub(crate) fn name(&self) -> String {
        let Container { id, .. } = &*self.container;
        if self.is_init() { format!("container {id}") } else { format!("exec {} of {id}", self.process.exec) }
    }

    /// "No such thing", for this one.
    pub(crate) fn unknown(&self) -> TaskError {
        let container = self.container.id.clone();
        if self.is_init() {
            TaskError::UnknownContainer { container }
        } else {
            TaskError::UnknownExec { container, exec: self.process.exec.clone() }
        }
    }

    /// As the agent is told.
    pub(crate) fn reference(&self) -> ProcessRef {
        ProcessRef {
            container_id: self.container.id.clone(),
            exec_id: self.process.exec.clone(),
            ..Default::default()
        }
    }

    /// Whose streams they are.
    pub(crate) fn owner(&self) -> stdio::Owner<'_> {
        stdio::Owner { container: &self.container.id, exec: &self.process.exec }
    }
}
