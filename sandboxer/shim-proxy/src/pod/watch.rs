//! What is waited for as long as a container lives: the start of its execs, the end of its processes, and OOM kills.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bulkhead_protocol::agent::{WaitOomRequest, WaitResponse};
use bulkhead_protocol::host::EXIT_KILLED;
use containerd_shim_protos::events::task::TaskOOM;
use containerd_shim_protos::topics;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::Pod;
use super::process::At;
use super::run::patient;
use crate::error::{TaskError, chain};
use crate::guest::answers::MAX_STATUS;
use crate::lifecycle::{Event, Exit, State};
use crate::runtime::clock;

/// Pauses before the agent is asked again, first and longest: the link dials meanwhile, and a guest that answers
/// nonsense is not to keep us busy.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Pauses between looks at an exec that nobody starts, first and longest: as a rule its start comes at once.
const LOOKS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Least time between two OOM events of a container: a guest can make them up as fast as it likes.
const OOM_PAUSE: Duration = Duration::from_secs(1);
/// How long the end of a container waits for its OOM event to reach containerd (fact 5.2).
const OOM_PATIENCE: Duration = Duration::from_millis(500);

/// Waits until an exec is started, or goes. When containerd's own caller leaves it before it hears that the exec exists,
/// it closes the streams and says nothing: such an exec would stay as long as its container.
pub(super) async fn start(pod: Arc<Pod>, at: At) {
    let settled =
        |state| !matches!(state, State::Created { .. } | State::Starting { .. } | State::Deleting { .. });
    let mut pause = LOOKS.0;
    while timeout(pause, at.process.until(settled)).await.is_err() {
        let waits = matches!(at.process.state(), State::Created { .. });
        if waits && at.process.stdio.is_abandoned(&pod.switchboard) {
            debug!(process = at.name(), "given up before its start");
            pod.note(&at, Event::GivenUp);
        }
        pause = (pause * 2).min(LOOKS.1);
    }
}

/// Waits for the end of a process and notes it; through broken sessions, and to the end of the VM.
pub(super) async fn end(pod: Arc<Pod>, at: At) {
    let mut pause = PAUSES.0;
    loop {
        let request = at.reference();
        let call = pod
            .agent
            .call("wait", clock::never(), |agent| async move { agent.wait(patient(), &request).await });
        let exit = match call.await {
            Ok(answer) => settled(&pod, &at, &answer).await,
            Err(error) if error.is_vm_gone() => {
                at.process.cut_streams();
                let now = Exit { status: EXIT_KILLED, at_nanos: clock::now_nanos() };
                pod.agent.gone().unwrap_or(now)
            }
            Err(_) if at.process.state().is_missing() => return,
            // It never started, and Delete has just removed it: its end comes with the end of Delete.
            Err(error) if error.is_not_found() && matches!(at.process.state(), State::Deleting { .. }) => {
                return;
            }
            Err(error) if error.is_not_found() => {
                warn!(process = at.name(), "the guest has forgotten it, its exit status is lost");
                Exit { status: MAX_STATUS, at_nanos: clock::now_nanos() }
            }
            Err(error) => {
                if !matches!(error, TaskError::AgentLost { .. }) {
                    warn!(process = at.name(), error = chain(&error), "cannot wait for it, trying again");
                }
                sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
                continue;
            }
        };
        if at.is_init() {
            info!(process = at.name(), status = exit.status, "ended");
        } else {
            // A probe may be one every second, for as long as the pod lives.
            debug!(process = at.name(), status = exit.status, "ended");
        }
        pod.note(&at, Event::Ended(exit));
        return;
    }
}

/// The guest's word, made plausible. An OOM kill is told before anybody hears of the end.
async fn settled(pod: &Arc<Pod>, at: &At, answer: &WaitResponse) -> Exit {
    let exit = Exit { status: answer.exit_status, at_nanos: at.process.plausible(answer.exited_at_nanos) };
    if answer.oom_killed && at.is_init() {
        if !at.container.oom_told.swap(true, Ordering::Relaxed) {
            tell_oom(pod, at);
        }
        pod.events.flush(OOM_PATIENCE).await;
    }
    exit
}

fn tell_oom(pod: &Arc<Pod>, at: &At) {
    let event = TaskOOM { container_id: at.container.id.clone(), ..Default::default() };
    pod.events.publish(topics::TASK_OOM_EVENT_TOPIC, &event);
}

/// Tells subscribers of each OOM kill in a container, until the container is gone.
pub(super) async fn oom(pod: Arc<Pod>, at: At) {
    let mut seen = 0;
    loop {
        let request = WaitOomRequest { container_id: at.container.id.clone(), seen, ..Default::default() };
        let call = pod.agent.call("watch for OOM", clock::never(), |agent| async move {
            agent.wait_oom(patient(), &request).await
        });
        match call.await {
            Ok(answer) if answer.count > seen => {
                seen = answer.count;
                at.container.oom_told.store(true, Ordering::Relaxed);
                tell_oom(&pod, &at);
            }
            Ok(_) => {}
            Err(TaskError::AgentLost { .. }) => {}
            Err(_) => return,
        }
        sleep(OOM_PAUSE).await;
    }
}
