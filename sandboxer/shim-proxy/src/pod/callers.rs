//! containerd's connections to the Task endpoint, and for which containers each of them speaks.
//!
//! containerd has a connection for each container. It gives a container up without a word: it closes that connection, or
//! says Shutdown on it, and only then removes the bundle. So a container for which somebody speaks is in good hands, and
//! only the bundles of the others need to be looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;

/// Everyone who is connected.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    table: watch::Sender<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    /// By the number of the connection: the containers that it speaks for.
    open: BTreeMap<u64, BTreeSet<String>>,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Caller {
    callers: Arc<Callers>,
    number: u64,
}

impl Callers {
    /// Takes note of a new connection.
    pub(crate) fn enter(self: &Arc<Self>) -> Caller {
        let mut number = 0;
        self.quietly(|table| {
            table.last += 1;
            number = table.last;
            table.open.insert(number, BTreeSet::new());
        });
        Caller { callers: self.clone(), number }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.table.borrow().open.len()
    }

    /// Whether anybody speaks for a container.
    pub(crate) fn speak_for(&self, container: &str) -> bool {
        self.table.borrow().open.values().any(|containers| containers.contains(container))
    }

    /// Hears whenever somebody leaves, or gives a container up.
    pub(crate) fn departures(&self) -> watch::Receiver<impl Sized> {
        self.table.subscribe()
    }

    fn quietly(&self, change: impl FnOnce(&mut Table)) {
        self.table.send_if_modified(|table| {
            change(table);
            false
        });
    }
}

impl Caller {
    /// It has created a container, or come back to it.
    pub(crate) fn takes(&self, container: &str) {
        self.callers.quietly(|table| {
            // A call may outlive its connection: then nobody speaks by it any more.
            if let Some(containers) = table.open.get_mut(&self.number) {
                containers.insert(container.to_owned());
            }
        });
    }

    /// It will say no more of a container.
    pub(crate) fn gives_up(&self, container: &str) {
        self.callers.table.send_if_modified(|table| {
            table.open.get_mut(&self.number).is_some_and(|containers| containers.remove(container))
        });
    }

    /// Its connection has closed.
    pub(crate) fn leaves(&self) {
        self.callers.table.send_if_modified(|table| table.open.remove(&self.number).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_in_good_hands_until_its_last_caller_leaves() {
        let callers = Arc::<Callers>::default();
        let heard = callers.departures();
        let (first, second) = (callers.enter(), callers.enter());
        first.takes("a");
        first.takes("b");
        second.takes("a");
        assert!(!heard.has_changed().unwrap(), "nobody has left");
        assert_eq!(callers.count(), 2);
        first.leaves();
        assert!(heard.has_changed().unwrap());
        assert!(callers.speak_for("a") && !callers.speak_for("b"));
        second.gives_up("a");
        assert!(!callers.speak_for("a"));
        assert_eq!(callers.count(), 1);
    }

    #[test]
    fn what_is_said_after_the_end_of_a_connection_counts_for_nothing() {
        let callers = Arc::<Callers>::default();
        let caller = callers.enter();
        caller.leaves();
        let heard = callers.departures();
        caller.takes("a");
        caller.gives_up("a");
        caller.leaves();
        assert!(!callers.speak_for("a") && !heard.has_changed().unwrap());
        assert_eq!(callers.count(), 0);
    }
}
