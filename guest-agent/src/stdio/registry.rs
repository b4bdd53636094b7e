//! The stream registry: matches stdio connections with the processes they belong to.
//!
//! Either may come first: the host connects before or after it creates a container. An early connection is kept until
//! its process takes it or is deleted.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bulkhead_protocol::agent::stream_header::Kind;
use tokio::sync::oneshot;

/// How many early connections are kept. The host is trusted; this bounds its mistakes.
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

/// Connections that wait for their process, and processes that wait for a connection.
#[derive(Debug)]
pub(crate) struct StreamRegistry<S> {
    slots: Mutex<HashMap<StreamKey, Slot<S>>>,
}

#[derive(Debug)]
enum Slot<S> {
    Kept(S),
    Awaited(oneshot::Sender<S>),
}

impl<S> Default for StreamRegistry<S> {
    fn default() -> Self {
        Self { slots: Mutex::new(HashMap::new()) }
    }
}

impl<S> StreamRegistry<S> {
    /// Adds a connection. It replaces an earlier one of the same stream that was not taken.
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

    /// Waits for a connection of a stream. Only one task may wait for a key.
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
                // Its process is being deleted, and this task is about to be aborted.
                Err(_) => std::future::pending::<()>().await,
            }
        }
    }

    /// Drops what waits for one exec (`exec`), or for every process of a container.
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
    async fn connection_and_process_may_come_in_either_order() {
        let registry = Arc::new(StreamRegistry::default());
        registry.offer(key(""), 1);
        assert_eq!(registry.take(&key("")).await, 1);
        let waiting = tokio::spawn({
            let registry = Arc::clone(&registry);
            async move { registry.take(&key("")).await }
        });
        tokio::task::yield_now().await;
        registry.offer(key("other"), 2);
        registry.offer(key(""), 3);
        assert_eq!(waiting.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn the_newest_of_two_early_connections_is_taken() {
        let registry = StreamRegistry::default();
        registry.offer(key(""), 1);
        registry.offer(key(""), 2);
        assert_eq!(registry.take(&key("")).await, 2);
        let nothing = tokio::time::timeout(Duration::from_millis(5), registry.take(&key(""))).await;
        assert!(nothing.is_err());
    }

    #[tokio::test]
    async fn a_cancelled_wait_takes_no_connection() {
        let registry = StreamRegistry::default();
        drop(tokio::time::timeout(Duration::from_millis(5), registry.take(&key(""))).await);
        registry.offer(key(""), 1);
        assert_eq!(registry.take(&key("")).await, 1);
    }

    #[test]
    fn forgetting_an_exec_keeps_other_execs() {
        let registry = StreamRegistry::default();
        for exec in ["", "a", "b"] {
            registry.offer(key(exec), 0);
        }
        registry.forget("other", None);
        registry.forget("c", Some("a"));
        assert_eq!(registry.lock().len(), 2);
        registry.forget("c", None);
        assert_eq!(registry.lock().len(), 0);
    }

    #[test]
    fn early_connections_are_bounded() {
        let registry = StreamRegistry::default();
        for n in 0..2 * KEPT {
            registry.offer(key(&n.to_string()), n);
        }
        assert_eq!(registry.lock().len(), KEPT);
    }
}
