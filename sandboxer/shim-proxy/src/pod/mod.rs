//! The pod as containerd sees it: its containers, what happens to them, and what is done about it.
//!
//! Owns the containers and their streams, in memory only. Every change of a process goes through [`Pod::feed`]: the
//! state machine decides, [`Pod::perform`] acts. Questions are answered from memory.

mod bundles;
pub(crate) mod callers;
mod cpuset;
mod create;
mod exec;
mod hung;
mod process;
mod remove;
mod run;
mod stats;
mod watch;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bulkhead_protocol::host::EXIT_KILLED;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::topics;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::error::TaskError;
use crate::guest::agent::AgentLink;
use crate::guest::vmm::Vmm;
use crate::host::events::Events;
use crate::host::sandboxer::Control;
use crate::lifecycle::{Effect, Event, Exit, Notice, State};
use crate::pod::callers::Callers;
use crate::portforward::{self, Forward};
use crate::runtime::clock;
use crate::runtime::lock::locked;
use crate::runtime::shared_task::Flight;
use crate::stdio::Switchboard;

pub(crate) use create::NewContainer;
pub(crate) use exec::NewExec;
pub(crate) use process::{At, Container};
pub(crate) use run::Freeze;

/// The pod of this proxy.
#[derive(Debug)]
pub(crate) struct Pod {
    /// The sandbox.
    pub(crate) sandbox_id: String,
    /// The session with its guest.
    pub(crate) agent: AgentLink,
    /// The link to the sandboxer.
    pub(crate) control: Control,
    /// Events for containerd.
    pub(crate) events: Arc<Events>,
    /// Open connections to the Task API.
    pub(crate) callers: Arc<Callers>,
    /// Asks the process to end.
    pub(crate) shutdown: Notify,
    vsock: OnceLock<PathBuf>,
    forward: tokio::sync::Mutex<Option<Forward>>,
    /// Where containerd's stdio streams wait for their processes.
    pub(crate) switchboard: Arc<Switchboard>,
    vmm_watched: AtomicBool,
    vmm: OnceLock<Arc<Vmm>>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
}

impl Pod {
    /// A pod without containers, whose VM is not known yet.
    pub(crate) fn new(sandbox_id: String, control: PathBuf, events: Arc<Events>) -> Arc<Self> {
        Arc::new(Self {
            sandbox_id,
            agent: AgentLink::unattached(),
            control: Control { path: control },
            events,
            callers: Arc::default(),
            shutdown: Notify::new(),
            vsock: OnceLock::new(),
            forward: tokio::sync::Mutex::default(),
            switchboard: Arc::default(),
            vmm_watched: AtomicBool::new(false),
            vmm: OnceLock::new(),
            containers: Mutex::default(),
        })
    }

    /// Whether the VMM is still to be watched; true once.
    pub(crate) fn watch_vmm(&self) -> bool {
        !self.vmm_watched.swap(true, Ordering::Relaxed)
    }

    /// Keeps hold of the VMM, to end it when its guest hangs.
    pub(crate) fn hold_vmm(&self, vmm: Vmm) -> Arc<Vmm> {
        self.vmm.get_or_init(|| Arc::new(vmm)).clone()
    }

    /// The VM is up: opens the session with its agent. Repeating it is harmless.
    pub(crate) fn attach(self: &Arc<Self>, vsock: &Path) {
        if self.vsock.set(vsock.into()).is_err() || !self.agent.begin() {
            return;
        }
        let (pod, vsock) = (self.clone(), PathBuf::from(vsock));
        tokio::spawn(async move {
            let reason = pod.agent.keep(&vsock).await;
            pod.vm_gone(Exit { status: EXIT_KILLED, at_nanos: clock::now_nanos() }, &reason);
        });
    }

    /// Leads the loopback of the pod's network namespace into the guest. Repeating it is harmless.
    pub(crate) async fn open_forward(&self, netns: &str, vsock: &Path) {
        let mut forward = self.forward.lock().await;
        if forward.is_none() && self.agent.gone().is_none() {
            *forward = forward::open_or_explain(netns, vsock);
        }
    }

    /// Lets go of the pod's network namespace. When this returns, whoever asked, nothing of ours is open there.
    pub(crate) async fn close_forward(&self) {
        let mut forward = self.forward.lock().await;
        if let Some(forward) = forward.take() {
            forward.close().await;
        }
    }

    /// The VM has ended: so has everything in it. Only the first call counts.
    pub(crate) fn vm_gone(self: &Arc<Self>, exit: Exit, reason: &Arc<str>) {
        if !self.agent.set_gone(exit, reason) {
            return;
        }
        info!(reason = &**reason, status = exit.status, "the VM is gone");
        let pod = self.clone();
        tokio::spawn(async move { pod.close_forward().await });
        for container in self.containers() {
            container.drop_sockets();
            for at in container.everything() {
                at.process.cut_streams();
                self.note(&at, Event::Ended(exit));
            }
        }
    }

    /// Everything known, in no order.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        locked(&self.containers).values().cloned().collect()
    }

    /// A container's init process, or one of its execs.
    ///
    /// # Errors
    /// [`TaskError::UnknownContainer`], [`TaskError::UnknownExec`].
    pub(crate) fn find(&self, container: &str, exec: &str) -> Result<At, TaskError> {
        let unknown = || TaskError::UnknownContainer { container: container.to_owned() };
        let found = locked(&self.containers).get(container).cloned().ok_or_else(unknown)?;
        let at = found.at(exec).ok_or_else(|| TaskError::UnknownExec {
            container: container.to_owned(),
            exec: exec.to_owned(),
        })?;
        Ok(at)
    }

    /// As [`Pod::find`], for what containerd may see: what is about to vanish is not found.
    ///
    /// # Errors
    /// As [`Pod::find`].
    pub(crate) fn visible(&self, container: &str, exec: &str) -> Result<At, TaskError> {
        let at = self.find(container, exec)?;
        if at.process.state().is_missing() { Err(at.unknown()) } else { Ok(at) }
    }

    /// A request: the state machine decides whether it makes sense, and what is to be done.
    ///
    /// # Errors
    /// [`TaskError::Refused`].
    pub(crate) fn feed(self: &Arc<Self>, at: &At, event: Event) -> Result<State, TaskError> {
        let refused = |source| TaskError::Refused { what: at.name(), source };
        let step = at.process.advance(event).map_err(refused)?;
        for effect in step.effects {
            self.perform(at, *effect, step.next);
        }
        Ok(step.next)
    }

    /// Something that has happened: it is never refused.
    pub(crate) fn note(self: &Arc<Self>, at: &At, event: Event) {
        if let Err(error) = self.feed(at, event) {
            warn!(%error, ?event, "an event was refused");
        }
    }

    fn perform(self: &Arc<Self>, at: &At, effect: Effect, state: State) {
        let (pod, its) = (self.clone(), at.clone());
        match effect {
            Effect::CallStart => at.process.set_start(Flight::launch(run::start(pod, its))),
            Effect::CallDelete => at.process.set_removal(Flight::launch(remove::remove(pod, its))),
            Effect::CallKill => {
                // Whoever gave it up waits for its end, and asks again.
                Flight::launch(async move { run::kill_all(&pod, &its).await });
            }
            Effect::CallUndo => drop(tokio::spawn(remove::undo_late(pod, its))),
            Effect::WatchEnd => {
                drop(tokio::spawn(watch::end(pod.clone(), its.clone())));
                if at.is_init() {
                    at.container.set_oom_watch(tokio::spawn(watch::oom(pod, its)));
                }
            }
            Effect::AwaitStart => drop(tokio::spawn(watch::start(pod, its))),
            Effect::Announce(notice) => self.announce(at, notice, state),
            Effect::EndStreams => at.process.end_streams(),
            Effect::Forget => self.forget(at),
        }
    }

    fn forget(self: &Arc<Self>, at: &At) {
        at.process.drop_streams();
        if !at.is_init() {
            at.container.drop_exec(&at.process);
            return;
        }
        locked(&self.containers).remove(&at.container.id);
        // What is left of its execs went with it: their waiters get an answer.
        let exit = Exit { status: EXIT_KILLED, at_nanos: clock::now_nanos() };
        for exec in at.container.everything().into_iter().filter(|each| !each.is_init()) {
            exec.process.cut_streams();
            self.note(&exec, Event::Ended(exit));
        }
        at.container.clear();
    }

    fn announce(&self, at: &At, notice: Notice, state: State) {
        let container_id = at.container.id.clone();
        let exec_id = at.process.exec.clone();
        let (init, pid) = (at.is_init(), state.pid());
        match notice {
            Notice::Created if init => {
                self.events.publish(topics::TASK_CREATE_EVENT_TOPIC, &at.container.created(pid));
            }
            Notice::Created => {
                let event = events::TaskExecAdded { container_id, exec_id, ..Default::default() };
                self.events.publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &event);
            }
            Notice::Started if init => {
                let event = events::TaskStart { container_id, pid, ..Default::default() };
                self.events.publish(topics::TASK_START_EVENT_TOPIC, &event);
            }
            Notice::Started => {
                let event = events::TaskExecStarted { container_id, exec_id, pid, ..Default::default() };
                self.events.publish(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &event);
            }
            Notice::Paused => {
                let event = events::TaskPaused { container_id, ..Default::default() };
                self.events.publish(topics::TASK_PAUSED_EVENT_TOPIC, &event);
            }
            Notice::Resumed => {
                let event = events::TaskResumed { container_id, ..Default::default() };
                self.events.publish(topics::TASK_RESUMED_EVENT_TOPIC, &event);
            }
            Notice::Ended => self.announce_end(at, state),
            Notice::Deleted => self.announce_deletion(at, state),
        }
    }

    fn announce_end(&self, at: &At, state: State) {
        let Some(exit) = state.exit() else { return };
        let event = events::TaskExit {
            container_id: at.container.id.clone(),
            id: if at.is_init() { at.container.id.clone() } else { at.process.exec.clone() },
            pid: state.pid(),
            exit_status: exit.status,
            exited_at: Some(clock::timestamp(exit.at_nanos)).into(),
            ..Default::default()
        };
        self.events.publish(topics::TASK_EXIT_EVENT_TOPIC, &event);
    }

    /// containerd's own shims announce the deletion of init processes only.
    fn announce_deletion(&self, at: &At, state: State) {
        let Some(exit) = state.exit().filter(|_| at.is_init()) else { return };
        let event = events::TaskDelete {
            container_id: at.container.id.clone(),
            pid: at.process.last_pid(),
            exit_status: exit.status,
            exited_at: Some(clock::timestamp(exit.at_nanos)).into(),
            ..Default::default()
        };
        self.events.publish(topics::TASK_DELETE_EVENT_TOPIC, &event);
    }
}
