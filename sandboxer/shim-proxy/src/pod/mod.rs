//! The pod as containerd sees it: its containers and execs, what happens to them, and the work that follows.
//!
//! One task owns the [`Pod`] by value, in memory only; everybody else has a [`PodHandle`] and sends messages. A handler
//! never waits, so State and Pids are answered at once, whatever else is under way. Every change of a process goes
//! through [`Pod::feed`]: the state machine decides, [`Pod::perform`] starts the work. The work is a task of its own,
//! which sends what came of it as the next event.

mod announce;
mod bundles;
mod callers;
mod container;
mod cpuset;
mod create;
mod exec;
mod hung;
mod kill;
mod observe;
mod process;
mod remove;
mod run;
mod stats;
mod vm;
mod watch;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use bulkhead_protocol::KILLED_STATUS;
use tokio::sync::Notify;
use tracing::warn;
use ttrpc::context::{self, Context};

use crate::error::TaskError;
use crate::guest::agent::AgentLink;
use crate::host::events::Events;
use crate::host::sandboxer::Sandboxer;
use crate::lifecycle::{Effect, Event, Exit, State, step};
use crate::runtime::clock;
use crate::runtime::owner::{Address, Message};
use crate::runtime::shared_task::SharedTask;
use crate::stdio::StreamRegistry;
use callers::Callers;
use container::Container;
use process::Process;
use vm::Vm;

pub(crate) use callers::CallerId;
pub(crate) use create::NewContainer;
pub(crate) use exec::NewExec;
pub(crate) use kill::Signal;
pub(crate) use process::ProcessRef;
pub(crate) use run::Freeze;
pub(crate) use vm::AttachError;

/// The pod of this proxy.
#[derive(Debug)]
pub(crate) struct Pod {
    handle: PodHandle,
    containers: HashMap<String, Container>,
    callers: Callers,
    vm: Vm,
}

/// The pod for everybody but its owner. Clones are for the same pod.
#[derive(Debug, Clone)]
pub(crate) struct PodHandle {
    address: Address<Pod>,
    links: Arc<Links>,
}

/// What work for the pod uses, and what nobody has to own.
#[derive(Debug)]
pub(crate) struct Links {
    /// The sandbox.
    pub(crate) sandbox_id: String,
    /// The session with its guest.
    pub(crate) agent: AgentLink,
    /// The sandboxer.
    pub(crate) sandboxer: Sandboxer,
    /// Events for containerd.
    pub(crate) events: Events,
    /// Where containerd's stdio streams wait for their processes.
    pub(crate) streams: StreamRegistry,
    /// Asks the process to end.
    pub(crate) shutdown: Notify,
}

impl PodHandle {
    /// A pod without containers, whose VM is not known yet, owned by a new task. `control` is the sandboxer's socket.
    pub(crate) fn spawn(sandbox_id: String, control: PathBuf, events: Events) -> Self {
        let links = Links {
            sandbox_id,
            agent: AgentLink::unattached(),
            sandboxer: Sandboxer { path: control },
            events,
            streams: StreamRegistry::spawn(),
            shutdown: Notify::new(),
        };
        let (address, inbox) = Address::new();
        let handle = Self { address, links: Arc::new(links) };
        let pod = Pod {
            handle: handle.clone(),
            containers: HashMap::new(),
            callers: Callers::default(),
            vm: Vm::default(),
        };
        tokio::spawn(inbox.serve(pod));
        tokio::spawn(bundles::watch(handle.clone()));
        handle
    }

    /// What work for the pod uses.
    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    /// Sends a message and waits for the answer.
    async fn ask<M: Message<Pod>>(&self, message: M) -> Result<M::Answer, TaskError> {
        self.address.ask(message).await.map_err(|_no_answer| TaskError::Crashed)
    }

    /// Sends a message whose answer does not matter.
    fn tell<M: Message<Pod>>(&self, message: M) {
        self.address.tell(message);
    }

    /// A container's init process (with an empty exec id), or one of its execs.
    ///
    /// # Errors
    /// [`TaskError::UnknownContainer`], [`TaskError::UnknownExec`].
    pub(crate) async fn find(&self, container: &str, exec: &str) -> Result<ProcessRef, TaskError> {
        self.ask(Find { container: container.to_owned(), exec: exec.to_owned() }).await?
    }

    /// As [`PodHandle::find`], for calls of containerd: a process that is about to vanish is not found.
    ///
    /// # Errors
    /// As [`PodHandle::find`].
    pub(crate) async fn find_visible(&self, container: &str, exec: &str) -> Result<ProcessRef, TaskError> {
        let process = self.find(container, exec).await?;
        if process.state().is_missing() { Err(process.unknown()) } else { Ok(process) }
    }

    /// Sends a request to the state machine of a process, and answers the new state.
    ///
    /// # Errors
    /// [`TaskError::Refused`].
    async fn feed(&self, process: &ProcessRef, event: Event) -> Result<State, TaskError> {
        self.ask(Feed { process: process.clone(), event }).await?
    }

    /// Sends an event to the state machine of a process, and waits until it is handled.
    async fn note(&self, process: &ProcessRef, event: Event) {
        if let Err(error) = self.ask(Note { process: process.clone(), event }).await {
            warn!(%error, ?event, "an event was lost");
        }
    }
}

/// The context of a call to agent or sandboxer that has no deadline there: what they have begun they shall finish.
fn without_deadline() -> Context {
    context::with_timeout(0)
}

/// The exit of a process that is killed now.
fn killed_now() -> Exit {
    Exit { status: KILLED_STATUS, at_nanos: clock::now_nanos() }
}

struct Find {
    container: String,
    exec: String,
}

impl Message<Pod> for Find {
    type Answer = Result<ProcessRef, TaskError>;
    fn handle(self, pod: &mut Pod) -> Self::Answer {
        pod.find(&self.container, &self.exec)
    }
}

struct Feed {
    process: ProcessRef,
    event: Event,
}

impl Message<Pod> for Feed {
    type Answer = Result<State, TaskError>;
    fn handle(self, pod: &mut Pod) -> Self::Answer {
        pod.feed(&self.process, self.event)
    }
}

struct Note {
    process: ProcessRef,
    event: Event,
}

impl Message<Pod> for Note {
    type Answer = ();
    fn handle(self, pod: &mut Pod) {
        pod.note(&self.process, self.event);
    }
}

impl Pod {
    fn find(&self, container: &str, exec: &str) -> Result<ProcessRef, TaskError> {
        let unknown = || TaskError::UnknownContainer { container: container.to_owned() };
        let found = self.containers.get(container).ok_or_else(unknown)?;
        found
            .process(exec)
            .ok_or_else(|| TaskError::UnknownExec { container: container.to_owned(), exec: exec.to_owned() })
    }

    fn find_visible(&self, container: &str, exec: &str) -> Result<ProcessRef, TaskError> {
        let process = self.find(container, exec)?;
        if process.state().is_missing() { Err(process.unknown()) } else { Ok(process) }
    }

    /// The container of a process, unless it has been forgotten.
    fn container_mut(&mut self, process: &ProcessRef) -> Option<&mut Container> {
        self.containers.get_mut(process.container_id()).filter(|known| known.is_of(process))
    }

    /// A process, unless it has been forgotten.
    fn process_mut(&mut self, process: &ProcessRef) -> Option<&mut Process> {
        self.container_mut(process)?.process_mut(process)
    }

    /// References to every process of every container, in no order of containers; execs come before their init process.
    fn processes(&self) -> Vec<ProcessRef> {
        self.containers.values().flat_map(Container::processes).collect()
    }

    /// A request: the state machine decides whether it makes sense, and what is to be done.
    ///
    /// # Errors
    /// [`TaskError::Refused`].
    fn feed(&mut self, process: &ProcessRef, event: Event) -> Result<State, TaskError> {
        let next = match self.process_mut(process) {
            Some(known) => known.advance(event),
            None => step(State::Gone { exit: None }, event),
        };
        let next = next.map_err(|source| TaskError::Refused { what: process.name(), source })?;
        for effect in next.effects {
            self.perform(process, *effect, next.next);
        }
        Ok(next.next)
    }

    /// Something that has happened: it is never refused.
    fn note(&mut self, process: &ProcessRef, event: Event) {
        if let Err(error) = self.feed(process, event) {
            warn!(%error, ?event, "an event was refused");
        }
    }

    fn perform(&mut self, process: &ProcessRef, effect: Effect, state: State) {
        match effect {
            Effect::CallStart => self.call_start(process),
            Effect::CallDelete => self.call_delete(process),
            Effect::CallKill => {
                let (pod, process) = (self.handle.clone(), process.clone());
                // The task that gave the container up waits for its end, and asks again.
                SharedTask::spawn(async move { kill::kill_all(&pod, &process).await });
            }
            Effect::CallUndo => self.call_undo(process),
            Effect::WatchEnd => self.watch_end(process),
            Effect::AwaitStart => drop(tokio::spawn(watch::start(self.handle.clone(), process.clone()))),
            Effect::Announce(notice) => self.announce(process, notice, state),
            Effect::EndStreams => {
                if let Some(streams) = self.process_mut(process).and_then(|known| known.streams.as_mut()) {
                    streams.end();
                }
            }
            Effect::Forget => self.forget(process),
        }
    }

    fn watch_end(&mut self, process: &ProcessRef) {
        drop(tokio::spawn(watch::end(self.handle.clone(), process.clone())));
        if process.is_init() {
            let watch = tokio::spawn(watch::oom(self.handle.clone(), process.clone()));
            if let Some(container) = self.container_mut(process) {
                container.oom_watch = Some(watch);
            }
        }
    }

    fn forget(&mut self, process: &ProcessRef) {
        let Some(container) = self.container_mut(process) else { return };
        if !process.is_init() {
            container.forget_exec(process);
            return;
        }
        // Its execs go with it: their waiters get an answer.
        let execs = container.execs();
        for exec in &execs {
            if let Some(known) = self.process_mut(exec) {
                known.cut_streams();
            }
            self.note(exec, Event::Ended(killed_now()));
        }
        if let Some(container) = self.containers.remove(process.container_id()) {
            container.end();
        }
    }
}
