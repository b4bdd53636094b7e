//! containerd's Task API, version 3.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::EnumOrUnknown;
use containerd_shim_protos::shim_async::Task;
use futures::FutureExt;
use protobuf::well_known_types::empty::Empty;
use ttrpc::asynchronous::TtrpcContext;

use crate::error::TaskError;
use crate::lifecycle::State;
use crate::pod::{CallerId, Freeze, NewContainer, NewExec, PodHandle, Signal};
use crate::runtime::clock::{deadline, timestamp};
use crate::runtime::trace::Trace;
use crate::stdio;

/// The service for one connection.
#[derive(Debug)]
pub(crate) struct TaskService {
    /// The pod.
    pub(crate) pod: PodHandle,
    /// The connection.
    pub(crate) caller: CallerId,
}

/// Does the work of an RPC: an error becomes a status, and so does a panic, whose caller would wait for ever.
async fn respond<T>(work: impl Future<Output = Result<T, TaskError>>) -> ttrpc::Result<T> {
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
        respond(async {
            let process = self.pod.find_visible(&request.id, &request.exec_id).await?;
            let (state, stdio) = (process.state(), process.stdio());
            let mut answer = api::StateResponse {
                id: request.id,
                exec_id: request.exec_id,
                bundle: process.bundle().to_owned(),
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
        respond(async {
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
            self.pod.adopt(self.caller, &request.id);
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
        respond(async {
            let process = self.pod.find_visible(&request.id, &request.exec_id).await?;
            let pid = self.pod.start(&process, deadline(context.timeout_nano)).await?;
            Ok(api::StartResponse { pid, ..Default::default() })
        })
        .await
    }

    async fn delete(
        &self,
        context: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        respond(async {
            let process = self.pod.find(&request.id, &request.exec_id).await?;
            let (pid, exit) = self.pod.delete(&process, deadline(context.timeout_nano)).await?;
            Ok(api::DeleteResponse {
                pid,
                exit_status: exit.status,
                exited_at: Some(timestamp(exit.at_nanos)).into(),
                ..Default::default()
            })
        })
        .await
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        respond(async {
            let pids = self.pod.pids(&request.id).await?.into_iter();
            let process = |pid| api::ProcessInfo { pid, ..Default::default() };
            Ok(api::PidsResponse { processes: pids.map(process).collect(), ..Default::default() })
        })
        .await
    }

    async fn pause(&self, context: &TtrpcContext, request: api::PauseRequest) -> ttrpc::Result<Empty> {
        respond(async {
            let process = self.pod.find_visible(&request.id, "").await?;
            self.pod.freeze(&process, Freeze::Pause, deadline(context.timeout_nano)).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn resume(&self, context: &TtrpcContext, request: api::ResumeRequest) -> ttrpc::Result<Empty> {
        respond(async {
            let process = self.pod.find_visible(&request.id, "").await?;
            self.pod.freeze(&process, Freeze::Resume, deadline(context.timeout_nano)).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        respond(async { Err(TaskError::NotOffered { act: "checkpointing" }) }).await
    }

    async fn kill(&self, context: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<Empty> {
        respond(async {
            let process = self.pod.find_visible(&request.id, &request.exec_id).await?;
            let until = deadline(context.timeout_nano);
            let signal = Signal { number: request.signal, all: request.all };
            self.pod.kill(&process, signal, until).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn exec(&self, context: &TtrpcContext, request: api::ExecProcessRequest) -> ttrpc::Result<Empty> {
        respond(async {
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
        respond(async {
            let process = self.pod.find_visible(&request.id, &request.exec_id).await?;
            let until = deadline(context.timeout_nano);
            self.pod.resize(&process, (request.width, request.height), until).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> ttrpc::Result<Empty> {
        respond(async {
            let process = self.pod.find_visible(&request.id, &request.exec_id).await?;
            if request.stdin {
                self.pod.close_stdin(&process).await?;
            }
            Ok(Empty::new())
        })
        .await
    }

    async fn update(&self, context: &TtrpcContext, request: api::UpdateTaskRequest) -> ttrpc::Result<Empty> {
        respond(async {
            let process = self.pod.find_visible(&request.id, "").await?;
            let resources = request.resources.into_option().unwrap_or_default().value;
            self.pod.update(&process, resources, deadline(context.timeout_nano)).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        respond(async {
            let process = self.pod.find_visible(&request.id, &request.exec_id).await?;
            let exit = self.pod.wait(&process).await?;
            Ok(api::WaitResponse {
                exit_status: exit.status,
                exited_at: Some(timestamp(exit.at_nanos)).into(),
                ..Default::default()
            })
        })
        .await
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        respond(async {
            let process = self.pod.find_visible(&request.id, "").await?;
            let stats = self.pod.stats(&process).await?;
            Ok(api::StatsResponse { stats: Some(stats).into(), ..Default::default() })
        })
        .await
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        respond(async {
            let process = self.pod.find_visible(&request.id, "").await?;
            self.pod.adopt(self.caller, &request.id);
            Ok(api::ConnectResponse {
                shim_pid: std::process::id(),
                task_pid: process.state().pid(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..Default::default()
            })
        })
        .await
    }

    /// Ends nothing: it names a container, not the pod (fact 3.9). containerd calls it after every Delete (since 2.4),
    /// and when it gives a container up and is about to remove the bundle.
    async fn shutdown(&self, _: &TtrpcContext, request: api::ShutdownRequest) -> ttrpc::Result<Empty> {
        self.pod.release(self.caller, &request.id);
        Ok(Empty::new())
    }
}
