//! One process of a container, its init or an exec.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::error::ContainerError;
use super::state::{Ended, Event, State};
use crate::stdio::RunningStdio;
use crate::stdio::terminal;

/// What a waiter gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Not ended yet.
    Pending,
    /// It has ended.
    Ended(Ended),
    /// It was deleted without ever having run.
    Deleted,
}

/// A process: its state and its streams.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its name in messages: `container` or `container/exec`.
    name: String,
    state: Mutex<State>,
    outcome: watch::Sender<Outcome>,
    writers_gone: watch::Sender<bool>,
    streams: Mutex<Option<RunningStdio>>,
}

impl Process {
    /// A process that does not exist yet.
    pub(crate) fn new(container: &str, exec: &str) -> Arc<Self> {
        let separator = if exec.is_empty() { "" } else { "/" };
        Arc::new(Self {
            name: format!("{container}{separator}{exec}"),
            state: Mutex::new(State::Added),
            outcome: watch::Sender::new(Outcome::Pending),
            writers_gone: watch::Sender::new(false),
            streams: Mutex::new(None),
        })
    }

    /// Its name in messages.
    pub(crate) fn name(&self) -> String {
        self.name.clone()
    }

    /// Its state.
    pub(crate) fn state(&self) -> State {
        *self.lock()
    }

    /// Applies an event; an exit is passed to everyone who waits.
    pub(crate) fn on(&self, event: Event) -> Result<(), ContainerError> {
        let mut state = self.lock();
        let next =
            state.on(event).map_err(|source| ContainerError::Transition { process: self.name(), source })?;
        *state = next;
        drop(state);
        if let State::Ended(ended) = next {
            self.outcome.send_replace(Outcome::Ended(ended));
        }
        Ok(())
    }

    /// Becomes true when no process writes to the streams any more.
    pub(crate) fn writers_gone(&self) -> watch::Receiver<bool> {
        self.writers_gone.subscribe()
    }

    /// Ends the output streams with what is in them now: no process writes any more that counts.
    pub(crate) fn end_output(&self) {
        self.writers_gone.send_replace(true);
    }

    /// Keeps the streams until the process is deleted.
    pub(crate) fn attach(&self, streams: RunningStdio) {
        *self.streams.lock().unwrap_or_else(PoisonError::into_inner) = Some(streams);
    }

    /// Ends the streams, and the wait for a process that never ran.
    pub(crate) fn delete(&self) {
        drop(self.streams.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.outcome.send_if_modified(|outcome| {
            let pending = *outcome == Outcome::Pending;
            if pending {
                *outcome = Outcome::Deleted;
            }
            pending
        });
    }

    /// Waits for the exit; returns at once if the process has exited.
    pub(crate) async fn wait(&self) -> Result<Ended, ContainerError> {
        let mut outcome = self.outcome.subscribe();
        match outcome.wait_for(|outcome| *outcome != Outcome::Pending).await.as_deref() {
            Ok(Outcome::Ended(ended)) => Ok(*ended),
            Ok(Outcome::Pending | Outcome::Deleted) | Err(_) => {
                Err(ContainerError::WasDeleted { process: self.name() })
            }
        }
    }

    /// Sets the size of its terminal.
    pub(crate) fn resize(&self, width: u32, height: u32) -> Result<(), ContainerError> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let terminal = streams.as_ref().and_then(|streams| streams.terminal.as_ref());
        let terminal = terminal.ok_or_else(|| ContainerError::NoTerminal { process: self.name() })?;
        terminal::resize(terminal.get_ref(), width, height)
            .map_err(|source| ContainerError::Resize { process: self.name(), source })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: Ended = Ended { status: 1, at_nanos: 2, oom_killed: true };

    #[tokio::test]
    async fn early_and_late_waiters_get_the_same_exit() {
        let process = Process::new("c", "e");
        assert_eq!(process.name(), "c/e");
        let early = tokio::spawn({
            let process = Arc::clone(&process);
            async move { process.wait().await }
        });
        tokio::task::yield_now().await;
        process.on(Event::Started { pid: 5 }).unwrap();
        process.on(Event::Exited(END)).unwrap();
        assert_eq!(early.await.unwrap().unwrap(), END);
        process.delete();
        assert_eq!(process.wait().await.unwrap(), END);
    }

    #[tokio::test]
    async fn waiting_for_a_process_that_was_deleted_unstarted_fails() {
        let process = Process::new("c", "");
        process.delete();
        assert!(matches!(process.wait().await, Err(ContainerError::WasDeleted { .. })));
    }

    #[test]
    fn resizing_a_process_without_a_terminal_fails() {
        assert!(matches!(Process::new("c", "").resize(1, 1), Err(ContainerError::NoTerminal { .. })));
    }
}
