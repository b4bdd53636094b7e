//! How containers and execs go: Delete, a creation taken back, and what containerd gives up without a word.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::host::SIGKILL;
use bulkhead_protocol::pod::ContainerKey;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::warn;

use super::Pod;
use super::process::{At, Container};
use super::run::patient;
use crate::error::{CLEANUP_PATIENCE, TaskError, chain};
use crate::lifecycle::{Event, Exit, State};
use crate::runtime::clock;

/// How long the streams of an ended process may hold up its Delete. containerd has read their ends before it calls
/// (fact 3.7); whoever has not gets them cut.
const STREAM_PATIENCE: Duration = Duration::from_secs(5);
/// How long a given-up container may take to die before it is killed again.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);
/// Pause before a failed release of a given-up container is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// How often that is tried; the sandboxer's reconciler sees to the rest.
const RETRIES: u32 = 30;

impl Pod {
    /// Deletes an ended, or never started, process and answers its pid and end. An exec that is just being started is
    /// killed first.
    ///
    /// # Errors
    /// What failed; [`TaskError::Refused`] while it runs.
    pub(crate) async fn delete(self: &Arc<Self>, at: &At, until: Instant) -> Result<(u32, Exit), TaskError> {
        if let State::Starting { pid: 0 } = at.process.state() {
            self.take_start_back(at, until).await?;
        }
        if let State::Doomed = self.feed(at, Event::DeleteAsked)? {
            let gone = at.process.until(|state| matches!(state, State::Gone { .. }));
            return match timeout_at(until, gone).await {
                Ok(_gone) => Err(at.unknown()),
                Err(_elapsed) => Err(TaskError::AgentSilent { act: "undo the creation" }),
            };
        }
        let removed = timeout_at(until, at.process.removal()?.join()).await;
        removed.unwrap_or(Err(TaskError::AgentSilent { act: "delete" }))?;
        let exit = at.process.state().exit().ok_or(TaskError::Crashed)?;
        Ok((at.process.last_pid(), exit))
    }

    /// Ends an exec whose start is under way. containerd deletes such a one when it has given the start up, and kills
    /// nothing whose pid it was not told.
    async fn take_start_back(self: &Arc<Self>, at: &At, until: Instant) -> Result<(), TaskError> {
        match self.kill(at, SIGKILL, false, until).await {
            // It did not come to run, or has ended.
            Ok(()) | Err(TaskError::Refused { .. }) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        let over = at.process.until(|state| {
            !matches!(state, State::Starting { .. } | State::Running { .. } | State::Paused { .. })
        });
        timeout_at(until, over).await.map(drop).map_err(|_elapsed| TaskError::AgentSilent { act: "kill" })
    }
}

/// Deletes a process; the flight behind [`Pod::delete`].
pub(super) async fn remove(pod: Arc<Pod>, at: At) -> Result<(), TaskError> {
    let until = Instant::now() + clock::DEFAULT_PATIENCE;
    if at.is_init() {
        at.container.drop_sockets();
    }
    let streams = at.process.take_streams();
    if let (Some(mut streams), Some(_ended)) = (streams, at.process.state().exit())
        && !streams.finished(STREAM_PATIENCE).await
    {
        warn!(process = at.name(), "deleted before the end of its output");
    }
    let removed = match delete_in_guest(&pod, &at, until).await {
        Ok(()) if at.is_init() => release(&pod, &at, until).await,
        result => result,
    };
    match &removed {
        Ok(()) => pod.note(&at, Event::Deleted { at_nanos: clock::now_nanos() }),
        Err(error) => {
            warn!(process = at.name(), error = chain(error), "delete failed");
            pod.note(&at, Event::DeleteFailed);
        }
    }
    removed
}

async fn delete_in_guest(pod: &Arc<Pod>, at: &At, until: Instant) -> Result<(), TaskError> {
    loop {
        let request = at.reference();
        let call =
            pod.agent.call("delete", until, |agent| async move { agent.delete(patient(), &request).await });
        match call.await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_not_found() || error.is_vm_gone() => return Ok(()),
            Err(TaskError::AgentLost { .. }) if Instant::now() < until => {
                sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn release(pod: &Arc<Pod>, at: &At, until: Instant) -> Result<(), TaskError> {
    let key = ContainerKey {
        sandbox_id: pod.sandbox_id.clone(),
        container_id: at.container.id.clone(),
        ..Default::default()
    };
    let call = pod.control.call("release the container", until, |sandboxer| {
        let key = key.clone();
        async move { sandboxer.release_container(patient(), &key).await }
    });
    match call.await {
        Err(error) if !error.is_not_found() => Err(error),
        // Not found: the sandboxer has let go of the whole sandbox.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Takes back a creation, as far as it came. What cannot be taken back is logged, and left to the sandboxer's
/// reconciler, which sees from [`Pod::containers`] that we do not hold it.
pub(super) async fn undo(pod: &Arc<Pod>, at: &At, guest: bool, host: bool) {
    if at.is_init() {
        at.container.drop_sockets();
    }
    let until = Instant::now() + CLEANUP_PATIENCE;
    if guest && let Err(error) = delete_in_guest(pod, at, until).await {
        warn!(process = at.name(), error = chain(&error), "the guest still holds it");
    }
    let until = Instant::now() + CLEANUP_PATIENCE;
    if host && let Err(error) = release(pod, at, until).await {
        warn!(process = at.name(), error = chain(&error), "the host still holds it");
    }
}

/// Takes back a creation that nobody wanted any more when it succeeded.
pub(super) async fn undo_late(pod: Arc<Pod>, at: At) {
    at.process.drop_streams();
    undo(&pod, &at, true, at.is_init()).await;
    pod.note(&at, Event::Deleted { at_nanos: clock::now_nanos() });
}

/// Kills and releases a container that nobody will ever delete.
pub(super) async fn give_up(pod: Arc<Pod>, container: Arc<Container>) {
    let at = container.at_init();
    for _ in 0..RETRIES {
        match pod.feed(&at, Event::GivenUp) {
            Ok(State::Deleting { .. }) => {
                let removal = async { at.process.removal()?.join().await };
                match removal.await {
                    Ok(()) => return,
                    Err(_logged) => sleep(RETRY_PAUSE).await,
                }
            }
            Ok(State::Creating | State::Created { .. } | State::Stopped { .. }) => {}
            Ok(State::Starting { .. } | State::Running { .. } | State::Paused { .. }) => {
                let dead = at.process.until(|state| state.exit().is_some() || state.is_missing());
                // Late: killed again.
                drop(timeout(DEATH_PATIENCE, dead).await);
            }
            // Its creation is taken back by whoever creates it.
            Ok(State::Doomed | State::Gone { .. }) | Err(_) => return,
        }
    }
    warn!(container = container.id, "given up by containerd, and cannot be removed");
}
