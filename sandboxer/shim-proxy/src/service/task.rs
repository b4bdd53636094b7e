//! containerd's Task API, version 3: translates, asks the pod, translates back.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::EnumOrUnknown;
use containerd_shim_protos::shim_async::Task;
use futures::FutureExt;
use protobuf::well_known_types::empty::Empty;
use ttrpc::asynchronous::TtrpcContext;

use crate::error::TaskError;
use crate::lifecycle::State;
use crate::pod::callers::Caller;
use crate::pod::{NewContainer, NewExec, Pod};
use crate::runtime::clock::{deadline, timestamp};
use crate::stdio;
use crate::runtime::trace::Trace;

/// The service, over the pod, for one connection.
#[derive(Debug)]
pub(crate) struct TaskService {
    /// The pod.
    pub(crate) pod: Arc<Pod>,
    /// Whose connection it is.
    pub(crate) caller: Arc<Caller>,
}

/// The edge of an RPC: errors become statuses, and a panic becomes one too instead of a caller that waits for ever.
pub(crate) async fn edge<T>(work: impl Future<Output = Result<T, TaskError>>) -> ttrpc::Result<T> {
    let result = AssertUnwindSafe(work).catch_unwind().await;
    result.unwrap_or(Err(TaskError::Crashed)).map_err(|error| error.status())
}

fn status(state: State) -> EnumOrUnknown<api::Status> {
    let status = match state {
        State::Creating | State::Doomed | State::Created { .. } | State::Starting { .. } => {
            api::Status::CREATED
        }
        State::Running { .. } => api::Status::RUNNING,
        State::Paused { .. } => api::Status::PAUSED,
        State::Stopped { .. } | State::Deleting { .. } | State::Gone { .. } => api::Status::STOPPED,
    };
    status.into()
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        edge(async {
            let at = self.pod.visible(&request.id, &request.exec_id)?;
            let state = at.process.state();
            let stdio = &at.process.stdio;
            let mut answer = api::StateResponse {
                id: request.id,
                exec_id: request.exec_id,
                bundle: at.container.bundle.clone(),
                pid: state.pid(),
                status: status(state),
                stdin: stdio.stdin.clone(),
                stdout: stdio.stdout.clone(),
                stderr: stdio.stderr.clone(),
                terminal: stdio.terminal,
                ..Default::default()
            };
            if let Some(exit) = state.exit() {
                answer.exit_status = exit.status;
                answer.exited_at = Some(timestamp(exit.at_nanos)).into();
            }
            Ok(answer)
        })
        .await
    }

    async fn create(
        &self,
        context: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        edge(async {
            if !request.checkpoint.is_empty() {
                let text = "restoring from a checkpoint is not supported by Bulkhead".to_owned();
                return Err(TaskError::BadRequest(text));
            }
            let stdio = stdio::Request {
                terminal: request.terminal,
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
            };
            self.caller.takes(&request.id);
            let trace = Trace::of(context);
            let new =
                NewContainer { id: request.id, bundle: request.bundle, rootfs: request.rootfs, stdio, trace };
            let pid = self.pod.create(new, deadline(context.timeout_nano)).await?;
            Ok(api::CreateTaskResponse { pid, ..Default::default() })
        })
        .await
    }

    async fn start(
        &self,
        context: &TtrpcContext,
        request: api::StartRequest,
    ) -> ttrpc::Result<api::StartResponse> {
        edge(async {
            let at = self.pod.visible(&request.id, &request.exec_id)?;
            let pid = self.pod.start(&at, deadline(context.timeout_nano)).await?;
            Ok(api::StartResponse { pid, ..Default::default() })
        })
        .await
    }

    async fn delete(
        &self,
        context: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        edge(async {
            let at = self.pod.find(&request.id, &request.exec_id)?;
            let (pid, exit) = self.pod.delete(&at, deadline(context.timeout_nano)).await?;
            Ok(api::DeleteResponse {
                pid,
                exit_status: exit.status,
                exited_at: Some(timestamp(exit.at_nanos)).into(),
                ..Default::default()
            })
        })
        .await
    }

    /// From memory: an empty answer makes containerd give the container up (fact 6.3).
    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        edge(async {
            let at = self.pod.visible(&request.id, "")?;
            let pids = at.container.everything().into_iter().rev().filter(|each| each.is_alive());
            let process = |pid| api::ProcessInfo { pid, ..Default::default() };
            let mut processes: Vec<_> = pids.map(|each| process(each.process.state().pid())).collect();
            if processes.is_empty() && at.process.state().pid() > 0 {
                processes.push(process(at.process.state().pid()));
            }
            Ok(api::PidsResponse { processes, ..Default::default() })
        })
        .await
    }

    async fn pause(&self, context: &TtrpcContext, request: api::PauseRequest) -> ttrpc::Result<Empty> {
        edge(async {
            let at = self.pod.visible(&request.id, "")?;
            self.pod.freeze(&at, crate::pod::Freeze::Pause, deadline(context.timeout_nano)).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn resume(&self, context: &TtrpcContext, request: api::ResumeRequest) -> ttrpc::Result<Empty> {
        edge(async {
            let at = self.pod.visible(&request.id, "")?;
            self.pod.freeze(&at, crate::pod::Freeze::Resume, deadline(context.timeout_nano)).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        edge(async { Err(TaskError::NotOffered { act: "checkpointing" }) }).await
    }

    async fn kill(&self, context: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<Empty> {
        edge(async {
            let at = self.pod.visible(&request.id, &request.exec_id)?;
            let until = deadline(context.timeout_nano);
            self.pod.kill(&at, request.signal, request.all, until).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn exec(&self, context: &TtrpcContext, request: api::ExecProcessRequest) -> ttrpc::Result<Empty> {
        edge(async {
            let stdio = stdio::Request {
                terminal: request.terminal,
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
            };
            let process = request.spec.into_option().unwrap_or_default().value;
            let new = NewExec { container: request.id, exec: request.exec_id, process, stdio };
            self.pod.exec(new, deadline(context.timeout_nano)).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn resize_pty(
        &self,
        context: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        edge(async {
            let at = self.pod.visible(&request.id, &request.exec_id)?;
            let until = deadline(context.timeout_nano);
            self.pod.resize(&at, request.width, request.height, until).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> ttrpc::Result<Empty> {
        edge(async {
            let at = self.pod.visible(&request.id, &request.exec_id)?;
            if request.stdin {
                at.process.close_stdin();
            }
            Ok(Empty::new())
        })
        .await
    }

    async fn update(&self, context: &TtrpcContext, request: api::UpdateTaskRequest) -> ttrpc::Result<Empty> {
        edge(async {
            let at = self.pod.visible(&request.id, "")?;
            let resources = request.resources.into_option().unwrap_or_default().value;
            self.pod.update(&at, resources, deadline(context.timeout_nano)).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        edge(async {
            let at = self.pod.visible(&request.id, &request.exec_id)?;
            let exit = self.pod.wait(&at).await?;
            Ok(api::WaitResponse {
                exit_status: exit.status,
                exited_at: Some(timestamp(exit.at_nanos)).into(),
                ..Default::default()
            })
        })
        .await
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        edge(async {
            let at = self.pod.visible(&request.id, "")?;
            let stats = self.pod.stats(&at).await?;
            Ok(api::StatsResponse { stats: Some(stats).into(), ..Default::default() })
        })
        .await
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        edge(async {
            let at = self.pod.visible(&request.id, "")?;
            self.caller.takes(&request.id);
            Ok(api::ConnectResponse {
                shim_pid: std::process::id(),
                task_pid: at.process.state().pid(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..Default::default()
            })
        })
        .await
    }

    /// Names a container, not the pod: nothing ends by it (fact 3.9). containerd says it after every Delete (since 2.4),
    /// and when it gives a container up; its bundle goes next.
    async fn shutdown(&self, _: &TtrpcContext, request: api::ShutdownRequest) -> ttrpc::Result<Empty> {
        self.caller.gives_up(&request.id);
        Ok(Empty::new())
    }
}
