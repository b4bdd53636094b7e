//! Where stdio connections and the processes they belong to meet.
//!
//! Either may come first: the host connects before it creates a container, or after. A connection that comes early
//! is kept until its process takes it or is forgotten.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bulkhead_protocol::agent::stream_header::Kind;
use tokio::sync::oneshot;

/// Connections kept for processes that have not taken theirs. The host is trusted, its mistakes are bounded.
const KEPT: usize = 1024;

/// One stream of one process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct StreamKey {
    /// Of which container.
    pub(crate) container: String,
    /// Of which exec; empty for the init process.
    pub(crate) exec: String,
    /// Which stream.
    pub(crate) kind: Kind,
}

impl fmt::Display for StreamKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.exec.is_empty() { "" } else { "/" };
        write!(out, "{:?} of {}{separator}{}", self.kind, self.container, self.exec)
    }
}

/// Connections without a process and processes without a connection.
#[derive(Debug)]
pub(crate) struct Hub<S> {
    slots: Mutex<HashMap<StreamKey, Slot<S>>>,
}

#[derive(Debug)]
enum Slot<S> {
    Kept(S),
    Awaited(oneshot::Sender<S>),
}

impl<S> Default for Hub<S> {
    fn default() -> Self {
        Self { slots: Mutex::new(HashMap::new()) }
    }
}

impl<S> Hub<S> {
    /// A connection has come. A newer one of the same stream takes the place of one that nobody has taken.
    pub(crate) fn offer(&self, key: StreamKey, connection: S) {
        let mut slots = self.lock();
        let left = match slots.remove(&key) {
            Some(Slot::Awaited(waiter)) => waiter.send(connection).err(),
            Some(Slot::Kept(_)) | None => Some(connection),
        };
        let Some(connection) = left else { return };
        if slots.len() >= KEPT {
            tracing::warn!(%key, "too many connections without a process, one is dropped");
            return;
        }
        slots.insert(key, Slot::Kept(connection));
    }

    /// The connection of a stream, as soon as there is one. One task takes for a key.
    pub(crate) async fn take(&self, key: &StreamKey) -> S {
        loop {
            let awaited = {
                let mut slots = self.lock();
                match slots.remove(key) {
                    Some(Slot::Kept(connection)) => return connection,
                    Some(Slot::Awaited(_)) | None => {
                        let (sender, receiver) = oneshot::channel();
                        slots.insert(key.clone(), Slot::Awaited(sender));
                        receiver
                    }
                }
            };
            match awaited.await {
                Ok(connection) => return connection,
                // Forgotten: the process is being deleted, and this task with it.
                Err(_) => std::future::pending::<()>().await,
            }
        }
    }

    /// Drops what waits for a process, or for every process of a container.
    pub(crate) fn forget(&self, container: &str, exec: Option<&str>) {
        self.lock().retain(|key, _| key.container != container || exec.is_some_and(|exec| key.exec != exec));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StreamKey, Slot<S>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn key(exec: &str) -> StreamKey {
        StreamKey { container: "c".into(), exec: exec.into(), kind: Kind::STDOUT }
    }

    #[tokio::test]
    async fn either_side_may_come_first() {
        let hub = Arc::new(Hub::default());
        hub.offer(key(""), 1);
        assert_eq!(hub.take(&key("")).await, 1);
        let waiting = tokio::spawn({
            let hub = Arc::clone(&hub);
            async move { hub.take(&key("")).await }
        });
        tokio::task::yield_now().await;
        hub.offer(key("other"), 2);
        hub.offer(key(""), 3);
        assert_eq!(waiting.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn the_newest_of_two_early_ones_holds() {
        let hub = Hub::default();
        hub.offer(key(""), 1);
        hub.offer(key(""), 2);
        assert_eq!(hub.take(&key("")).await, 2);
        let nothing = tokio::time::timeout(Duration::from_millis(5), hub.take(&key(""))).await;
        assert!(nothing.is_err());
    }

    #[tokio::test]
    async fn a_taker_that_gave_up_does_not_swallow_the_next() {
        let hub = Hub::default();
        drop(tokio::time::timeout(Duration::from_millis(5), hub.take(&key(""))).await);
        hub.offer(key(""), 1);
        assert_eq!(hub.take(&key("")).await, 1);
    }

    #[test]
    fn forgetting_an_exec_leaves_the_others() {
        let hub = Hub::default();
        for exec in ["", "a", "b"] {
            hub.offer(key(exec), 0);
        }
        hub.forget("other", None);
        hub.forget("c", Some("a"));
        assert_eq!(hub.lock().len(), 2);
        hub.forget("c", None);
        assert_eq!(hub.lock().len(), 0);
    }

    #[test]
    fn early_connections_are_bounded() {
        let hub = Hub::default();
        for n in 0..2 * KEPT {
            hub.offer(key(&n.to_string()), n);
        }
        assert_eq!(hub.lock().len(), KEPT);
    }
}
