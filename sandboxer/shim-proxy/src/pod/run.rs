//! Calls for processes that exist: start, wait, pause, terminal size, stdin, resources.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use bulkhead_protocol::agent::{ContainerRef, ResizePtyRequest, UpdateRequest};
use bulkhead_protocol::agent_ttrpc::AgentClient;
use bulkhead_protocol::error::chain;
use bulkhead_protocol::pod::{ContainerStartedRequest, UpdateContainerRequest};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

use super::process::ProcessRef;
use super::{Pod, PodHandle, cpuset, without_deadline};
use crate::error::TaskError;
use crate::lifecycle::{Event, Exit, State};
use crate::runtime::clock;
use crate::runtime::owner::Message;
use crate::runtime::shared_task::SharedTask;

/// How long the sandboxer may be away before it is not told any more that a container has started.
const STARTED_TIMEOUT: Duration = Duration::from_secs(60);

/// Does work that runs to its end even if its caller does not wait.
pub(super) async fn detached<T, F>(act: &'static str, until: Instant, work: F) -> Result<T, TaskError>
where
    T: Clone + Send + Sync + 'static,
    F: Future<Output = Result<T, TaskError>> + Send + 'static,
{
    let task = SharedTask::spawn(work);
    timeout_at(until, task.join()).await.unwrap_or(Err(TaskError::AgentSilent { act }))
}

impl PodHandle {
    /// Starts a created process and answers its pid.
    ///
    /// # Errors
    /// What failed; [`TaskError::Refused`].
    pub(crate) async fn start(&self, process: &ProcessRef, until: Instant) -> Result<u32, TaskError> {
        let start = self.ask(BeginStart(process.clone())).await??;
        timeout_at(until, start.join()).await.unwrap_or(Err(TaskError::AgentSilent { act: "start" }))
    }

    /// Waits for the end of a process.
    ///
    /// # Errors
    /// [`TaskError::UnknownContainer`], [`TaskError::UnknownExec`] when it was never created.
    pub(crate) async fn wait(&self, process: &ProcessRef) -> Result<Exit, TaskError> {
        let over = |state: State| state.exit().is_some() || matches!(state, State::Gone { .. });
        process.until(over).await.exit().ok_or_else(|| process.unknown())
    }

    /// Freezes or thaws a container.
    ///
    /// # Errors
    /// What failed; [`TaskError::Refused`].
    pub(crate) async fn freeze(
        &self,
        process: &ProcessRef,
        freeze: Freeze,
        until: Instant,
    ) -> Result<(), TaskError> {
        let (asked, done, act) = match freeze {
            Freeze::Pause => (Event::PauseAsked, Event::Paused, "pause"),
            Freeze::Resume => (Event::ResumeAsked, Event::Resumed, "resume"),
        };
        self.feed(process, asked).await?;
        let (pod, process) = (self.clone(), process.clone());
        let request = ContainerRef { container_id: process.container_id().to_owned(), ..Default::default() };
        let work = async move {
            let call = |agent: AgentClient| async move {
                match freeze {
                    Freeze::Pause => agent.pause(without_deadline(), &request).await,
                    Freeze::Resume => agent.resume(without_deadline(), &request).await,
                }
            };
            pod.links().agent.call(act, until, call).await?;
            pod.note(&process, done).await;
            Ok(())
        };
        detached(act, until, work).await
    }

    /// Sets the size of a terminal.
    ///
    /// # Errors
    /// What failed; [`TaskError::Refused`].
    pub(crate) async fn resize(
        &self,
        process: &ProcessRef,
        (width, height): (u32, u32),
        until: Instant,
    ) -> Result<(), TaskError> {
        self.feed(process, Event::AdjustAsked).await?;
        let request = ResizePtyRequest {
            container_id: process.container_id().to_owned(),
            exec_id: process.exec_id().to_owned(),
            width,
            height,
            ..Default::default()
        };
        let call = self.links().agent.call("resize the terminal", until, |agent| async move {
            agent.resize_pty(without_deadline(), &request).await
        });
        call.await.map(drop)
    }

    /// containerd will write no more to stdin: its end is the end of the input.
    ///
    /// # Errors
    /// [`TaskError::Crashed`].
    pub(crate) async fn close_stdin(&self, process: &ProcessRef) -> Result<(), TaskError> {
        self.ask(CloseStdin(process.clone())).await
    }

    /// Gives a container new resources: the host's part first, so that the guest never has more than the host.
    ///
    /// # Errors
    /// What failed; [`TaskError::Refused`].
    pub(crate) async fn update(
        &self,
        process: &ProcessRef,
        resources: Vec<u8>,
        until: Instant,
    ) -> Result<(), TaskError> {
        self.feed(process, Event::AdjustAsked).await?;
        let resources = cpuset::without_host_cpus(&resources, Path::new(process.bundle()))?;
        let (pod, container_id) = (self.clone(), process.container_id().to_owned());
        let work = async move {
            let host = UpdateContainerRequest {
                sandbox_id: pod.links().sandbox_id.clone(),
                container_id: container_id.clone(),
                resources: resources.clone(),
                ..Default::default()
            };
            let call = pod.links().sandboxer.call("update the container", until, |sandboxer| {
                let host = host.clone();
                async move { sandboxer.update_container(without_deadline(), &host).await }
            });
            call.await?;
            let guest = UpdateRequest { container_id, resources, ..Default::default() };
            let call = pod.links().agent.call("update the container", until, |agent| async move {
                agent.update(without_deadline(), &guest).await
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

struct BeginStart(ProcessRef);

impl Message<Pod> for BeginStart {
    type Answer = Result<SharedTask<u32>, TaskError>;
    fn handle(self, pod: &mut Pod) -> Self::Answer {
        pod.feed(&self.0, Event::StartAsked)?;
        let start = pod.process_mut(&self.0).and_then(|known| known.start.clone());
        start.ok_or(TaskError::Crashed)
    }
}

struct CloseStdin(ProcessRef);

impl Message<Pod> for CloseStdin {
    type Answer = ();
    fn handle(self, pod: &mut Pod) {
        if let Some(streams) = pod.process_mut(&self.0).and_then(|known| known.streams.as_mut()) {
            streams.close_stdin();
        }
    }
}

impl Pod {
    /// Asks the guest to start a process.
    pub(super) fn call_start(&mut self, process: &ProcessRef) {
        let start = SharedTask::spawn(start(self.handle.clone(), process.clone()));
        if let Some(known) = self.process_mut(process) {
            known.start = Some(start);
        }
    }
}

async fn start(pod: PodHandle, process: ProcessRef) -> Result<u32, TaskError> {
    let until = Instant::now() + clock::DEFAULT_TIMEOUT;
    let request = process.for_agent();
    let call = pod
        .links()
        .agent
        .call("start", until, |agent| async move { agent.start(without_deadline(), &request).await });
    let started = call.await.map(|answer| answer.pid);
    match &started {
        Ok(pid) => {
            pod.note(&process, Event::Started { pid: *pid }).await;
            if process.is_init() {
                info!(container = process.container_id(), pid, "started");
                tokio::spawn(report_start(pod, process, *pid));
            }
        }
        Err(error) => {
            warn!(process = process.name(), error = chain(error), "start failed");
            pod.note(&process, Event::StartFailed).await;
        }
    }
    started
}

/// Tells the sandboxer the container's pid in the guest, for its record.
async fn report_start(pod: PodHandle, process: ProcessRef, guest_pid: u32) {
    let request = ContainerStartedRequest {
        sandbox_id: pod.links().sandbox_id.clone(),
        container_id: process.container_id().to_owned(),
        guest_pid,
        ..Default::default()
    };
    let until = Instant::now() + STARTED_TIMEOUT;
    let call = pod.links().sandboxer.call("record the start", until, |sandboxer| {
        let request = request.clone();
        async move { sandboxer.container_started(without_deadline(), &request).await }
    });
    if let Err(error) = call.await {
        debug!(error = chain(&error), "the guest pid is not recorded");
    }
}
