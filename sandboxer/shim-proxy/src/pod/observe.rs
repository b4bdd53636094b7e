//! What the pod answers from memory.

use bulkhead_protocol::shim::{ContainerView, ObserveResponse};

use super::container::Container;
use super::{Pod, PodHandle};
use crate::error::TaskError;
use crate::runtime::owner::Message;

impl PodHandle {
    /// The pids of a container's living processes, the init process first.
    ///
    /// # Errors
    /// [`TaskError::UnknownContainer`].
    pub(crate) async fn pids(&self, container: &str) -> Result<Vec<u32>, TaskError> {
        self.ask(Pids(container.to_owned())).await?
    }

    /// What the sandboxer is told of the pod.
    ///
    /// # Errors
    /// [`TaskError::Crashed`].
    pub(crate) async fn observe(&self) -> Result<ObserveResponse, TaskError> {
        self.ask(Observe).await
    }
}

struct Pids(String);

impl Message<Pod> for Pids {
    type Answer = Result<Vec<u32>, TaskError>;
    fn handle(self, pod: &mut Pod) -> Self::Answer {
        let init = pod.find_visible(&self.0, "")?;
        Ok(pod.container_mut(&init).map(|container| container.pids()).unwrap_or_default())
    }
}

struct Observe;

impl Message<Pod> for Observe {
    type Answer = ObserveResponse;
    fn handle(self, pod: &mut Pod) -> Self::Answer {
        ObserveResponse {
            containers: pod.containers.values().map(view).collect(),
            open_connections: u32::try_from(pod.callers.count()).unwrap_or(u32::MAX),
            ..Default::default()
        }
    }
}

fn view(container: &Container) -> ContainerView {
    let state = container.init().state();
    let exit = state.exit();
    ContainerView {
        container_id: container.info().id.clone(),
        status: state.name().to_owned(),
        pid: state.pid(),
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at_nanos: exit.map_or(0, |exit| exit.at_nanos),
        bundle: container.info().bundle.clone(),
        execs: container.execs().iter().map(|exec| exec.exec_id().to_owned()).collect(),
        ..Default::default()
    }
}
