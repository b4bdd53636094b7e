//! Brings lines and streams of processes together by containerd's streaming id.
//!
//! containerd connects before we have heard of the process, and again after its restart; a process's stream claims
//! its id when it is created and keeps it until it is deleted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::connection::{Line, Role};
use crate::runtime::lock::locked;

/// Every streaming id that somebody has named.
#[derive(Debug, Default)]
pub(crate) struct Switchboard(Mutex<HashMap<String, Extension>>);

#[derive(Debug, Default)]
struct Extension {
    line: watch::Sender<Option<Arc<Line>>>,
    /// What the stream of the process is, once there is one.
    claimed: Option<Role>,
    /// Whether the process's stream is over: whoever connects now is told so.
    ended: bool,
}

impl Extension {
    fn hang_up(&self) {
        if let Some(line) = &*self.line.borrow() {
            line.hang_up(self.claimed);
        }
    }
}

impl Switchboard {
    /// containerd has connected. An older line of this id is over with that.
    pub(crate) fn connect(&self, id: &str, line: Arc<Line>) {
        let mut extensions = locked(&self.0);
        let extension = extensions.entry(id.to_owned()).or_default();
        extension.hang_up();
        if extension.ended {
            line.hang_up(extension.claimed);
        }
        extension.line.send_replace(Some(line));
    }

    /// The line is over.
    pub(crate) fn disconnect(&self, id: &str, line: &Arc<Line>) {
        let mut extensions = locked(&self.0);
        let Entry::Occupied(extension) = extensions.entry(id.to_owned()) else { return };
        let ours = |current: &Option<Arc<Line>>| current.as_ref().is_some_and(|it| Arc::ptr_eq(it, line));
        let gone = extension.get().line.send_if_modified(|current| {
            let ours = ours(current);
            if ours {
                *current = None;
            }
            ours
        });
        if gone && extension.get().claimed.is_none() {
            extension.remove();
        }
    }

    /// A process's stream takes the id; none when another one has it.
    pub(crate) fn claim(self: &Arc<Self>, id: &str, role: Role) -> Option<Arc<Claim>> {
        let mut extensions = locked(&self.0);
        let extension = extensions.entry(id.to_owned()).or_default();
        if extension.claimed.replace(role).is_some() {
            return None;
        }
        let lines = extension.line.subscribe();
        Some(Arc::new(Claim { switchboard: self.clone(), id: id.to_owned(), lines }))
    }

    /// Whether containerd is connected and still wants what is said.
    pub(crate) fn is_heard(&self, id: &str) -> bool {
        let extensions = locked(&self.0);
        let line = extensions.get(id).and_then(|extension| extension.line.borrow().clone());
        line.is_some_and(|line| !line.is_over() && !line.is_left())
    }

    /// Ids in use, by containerd or by a process.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        locked(&self.0).len()
    }
}

/// A process's hold on an id, to its last clone.
#[derive(Debug)]
pub(crate) struct Claim {
    switchboard: Arc<Switchboard>,
    id: String,
    lines: watch::Receiver<Option<Arc<Line>>>,
}

impl Claim {
    /// Waits for a line that works.
    pub(crate) async fn line(&self) -> Arc<Line> {
        let mut lines = self.lines.clone();
        let open = |line: &Option<Arc<Line>>| line.as_ref().is_some_and(|line| !line.is_over());
        loop {
            // The other end lives as long as the claim.
            if let Some(line) = lines.wait_for(open).await.ok().and_then(|line| line.clone()) {
                return line;
            }
        }
    }

    /// The process's stream is over; whoever is connected hears of it, and whoever connects again.
    pub(crate) fn end(&self) {
        if let Some(extension) = locked(&self.switchboard.0).get_mut(&self.id) {
            extension.ended = true;
            extension.hang_up();
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(extension) = locked(&self.switchboard.0).remove(&self.id) {
            extension.hang_up();
        }
    }
}
