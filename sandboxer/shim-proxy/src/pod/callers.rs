//! containerd's connections to the Task endpoint, and for which containers each of them speaks.
//!
//! containerd has a connection for each container. It gives a container up without a call that says so: it closes that
//! connection, or calls Shutdown on it, and then removes the bundle. So only the bundles of containers for which no
//! connection speaks have to be checked.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::watch;

use super::{Pod, PodHandle};
use crate::error::TaskError;
use crate::runtime::owner::Message;

/// Number of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CallerId(u64);

/// Every open connection.
#[derive(Debug, Default)]
pub(super) struct Callers {
    last: u64,
    /// The containers that each connection speaks for.
    open: BTreeMap<CallerId, BTreeSet<String>>,
    /// Changes whenever a container may have lost its last caller.
    departures: watch::Sender<()>,
}

impl Callers {
    fn connect(&mut self) -> CallerId {
        self.last += 1;
        let caller = CallerId(self.last);
        self.open.insert(caller, BTreeSet::new());
        caller
    }

    fn disconnect(&mut self, caller: CallerId) {
        if self.open.remove(&caller).is_some() {
            self.departures.send_replace(());
        }
    }

    /// The caller speaks for a container from now on: it has created it, or has come back to it.
    fn adopt(&mut self, caller: CallerId, container: String) {
        // A call may outlive its connection: then nobody speaks through it any more.
        if let Some(containers) = self.open.get_mut(&caller) {
            containers.insert(container);
        }
    }

    /// The caller does not speak for a container any more.
    fn release(&mut self, caller: CallerId, container: &str) {
        if self.open.get_mut(&caller).is_some_and(|containers| containers.remove(container)) {
            self.departures.send_replace(());
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// Whether any of them speaks for a container.
    pub(super) fn speak_for(&self, container: &str) -> bool {
        self.open.values().any(|containers| containers.contains(container))
    }
}

impl PodHandle {
    /// Takes note of a new connection.
    ///
    /// # Errors
    /// [`TaskError::Crashed`].
    pub(crate) async fn caller_connected(&self) -> Result<CallerId, TaskError> {
        self.ask(Connected).await
    }

    /// A connection has closed.
    pub(crate) fn caller_disconnected(&self, caller: CallerId) {
        self.tell(Disconnected(caller));
    }

    /// A caller speaks for a container from now on.
    pub(crate) fn adopt(&self, caller: CallerId, container: &str) {
        self.tell(Adopt { caller, container: container.to_owned() });
    }

    /// A caller does not speak for a container any more.
    pub(crate) fn release(&self, caller: CallerId, container: &str) {
        self.tell(Release { caller, container: container.to_owned() });
    }

    /// How many connections there are; none once the pod is not owned any more.
    pub(crate) async fn open_connections(&self) -> usize {
        self.ask(Count).await.unwrap_or_default()
    }

    /// Changes whenever a connection closes or gives a container up. None once the pod is not owned any more.
    pub(crate) async fn departures(&self) -> Option<watch::Receiver<()>> {
        self.ask(Departures).await.ok()
    }
}

struct Connected;

impl Message<Pod> for Connected {
    type Answer = CallerId;
    fn handle(self, pod: &mut Pod) -> CallerId {
        pod.callers.connect()
    }
}

struct Disconnected(CallerId);

impl Message<Pod> for Disconnected {
    type Answer = ();
    fn handle(self, pod: &mut Pod) {
        pod.callers.disconnect(self.0);
    }
}

struct Adopt {
    caller: CallerId,
    container: String,
}

impl Message<Pod> for Adopt {
    type Answer = ();
    fn handle(self, pod: &mut Pod) {
        pod.callers.adopt(self.caller, self.container);
    }
}

struct Release {
    caller: CallerId,
    container: String,
}

impl Message<Pod> for Release {
    type Answer = ();
    fn handle(self, pod: &mut Pod) {
        pod.callers.release(self.caller, &self.container);
    }
}

struct Count;

impl Message<Pod> for Count {
    type Answer = usize;
    fn handle(self, pod: &mut Pod) -> usize {
        pod.callers.count()
    }
}

struct Departures;

impl Message<Pod> for Departures {
    type Answer = watch::Receiver<()>;
    fn handle(self, pod: &mut Pod) -> Self::Answer {
        pod.callers.departures.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_spoken_for_until_its_last_caller_leaves() {
        let mut callers = Callers::default();
        let departures = callers.departures.subscribe();
        let (first, second) = (callers.connect(), callers.connect());
        callers.adopt(first, "a".into());
        callers.adopt(first, "b".into());
        callers.adopt(second, "a".into());
        assert!(!departures.has_changed().unwrap(), "nobody has left");
        assert_eq!(callers.count(), 2);
        callers.disconnect(first);
        assert!(departures.has_changed().unwrap());
        assert!(callers.speak_for("a") && !callers.speak_for("b"));
        callers.release(second, "a");
        assert!(!callers.speak_for("a"));
        assert_eq!(callers.count(), 1);
    }

    #[test]
    fn calls_after_the_end_of_their_connection_change_nothing() {
        let mut callers = Callers::default();
        let caller = callers.connect();
        callers.disconnect(caller);
        let departures = callers.departures.subscribe();
        callers.adopt(caller, "a".into());
        callers.release(caller, "a");
        callers.disconnect(caller);
        assert!(!callers.speak_for("a") && !departures.has_changed().unwrap());
        assert_eq!(callers.count(), 0);
    }
}
