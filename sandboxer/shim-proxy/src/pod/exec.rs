//! Exec: a further process in a running container.

use bulkhead_protocol::agent::CreateExecRequest;
use bulkhead_protocol::error::chain;
use tokio::time::Instant;
use tracing::warn;

use super::create::Created;
use super::process::ProcessRef;
use super::{Pod, PodHandle, remove, without_deadline};
use crate::error::TaskError;
use crate::lifecycle::Event;
use crate::runtime::owner::Message;
use crate::runtime::shared_task::SharedTask;
use crate::stdio::{self, GuestEnds, HostEnds, Streams};

/// What containerd says of a new exec.
#[derive(Debug)]
pub(crate) struct NewExec {
    /// The container.
    pub(crate) container: String,
    /// Its own id.
    pub(crate) exec: String,
    /// OCI `process` object as JSON.
    pub(crate) process: Vec<u8>,
    /// Its stdio.
    pub(crate) stdio: stdio::Request,
}

impl PodHandle {
    /// Adds an exec; nothing runs until Start. Runs to its end without its caller; a repeated call joins it.
    ///
    /// # Errors
    /// What failed; [`TaskError::AlreadyExists`] for an id in use.
    pub(crate) async fn exec(&self, new: NewExec, until: Instant) -> Result<(), TaskError> {
        if new.exec.is_empty() || new.process.is_empty() {
            return Err(TaskError::BadRequest("an exec needs an id and a process".to_owned()));
        }
        let process = process_for_guest(&new.process)?;
        let new = NewExec { process, ..new };
        self.ask(BeginExec { new, until }).await??.join().await.map(drop)
    }
}

struct BeginExec {
    new: NewExec,
    until: Instant,
}

impl Message<Pod> for BeginExec {
    type Answer = Result<SharedTask<u32>, TaskError>;
    fn handle(self, pod: &mut Pod) -> Self::Answer {
        pod.begin_exec(self.new, self.until)
    }
}

impl Pod {
    fn begin_exec(&mut self, new: NewExec, until: Instant) -> Result<SharedTask<u32>, TaskError> {
        let init = self.find_visible(&new.container, "")?;
        self.feed(&init, Event::ExecAsked)?;
        let container = self.container_mut(&init).ok_or_else(|| init.unknown())?;
        let Some(exec) = container.add_exec(&new.exec, new.stdio) else {
            let known = self.find(&new.container, &new.exec)?;
            return self.repeated_creation(&known);
        };
        let creation = SharedTask::spawn(create(self.handle.clone(), exec.clone(), new.process, until));
        self.keep_creation(&exec, &creation);
        Ok(creation)
    }
}

/// Fields of an OCI process that name profiles and labels of the host: the guest has no use for them, and the sandboxer
/// leaves them out of a container's own spec, too.
const HOST_ONLY: [&str; 3] = ["apparmorProfile", "selinuxLabel", "execCPUAffinity"];

fn process_for_guest(process: &[u8]) -> Result<Vec<u8>, TaskError> {
    let bad = |error| TaskError::BadRequest(format!("the process of an exec is no OCI process: {error}"));
    let mut fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(process).map_err(bad)?;
    fields.retain(|name, _| !HOST_ONLY.contains(&name.as_str()));
    serde_json::to_vec(&fields).map_err(bad)
}

async fn create(
    pod: PodHandle,
    exec: ProcessRef,
    process: Vec<u8>,
    until: Instant,
) -> Result<u32, TaskError> {
    match attempt(&pod, &exec, process, until).await {
        Ok(streams) => {
            pod.ask(Created { process: exec, pid: 0, streams, sockets: None }).await??;
            Ok(0)
        }
        Err(error) => {
            warn!(exec = exec.name(), error = chain(&error), "exec failed");
            remove::undo(&pod, &exec, true, false).await;
            pod.note(&exec, Event::CreateFailed).await;
            Err(error)
        }
    }
}

async fn attempt(
    pod: &PodHandle,
    exec: &ProcessRef,
    process: Vec<u8>,
    until: Instant,
) -> Result<Streams, TaskError> {
    let links = pod.links();
    let host = HostEnds::open(exec.stdio(), &links.streams).await?;
    let act = "create the exec";
    let vsock = links.agent.ready(act, until).await?;
    let request = CreateExecRequest {
        container_id: exec.container_id().to_owned(),
        exec_id: exec.exec_id().to_owned(),
        process,
        stdio: Some(exec.stdio().for_guest()).into(),
        ..Default::default()
    };
    let create = links
        .agent
        .call(act, until, |agent| async move { agent.create_exec(without_deadline(), &request).await });
    let (created, guest) = tokio::join!(create, GuestEnds::connect(&vsock, exec.owner(), exec.stdio()));
    created?;
    Ok(Streams::start(host, guest?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_only_fields_of_a_process_are_removed_and_no_others() {
        let process =
            br#"{"args":["a"],"cwd":"/","apparmorProfile":"cri","selinuxLabel":"x:y","noNewPrivileges":true,
            "execCPUAffinity":{"initial":"3"},"user":{"uid":7,"gid":8,"additionalGids":[9]}}"#;
        let guest: serde_json::Value = serde_json::from_slice(&process_for_guest(process).unwrap()).unwrap();
        let expected = serde_json::json!({"args": ["a"], "cwd": "/", "noNewPrivileges": true,
            "user": {"uid": 7, "gid": 8, "additionalGids": [9]}});
        assert_eq!(guest, expected);
    }

    #[test]
    fn text_that_is_no_process_is_refused() {
        for text in ["", "7", "{", "[]"] {
            assert!(matches!(process_for_guest(text.as_bytes()), Err(TaskError::BadRequest(_))), "{text}");
        }
    }
}
