//! What is watched as long as a container lives: the start of its execs, the end of its processes, and OOM kills.

use std::time::Duration;

use bulkhead_protocol::agent::{WaitOomRequest, WaitResponse};
use bulkhead_protocol::error::chain;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::process::ProcessRef;
use super::{Pod, PodHandle, killed_now, without_deadline};
use crate::error::TaskError;
use crate::guest::answers::MAX_STATUS;
use crate::lifecycle::{Event, Exit, State};
use crate::runtime::backoff::Backoff;
use crate::runtime::clock;
use crate::runtime::owner::Message;

/// Pauses before the agent is asked again: the link dials meanwhile, and a guest that answers nonsense must not keep us
/// busy.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// Intervals at which an exec that nobody starts is checked: as a rule its start comes at once.
const CHECKS: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
/// Least time between two OOM events of a container: a guest can report them as fast as it likes.
const OOM_PAUSE: Duration = Duration::from_secs(1);
/// How long the end of a container waits for its OOM event to reach containerd (fact 5.2).
const OOM_TIMEOUT: Duration = Duration::from_millis(500);

/// Waits until an exec is started, or goes. A caller of containerd that leaves before it learns that the exec exists
/// closes the streams and makes no further call: such an exec would stay as long as its container.
pub(super) async fn start(pod: PodHandle, exec: ProcessRef) {
    let settled =
        |state| !matches!(state, State::Created { .. } | State::Starting { .. } | State::Deleting { .. });
    let mut checks = CHECKS;
    while timeout(checks.pause(), exec.until(settled)).await.is_err() {
        let waits = matches!(exec.state(), State::Created { .. });
        if waits && exec.stdio().is_abandoned(&pod.links().streams).await {
            pod.tell(Abandoned(exec.clone()));
        }
    }
}

/// containerd has closed an output of an exec that has not been started.
struct Abandoned(ProcessRef);

impl Message<Pod> for Abandoned {
    type Answer = ();
    fn handle(self, pod: &mut Pod) {
        // It may have been started meanwhile.
        if matches!(self.0.state(), State::Created { .. }) {
            debug!(process = self.0.name(), "given up before its start");
            pod.note(&self.0, Event::GivenUp);
        }
    }
}

/// Waits for the end of a process, through broken sessions and to the end of the VM, and reports it.
pub(super) async fn end(pod: PodHandle, process: ProcessRef) {
    let mut pauses = PAUSES;
    loop {
        let request = process.for_agent();
        let call = pod.links().agent.call("wait", clock::never(), |agent| async move {
            agent.wait(without_deadline(), &request).await
        });
        let exit = match call.await {
            Ok(answer) => exit(&pod, &process, &answer).await,
            Err(error) if error.is_vm_gone() => {
                pod.tell(CutStreams(process.clone()));
                pod.links().agent.gone().unwrap_or_else(killed_now)
            }
            Err(_) if process.state().is_missing() => return,
            // It never started, and Delete has just removed it: Delete reports its end.
            Err(error) if error.is_not_found() && matches!(process.state(), State::Deleting { .. }) => {
                return;
            }
            Err(error) if error.is_not_found() => {
                warn!(process = process.name(), "the guest has forgotten it, its exit status is lost");
                Exit { status: MAX_STATUS, at_nanos: clock::now_nanos() }
            }
            Err(error) => {
                if !matches!(error, TaskError::AgentLost { .. }) {
                    warn!(
                        process = process.name(),
                        error = chain(&error),
                        "cannot wait for it, trying again"
                    );
                }
                sleep(pauses.pause()).await;
                continue;
            }
        };
        if process.is_init() {
            info!(process = process.name(), status = exit.status, "ended");
        } else {
            // A probe may be an exec every second, for as long as the pod lives.
            debug!(process = process.name(), status = exit.status, "ended");
        }
        pod.note(&process, Event::Ended(exit)).await;
        return;
    }
}

/// The exit that the guest reports, made plausible. An OOM kill is published before anybody learns of the end.
async fn exit(pod: &PodHandle, process: &ProcessRef, answer: &WaitResponse) -> Exit {
    let exit = Exit { status: answer.exit_status, at_nanos: process.clamp_time(answer.exited_at_nanos) };
    if answer.oom_killed && process.is_init() {
        // Even if the owner does not answer, the end is reported.
        drop(pod.ask(OomKill { process: process.clone(), report: OomReport::Exit }).await);
        pod.links().events.flush(OOM_TIMEOUT).await;
    }
    exit
}

/// The VM is gone: output that has reached the host is still delivered.
struct CutStreams(ProcessRef);

impl Message<Pod> for CutStreams {
    type Answer = ();
    fn handle(self, pod: &mut Pod) {
        if let Some(known) = pod.process_mut(&self.0) {
            known.cut_streams();
        }
    }
}

/// An OOM kill in a container.
struct OomKill {
    process: ProcessRef,
    report: OomReport,
}

/// How the guest reported an OOM kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OomReport {
    /// With the exit of the init process. Counter may have reported it before.
    Exit,
    /// By its counter, which counts each kill.
    Counter,
}

impl Message<Pod> for OomKill {
    type Answer = ();
    fn handle(self, pod: &mut Pod) {
        let told = pod
            .container_mut(&self.process)
            .is_some_and(|known| std::mem::replace(&mut known.oom_told, true));
        if !told || self.report == OomReport::Counter {
            pod.announce_oom(&self.process);
        }
    }
}

/// Reports each OOM kill in a container, until the container is gone.
pub(super) async fn oom(pod: PodHandle, init: ProcessRef) {
    let mut seen = 0;
    loop {
        let container_id = init.container_id().to_owned();
        let request = WaitOomRequest { container_id, seen, ..Default::default() };
        let call = pod.links().agent.call("watch for OOM", clock::never(), |agent| async move {
            agent.wait_oom(without_deadline(), &request).await
        });
        match call.await {
            Ok(answer) if answer.count > seen => {
                seen = answer.count;
                pod.tell(OomKill { process: init.clone(), report: OomReport::Counter });
            }
            Ok(_) => {}
            Err(TaskError::AgentLost { .. }) => {}
            Err(_) => return,
        }
        sleep(OOM_PAUSE).await;
    }
}
