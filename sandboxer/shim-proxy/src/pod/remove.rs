//! How containers and execs go: by Delete, by undoing a creation, and when containerd gives a container up.

use std::time::Duration;

use bulkhead_protocol::SIGKILL;
use bulkhead_protocol::error::chain;
use bulkhead_protocol::pod::ContainerKey;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::warn;

use super::kill::Signal;
use super::process::ProcessRef;
use super::{Pod, PodHandle, without_deadline};
use crate::error::{CLEANUP_TIMEOUT, TaskError};
use crate::lifecycle::{Event, Exit, State};
use crate::runtime::clock;
use crate::runtime::owner::Message;
use crate::runtime::shared_task::SharedTask;
use crate::stdio::Streams;

/// How long the streams of an ended process may hold up its Delete. containerd has read their ends before it calls
/// (fact 3.7); those of another caller are cut.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a given-up container may take to die before it is killed again.
const DEATH_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before a failed release of a given-up container is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Pause before Delete is sent again to an agent whose session broke.
const LOST_PAUSE: Duration = Duration::from_millis(100);
/// How often a release is tried; what is left then is left to the sandboxer's reconciler.
const RETRIES: u32 = 30;

impl PodHandle {
    /// Deletes an ended, or never started, process and answers its pid and exit. An exec whose start is under way is
    /// killed first.
    ///
    /// # Errors
    /// What failed; [`TaskError::Refused`] while it runs.
    pub(crate) async fn delete(
        &self,
        process: &ProcessRef,
        until: Instant,
    ) -> Result<(u32, Exit), TaskError> {
        if let State::Starting { pid: 0 } = process.state() {
            self.undo_start(process, until).await?;
        }
        match self.ask(BeginDelete(process.clone())).await?? {
            Deletion::Undoing => {
                let gone = process.until(|state| matches!(state, State::Gone { .. }));
                match timeout_at(until, gone).await {
                    Ok(_gone) => Err(process.unknown()),
                    Err(_elapsed) => Err(TaskError::AgentSilent { act: "undo the creation" }),
                }
            }
            Deletion::Removing { removal, pid } => {
                let removed = timeout_at(until, removal.join()).await;
                removed.unwrap_or(Err(TaskError::AgentSilent { act: "delete" }))?;
                let exit = process.state().exit().ok_or(TaskError::Crashed)?;
                Ok((pid, exit))
            }
        }
    }

    /// Ends an exec whose start is under way. containerd deletes such an exec when it has given its start up, and does
    /// not kill a process whose pid it was not told.
    async fn undo_start(&self, process: &ProcessRef, until: Instant) -> Result<(), TaskError> {
        match self.kill(process, Signal { number: SIGKILL, all: false }, until).await {
            // It did not start, or it has ended.
            Ok(()) | Err(TaskError::Refused { .. }) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        let over = process.until(|state| {
            !matches!(state, State::Starting { .. } | State::Running { .. } | State::Paused { .. })
        });
        timeout_at(until, over).await.map(drop).map_err(|_elapsed| TaskError::AgentSilent { act: "kill" })
    }
}

struct BeginDelete(ProcessRef);

/// What Delete waits for.
enum Deletion {
    /// The creation is still under way, and is undone.
    Undoing,
    /// The removal of the process with this pid.
    Removing { removal: SharedTask<()>, pid: u32 },
}

impl Message<Pod> for BeginDelete {
    type Answer = Result<Deletion, TaskError>;
    fn handle(self, pod: &mut Pod) -> Self::Answer {
        if let State::Doomed = pod.feed(&self.0, Event::DeleteAsked)? {
            return Ok(Deletion::Undoing);
        }
        let known = pod.process_mut(&self.0).ok_or(TaskError::Crashed)?;
        let removal = known.removal.clone().ok_or(TaskError::Crashed)?;
        Ok(Deletion::Removing { removal, pid: known.last_pid })
    }
}

impl Pod {
    /// Has guest and host release a process.
    pub(super) fn call_delete(&mut self, process: &ProcessRef) {
        self.drop_sockets(process);
        let streams = self.process_mut(process).and_then(|known| known.streams.take());
        let removal = SharedTask::spawn(remove(self.handle.clone(), process.clone(), streams));
        if let Some(known) = self.process_mut(process) {
            known.removal = Some(removal);
        }
    }

    /// Undoes a creation that succeeded when nobody wanted it any more.
    pub(super) fn call_undo(&mut self, process: &ProcessRef) {
        self.drop_sockets(process);
        drop(self.process_mut(process).and_then(|known| known.streams.take()));
        let (pod, process) = (self.handle.clone(), process.clone());
        tokio::spawn(async move {
            undo(&pod, &process, true, process.is_init()).await;
            pod.note(&process, Event::Deleted { at_nanos: clock::now_nanos() }).await;
        });
    }

    /// Stops serving the host's sockets of a container that is about to go.
    fn drop_sockets(&mut self, process: &ProcessRef) {
        if let Some(container) = self.container_mut(process).filter(|_| process.is_init()) {
            container.sockets = None;
        }
    }
}

async fn remove(pod: PodHandle, process: ProcessRef, streams: Option<Streams>) -> Result<(), TaskError> {
    let until = Instant::now() + clock::DEFAULT_TIMEOUT;
    if let (Some(mut streams), Some(_ended)) = (streams, process.state().exit())
        && !streams.finished(STREAM_TIMEOUT).await
    {
        warn!(process = process.name(), "deleted before the end of its output");
    }
    let removed = match delete_in_guest(&pod, &process, until).await {
        Ok(()) if process.is_init() => release(&pod, &process, until).await,
        result => result,
    };
    match &removed {
        Ok(()) => pod.note(&process, Event::Deleted { at_nanos: clock::now_nanos() }).await,
        Err(error) => {
            warn!(process = process.name(), error = chain(error), "delete failed");
            pod.note(&process, Event::DeleteFailed).await;
        }
    }
    removed
}

async fn delete_in_guest(pod: &PodHandle, process: &ProcessRef, until: Instant) -> Result<(), TaskError> {
    loop {
        let request = process.for_agent();
        let call = pod
            .links()
            .agent
            .call("delete", until, |agent| async move { agent.delete(without_deadline(), &request).await });
        match call.await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_not_found() || error.is_vm_gone() => return Ok(()),
            Err(TaskError::AgentLost { .. }) if Instant::now() < until => sleep(LOST_PAUSE).await,
            Err(error) => return Err(error),
        }
    }
}

async fn release(pod: &PodHandle, process: &ProcessRef, until: Instant) -> Result<(), TaskError> {
    let key = ContainerKey {
        sandbox_id: pod.links().sandbox_id.clone(),
        container_id: process.container_id().to_owned(),
        ..Default::default()
    };
    let call = pod.links().sandboxer.call("release the container", until, |sandboxer| {
        let key = key.clone();
        async move { sandboxer.release_container(without_deadline(), &key).await }
    });
    match call.await {
        Err(error) if !error.is_not_found() => Err(error),
        // Not found: the sandboxer has released the whole sandbox.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Undoes a creation, as far as it came. What cannot be undone is logged, and left to the sandboxer's reconciler, which
/// learns from Observe that we do not hold it.
pub(super) async fn undo(pod: &PodHandle, process: &ProcessRef, guest: bool, host: bool) {
    let until = Instant::now() + CLEANUP_TIMEOUT;
    if guest && let Err(error) = delete_in_guest(pod, process, until).await {
        warn!(process = process.name(), error = chain(&error), "the guest still holds it");
    }
    let until = Instant::now() + CLEANUP_TIMEOUT;
    if host && let Err(error) = release(pod, process, until).await {
        warn!(process = process.name(), error = chain(&error), "the host still holds it");
    }
}

struct BeginGiveUp(ProcessRef);

impl Message<Pod> for BeginGiveUp {
    type Answer = Result<(State, Option<SharedTask<()>>), TaskError>;
    fn handle(self, pod: &mut Pod) -> Self::Answer {
        let state = pod.feed(&self.0, Event::GivenUp)?;
        Ok((state, pod.process_mut(&self.0).and_then(|known| known.removal.clone())))
    }
}

/// Kills and releases a container that nobody will delete.
pub(super) async fn give_up(pod: PodHandle, init: ProcessRef) {
    for _ in 0..RETRIES {
        match pod.ask(BeginGiveUp(init.clone())).await.and_then(|answer| answer) {
            Ok((State::Deleting { .. }, removal)) => {
                let removed = match removal {
                    Some(removal) => removal.join().await,
                    None => Err(TaskError::Crashed),
                };
                match removed {
                    Ok(()) => return,
                    Err(_logged) => sleep(RETRY_PAUSE).await,
                }
            }
            Ok((State::Creating | State::Created { .. } | State::Stopped { .. }, _)) => {}
            Ok((State::Starting { .. } | State::Running { .. } | State::Paused { .. }, _)) => {
                let dead = init.until(|state| state.exit().is_some() || state.is_missing());
                // A container that is not dead by then is killed again.
                drop(timeout(DEATH_TIMEOUT, dead).await);
            }
            // The task that creates it undoes the creation.
            Ok((State::Doomed | State::Gone { .. }, _)) | Err(_) => return,
        }
    }
    warn!(container = init.container_id(), "given up by containerd, and cannot be removed");
}
