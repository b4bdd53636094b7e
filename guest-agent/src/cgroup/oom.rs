//! Notifications of OOM kills in a cgroup, without polling.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Cgroup, CgroupError, keyed};

/// How much of `memory.events` is read, in bytes: it has six short lines.
const LARGEST: usize = 1024;

/// A watched `memory.events`.
#[derive(Debug)]
pub(crate) struct OomWatch {
    cgroup: Cgroup,
    events: AsyncFd<OwnedFd>,
}

impl OomWatch {
    /// Begins to watch.
    pub(crate) fn new(cgroup: &Cgroup) -> Result<Self, CgroupError> {
        let path = cgroup.path("memory.events");
        let open = || {
            let file = OwnedFd::from(File::open(&path)?);
            crate::kernel::syscalls::watch(file, Interest::PRIORITY)
        };
        let events = open().map_err(|source| CgroupError::Watch { path: path.clone(), source })?;
        Ok(Self { cgroup: cgroup.clone(), events })
    }

    /// Waits until more than `seen` processes have been killed; returns how many.
    pub(crate) async fn more_than(&self, seen: u64) -> Result<u64, CgroupError> {
        loop {
            // Reading arms the next notification (kernfs), so it comes first.
            let count = self.count()?;
            if count > seen {
                return Ok(count);
            }
            let ready = self.events.ready(Interest::PRIORITY).await;
            ready
                .map_err(|source| CgroupError::Watch { path: self.cgroup.path("memory.events"), source })?
                .clear_ready();
        }
    }

    fn count(&self) -> Result<u64, CgroupError> {
        let mut text = [0; LARGEST];
        let read = rustix::io::pread(self.events.get_ref().as_fd(), &mut text, 0);
        let length = read.map_err(|errno| CgroupError::Read {
            path: self.cgroup.path("memory.events"),
            source: errno.into(),
        })?;
        let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned();
        Ok(keyed(&text, "oom_kill").unwrap_or(0))
    }
}
