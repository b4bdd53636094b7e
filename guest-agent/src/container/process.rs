//! One process of a container, its init or an exec.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::error::ContainerError;
use super::state::{Ended, Event, State};
use crate::stdio::Moving;
use crate::stdio::terminal;

/// What a waiter hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Nothing yet.
    Open,
    /// It has ended.
    Ended(Ended),
    /// It was deleted without ever having run.
    Deleted,
}

/// A process: where it is in its life, and its streams.
#[derive(Debug)]
pub(crate) struct Process {
    /// As messages name it: `container` or `container/exec`.
    name: String,
    state: Mutex<State>,
    fate: watch::Sender<Fate>,
    silent: watch::Sender<bool>,
    streams: Mutex<Option<Moving>>,
}

impl Process {
    /// A process that does not exist yet.
    pub(crate) fn new(container: &str, exec: &str) -> Arc<Self> {
        let separator = if exec.is_empty() { "" } else { "/" };
        Arc::new(Self {
            name: format!("{container}{separator}{exec}"),
            state: Mutex::new(State::Added),
            fate: watch::Sender::new(Fate::Open),
            silent: watch::Sender::new(false),
            streams: Mutex::new(None),
        })
    }

    /// As messages name it.
    pub(crate) fn name(&self) -> String {
        self.name.clone()
    }

    /// Where it is in its life.
    pub(crate) fn state(&self) -> State {
        *self.lock()
    }

    /// Takes an event; an end is heard by whoever waits.
    pub(crate) fn on(&self, event: Event) -> Result<(), ContainerError> {
        let mut state = self.lock();
        let next = state.on(event).map_err(|source| ContainerError::Life { process: self.name(), source })?;
        *state = next;
        drop(state);
        if let State::Ended(ended) = next {
            self.fate.send_replace(Fate::Ended(ended));
        }
        Ok(())
    }

    /// Becomes true when nobody writes to the streams any more.
    pub(crate) fn silent(&self) -> watch::Receiver<bool> {
        self.silent.subscribe()
    }

    /// Nobody writes to the streams any more: what is in them is all there will be.
    pub(crate) fn fall_silent(&self) {
        self.silent.send_replace(true);
    }

    /// Keeps the streams for as long as the process is known.
    pub(crate) fn attach(&self, streams: Moving) {
        *self.streams.lock().unwrap_or_else(PoisonError::into_inner) = Some(streams);
    }

    /// Stops moving bytes; a process that never ran will never end.
    pub(crate) fn delete(&self) {
        drop(self.streams.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.fate.send_if_modified(|fate| {
            let open = *fate == Fate::Open;
            if open {
                *fate = Fate::Deleted;
            }
            open
        });
    }

    /// Waits for the end, at once when it has come.
    pub(crate) async fn wait(&self) -> Result<Ended, ContainerError> {
        let mut fate = self.fate.subscribe();
        match fate.wait_for(|fate| *fate != Fate::Open).await.as_deref() {
            Ok(Fate::Ended(ended)) => Ok(*ended),
            Ok(Fate::Open | Fate::Deleted) | Err(_) => {
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
    async fn early_and_late_waiters_hear_the_same() {
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
    async fn a_waiter_of_a_process_that_never_ran_is_told() {
        let process = Process::new("c", "");
        process.delete();
        assert!(matches!(process.wait().await, Err(ContainerError::WasDeleted { .. })));
    }

    #[test]
    fn a_process_without_terminal_has_no_size() {
        assert!(matches!(Process::new("c", "").resize(1, 1), Err(ContainerError::NoTerminal { .. })));
    }
}
