//! Checks whether bundles are still there: containerd gives a container up by removing its bundle without Delete (fact
//! 6).
//!
//! This takes no inotify(7): a user has few instances of it, and there is a proxy for each pod (decision 11). As long
//! as a connection speaks for a container, its bundle stays ([`super::callers`]).

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use tracing::info;

use super::process::ProcessRef;
use super::remove::give_up;
use super::{Pod, PodHandle};
use crate::runtime::backoff::Backoff;
use crate::runtime::owner::Message;

/// Intervals at which the bundles of containers for which no connection speaks are checked: as a rule the bundle goes
/// at once, or containerd is being restarted.
const CHECKS: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));

/// Gives up whatever containerd has given up, as long as the pod is owned.
pub(super) async fn watch(pod: PodHandle) {
    let Some(mut departures) = pod.departures().await else { return };
    let mut checks = CHECKS;
    loop {
        let departure = departures.changed();
        let departed = if pod.ask(HasUnattended).await.unwrap_or(true) {
            timeout(checks.pause(), departure).await
        } else {
            // A connection speaks for every container.
            Ok(departure.await)
        };
        match departed {
            Ok(Ok(())) => checks.reset(),
            Ok(Err(_closed)) => return,
            Err(_elapsed) => {}
        }
        for init in pod.ask(Kept).await.unwrap_or_default() {
            if is_missing(Path::new(init.bundle())) {
                pod.tell(GivenUp(init));
            }
        }
    }
}

fn is_missing(bundle: &Path) -> bool {
    let found = std::fs::symlink_metadata(bundle);
    found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Whether there is a container for which no connection speaks, and which containerd has not given up.
struct HasUnattended;

impl Message<Pod> for HasUnattended {
    type Answer = bool;
    fn handle(self, pod: &mut Pod) -> bool {
        let Pod { containers, callers, .. } = pod;
        containers.iter().any(|(id, container)| !container.given_up && !callers.speak_for(id))
    }
}

/// The init processes of the containers that containerd has not given up.
struct Kept;

impl Message<Pod> for Kept {
    type Answer = Vec<ProcessRef>;
    fn handle(self, pod: &mut Pod) -> Self::Answer {
        let kept = pod.containers.values().filter(|container| !container.given_up);
        kept.map(super::container::Container::init).collect()
    }
}

/// containerd has given a container up.
struct GivenUp(ProcessRef);

impl Message<Pod> for GivenUp {
    type Answer = ();
    fn handle(self, pod: &mut Pod) {
        let Some(container) = pod.container_mut(&self.0) else { return };
        if !std::mem::replace(&mut container.given_up, true) {
            info!(container = self.0.container_id(), "its bundle is gone: containerd has given it up");
            tokio::spawn(give_up(pod.handle.clone(), self.0));
        }
    }
}
