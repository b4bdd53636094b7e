//! Exec: a further process in a running container.

use std::sync::Arc;

use bulkhead_protocol::agent::CreateExecRequest;
use tokio::time::Instant;
use tracing::warn;
use ttrpc::context;

use super::process::At;
use super::{Pod, remove};
use crate::error::TaskError;
use crate::lifecycle::{Event, State};
use crate::runtime::shared_task::Flight;
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

impl Pod {
    /// Adds an exec; nothing runs until Start. Runs to its end without its caller; a repeat joins it.
    ///
    /// # Errors
    /// What failed; [`TaskError::AlreadyExists`] for an id in use.
    pub(crate) async fn exec(self: &Arc<Self>, new: NewExec, until: Instant) -> Result<(), TaskError> {
        if new.exec.is_empty() || new.process.is_empty() {
            return Err(TaskError::BadRequest("an exec needs an id and a process".to_owned()));
        }
        let process = for_guest(&new.process)?;
        let init = self.visible(&new.container, "")?;
        self.feed(&init, Event::ExecAsked)?;
        let flight = match init.container.add_exec(&new.exec, new.stdio.clone()) {
            Some(at) => {
                let flight = Flight::launch(create(self.clone(), at.clone(), process, until));
                at.process.set_creation(flight.clone());
                flight
            }
            None => self.repeated(&new)?,
        };
        flight.join().await.map(drop)
    }

    fn repeated(&self, new: &NewExec) -> Result<Flight<u32>, TaskError> {
        let at = self.find(&new.container, &new.exec)?;
        match at.process.state() {
            State::Creating => at.process.creation(),
            State::Doomed
            | State::Created { .. }
            | State::Starting { .. }
            | State::Running { .. }
            | State::Paused { .. }
            | State::Stopped { .. }
            | State::Deleting { .. }
            | State::Gone { .. } => Err(TaskError::AlreadyExists { what: at.name() }),
        }
    }
}

/// Profiles and labels are the host's: the guest has no use for their names, as the sandboxer leaves them out of a
/// container's own spec.
const OF_THE_HOST: [&str; 3] = ["apparmorProfile", "selinuxLabel", "execCPUAffinity"];

fn for_guest(process: &[u8]) -> Result<Vec<u8>, TaskError> {
    let bad = |error| TaskError::BadRequest(format!("the process of an exec is no OCI process: {error}"));
    let mut fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(process).map_err(bad)?;
    fields.retain(|name, _| !OF_THE_HOST.contains(&name.as_str()));
    serde_json::to_vec(&fields).map_err(bad)
}

async fn create(pod: Arc<Pod>, at: At, process: Vec<u8>, until: Instant) -> Result<u32, TaskError> {
    match attempt(&pod, &at, process, until).await {
        Ok(streams) => {
            at.process.set_streams(streams);
            pod.feed(&at, Event::Created { pid: 0 })?;
            // Nothing watches a process that does not exist yet: its VM may have gone meanwhile.
            if let Some(exit) = pod.agent.gone() {
                pod.note(&at, Event::Ended(exit));
            }
            Ok(0)
        }
        Err(error) => {
            warn!(exec = at.name(), error = crate::error::chain(&error), "exec failed");
            remove::undo(&pod, &at, true, false).await;
            pod.note(&at, Event::CreateFailed);
            Err(error)
        }
    }
}

async fn attempt(pod: &Arc<Pod>, at: &At, process: Vec<u8>, until: Instant) -> Result<Streams, TaskError> {
    let host = HostEnds::open(&at.process.stdio, &pod.switchboard)?;
    let act = "create the exec";
    pod.agent.ready(act, until).await?;
    let vsock = pod.vsock.get().ok_or(TaskError::AgentUnreachable { act })?;
    let request = CreateExecRequest {
        container_id: at.container.id.clone(),
        exec_id: at.process.exec.clone(),
        process,
        stdio: Some(at.process.stdio.for_guest()).into(),
        ..Default::default()
    };
    let made = pod
        .agent
        .call(act, until, |agent| async move { agent.create_exec(context::with_timeout(0), &request).await });
    let (made, guest) = tokio::join!(made, GuestEnds::connect(vsock, at.owner(), &at.process.stdio));
    made?;
    Ok(Streams::start(host, guest?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_loses_what_is_the_hosts_and_nothing_else() {
        let process =
            br#"{"args":["a"],"cwd":"/","apparmorProfile":"cri","selinuxLabel":"x:y","noNewPrivileges":true,
            "execCPUAffinity":{"initial":"3"},"user":{"uid":7,"gid":8,"additionalGids":[9]}}"#;
        let guest: serde_json::Value = serde_json::from_slice(&for_guest(process).unwrap()).unwrap();
        let expected = serde_json::json!({"args": ["a"], "cwd": "/", "noNewPrivileges": true,
            "user": {"uid": 7, "gid": 8, "additionalGids": [9]}});
        assert_eq!(guest, expected);
    }

    #[test]
    fn what_is_no_process_is_refused() {
        for text in ["", "7", "{", "[]"] {
            assert!(matches!(for_guest(text.as_bytes()), Err(TaskError::BadRequest(_))), "{text}");
        }
    }
}
