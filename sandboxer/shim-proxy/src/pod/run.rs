//! What is asked of processes that exist: start, signals, pause, terminal size, resources.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::agent::{ContainerRef, ResizePtyRequest, SignalRequest, UpdateRequest};
use bulkhead_protocol::agent_ttrpc::AgentClient;
use bulkhead_protocol::host::SIGKILL;
use bulkhead_protocol::pod::{ContainerStartedRequest, UpdateContainerRequest};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};
use ttrpc::context::{self, Context};

use super::process::At;
use super::{Pod, cpuset, hung};
use crate::error::{CLEANUP_PATIENCE, TaskError};
use crate::lifecycle::{Event, Exit, State};
use crate::runtime::clock;
use crate::runtime::shared_task::Flight;

/// No deadline for the guest: what it has begun it shall finish.
pub(super) fn patient() -> Context {
    context::with_timeout(0)
}

/// Work that runs to its end even if its caller does not wait.
async fn detached<T, F>(act: &'static str, until: Instant, work: F) -> Result<T, TaskError>
where
    T: Clone + Send + Sync + 'static,
    F: Future<Output = Result<T, TaskError>> + Send + 'static,
{
    let flight = Flight::launch(work);
    timeout_at(until, flight.join()).await.unwrap_or(Err(TaskError::AgentSilent { act }))
}

impl Pod {
    /// Starts a created process and answers its pid.
    ///
    /// # Errors
    /// What failed; [`TaskError::Refused`].
    pub(crate) async fn start(self: &Arc<Self>, at: &At, until: Instant) -> Result<u32, TaskError> {
        self.feed(at, Event::StartAsked)?;
        let started = timeout_at(until, at.process.start()?.join()).await;
        started.unwrap_or(Err(TaskError::AgentSilent { act: "start" }))
    }

    /// Waits for the end of a process.
    ///
    /// # Errors
    /// [`TaskError::UnknownContainer`], [`TaskError::UnknownExec`] when it never came to be.
    pub(crate) async fn wait(&self, at: &At) -> Result<Exit, TaskError> {
        let over = |state: State| state.exit().is_some() || matches!(state, State::Gone { .. });
        at.process.until(over).await.exit().ok_or_else(|| at.unknown())
    }

    /// Sends a signal to a process, or to every process of its container. An exec whose start is under way gets it when
    /// it runs. A guest that does not take the signal that is to end a container is ended itself ([`super::hung`]).
    ///
    /// # Errors
    /// Not found when it has ended.
    pub(crate) async fn kill(
        self: &Arc<Self>,
        at: &At,
        signal: u32,
        all: bool,
        until: Instant,
    ) -> Result<(), TaskError> {
        let settled = at.process.until(|state| !matches!(state, State::Starting { pid: 0 }));
        timeout_at(until, settled).await.map_err(|_elapsed| TaskError::AgentSilent { act: "kill" })?;
        self.feed(at, Event::SignalAsked)?;
        let (pod, at) = (self.clone(), at.clone());
        detached("kill", until, async move {
            let asked = Instant::now();
            if !at.is_init() {
                return send_signal(&pod, &at, signal, all, until).await;
            }
            let sent = send_signal(&pod, &at, signal, all, asked + hung::AFTER).await;
            hung::ended_by(pod.vmm.get().map(AsRef::as_ref), sent, asked).await
        })
        .await
    }

    /// Freezes or thaws a container.
    ///
    /// # Errors
    /// What failed; [`TaskError::Refused`].
    pub(crate) async fn freeze(
        self: &Arc<Self>,
        at: &At,
        freeze: Freeze,
        until: Instant,
    ) -> Result<(), TaskError> {
        let (asked, done, act) = match freeze {
            Freeze::Pause => (Event::PauseAsked, Event::Paused, "pause"),
            Freeze::Resume => (Event::ResumeAsked, Event::Resumed, "resume"),
        };
        self.feed(at, asked)?;
        let (pod, at) = (self.clone(), at.clone());
        let request = ContainerRef { container_id: at.container.id.clone(), ..Default::default() };
        let work = async move {
            let call = |agent: AgentClient| async move {
                match freeze {
                    Freeze::Pause => agent.pause(patient(), &request).await,
                    Freeze::Resume => agent.resume(patient(), &request).await,
                }
            };
            pod.agent.call(act, until, call).await?;
            pod.note(&at, done);
            Ok(())
        };
        detached(act, until, work).await
    }

    /// Tells a terminal its size.
    ///
    /// # Errors
    /// What failed; [`TaskError::Refused`].
    pub(crate) async fn resize(
        self: &Arc<Self>,
        at: &At,
        width: u32,
        height: u32,
        until: Instant,
    ) -> Result<(), TaskError> {
        self.feed(at, Event::AdjustAsked)?;
        let request = ResizePtyRequest {
            container_id: at.container.id.clone(),
            exec_id: at.process.exec.clone(),
            width,
            height,
            ..Default::default()
        };
        let call = self.agent.call("resize the terminal", until, |agent| async move {
            agent.resize_pty(patient(), &request).await
        });
        call.await.map(drop)
    }

    /// Gives a container new resources: the host's part first, so that the guest never has more than the host.
    ///
    /// # Errors
    /// What failed; [`TaskError::Refused`].
    pub(crate) async fn update(
        self: &Arc<Self>,
        at: &At,
        resources: Vec<u8>,
        until: Instant,
    ) -> Result<(), TaskError> {
        self.feed(at, Event::AdjustAsked)?;
        let resources = cpuset::left_out(&resources, Path::new(&at.container.bundle))?;
        let (pod, at) = (self.clone(), at.clone());
        let work = async move {
            let host = UpdateContainerRequest {
                sandbox_id: pod.sandbox_id.clone(),
                container_id: at.container.id.clone(),
                resources: resources.clone(),
                ..Default::default()
            };
            let call = pod.control.call("update the container", until, |sandboxer| {
                let host = host.clone();
                async move { sandboxer.update_container(patient(), &host).await }
            });
            call.await?;
            let guest =
                UpdateRequest { container_id: at.container.id.clone(), resources, ..Default::default() };
            let call = pod.agent.call("update the container", until, |agent| async move {
                agent.update(patient(), &guest).await
            });
            call.await.map(drop)
        };
        detached("update", until, work).await
    }
}

/// Pause or Resume.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Freeze {
    /// Stop every process of the container.
    Pause,
    /// Let them go on.
    Resume,
}

/// Starts a process; the flight behind [`Pod::start`].
pub(super) async fn start(pod: Arc<Pod>, at: At) -> Result<u32, TaskError> {
    let until = Instant::now() + clock::DEFAULT_PATIENCE;
    let request = at.reference();
    let call = pod.agent.call("start", until, |agent| async move { agent.start(patient(), &request).await });
    let started = call.await.map(|answer| answer.pid);
    match &started {
        Ok(pid) => {
            pod.note(&at, Event::Started { pid: *pid });
            if at.is_init() {
                info!(container = at.container.id, pid, "started");
                tokio::spawn(tell_sandboxer(pod, at, *pid));
            }
        }
        Err(error) => {
            warn!(process = at.name(), error = crate::error::chain(error), "start failed");
            pod.note(&at, Event::StartFailed);
        }
    }
    started
}

async fn tell_sandboxer(pod: Arc<Pod>, at: At, guest_pid: u32) {
    let request = ContainerStartedRequest {
        sandbox_id: pod.sandbox_id.clone(),
        container_id: at.container.id.clone(),
        guest_pid,
        ..Default::default()
    };
    let until = Instant::now() + Duration::from_secs(60);
    let call = pod.control.call("record the start", until, |sandboxer| {
        let request = request.clone();
        async move { sandboxer.container_started(patient(), &request).await }
    });
    if let Err(error) = call.await {
        debug!(error = crate::error::chain(&error), "the guest pid is not recorded");
    }
}

async fn send_signal(
    pod: &Arc<Pod>,
    at: &At,
    signal: u32,
    all: bool,
    until: Instant,
) -> Result<(), TaskError> {
    let request = SignalRequest {
        container_id: at.container.id.clone(),
        exec_id: at.process.exec.clone(),
        signal,
        all,
        ..Default::default()
    };
    let call = pod.agent.call("kill", until, |agent| async move { agent.signal(patient(), &request).await });
    call.await.map(drop)
}

/// SIGKILLs every process of a container that containerd has given up.
pub(super) async fn kill_all(pod: &Arc<Pod>, at: &At) -> Result<(), TaskError> {
    send_signal(pod, at, SIGKILL, true, Instant::now() + CLEANUP_PATIENCE).await
}
