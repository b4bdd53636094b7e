//! Sees bundles go: a bundle directory removed without Delete is containerd's way of giving a container up (fact 6).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tracing::debug;

use crate::sys;

/// One inotify instance for all bundles of the pod.
#[derive(Debug)]
pub(crate) struct BundleWatch {
    inotify: AsyncFd<OwnedFd>,
}

/// A watched bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(i32);

impl BundleWatch {
    /// # Errors
    /// What inotify_init1(2) says: the number of instances is limited for each user.
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        Ok(Self { inotify: sys::readable(inotify)? })
    }

    /// Watches a directory itself: containerd moves a bundle aside before it deletes it.
    ///
    /// # Errors
    /// What inotify_add_watch(2) says.
    pub(crate) fn add(&self, bundle: &Path) -> io::Result<Ticket> {
        let flags =
            inotify::WatchFlags::MOVE_SELF | inotify::WatchFlags::DELETE_SELF | inotify::WatchFlags::ONLYDIR;
        Ok(Ticket(inotify::add_watch(&self.inotify, bundle, flags)?))
    }

    /// Forgets a directory; harmless when it is gone.
    pub(crate) fn remove(&self, ticket: Ticket) {
        if let Err(error) = inotify::remove_watch(&self.inotify, ticket.0) {
            // EINVAL as a rule: the kernel has dropped the watch together with the directory.
            debug!(%error, "the watch was gone already");
        }
    }

    /// Waits until any watched directory has moved or gone. Which one is for the caller to see.
    ///
    /// # Errors
    /// What read(2) says.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); 1024];
            match ready.try_io(|fd| rustix::io::read(fd, &mut buffer).map(drop).map_err(io::Error::from)) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn moving_and_deleting_are_seen_and_writing_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let [moved, deleted] = ["a", "b"].map(|name| dir.path().join(name));
        std::fs::create_dir(&moved).unwrap();
        std::fs::create_dir(&deleted).unwrap();
        let watch = BundleWatch::new().unwrap();
        watch.add(&moved).unwrap();
        watch.add(&deleted).unwrap();
        std::fs::write(moved.join("file"), "x").unwrap();
        let quiet = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(quiet.is_err());
        std::fs::rename(&moved, dir.path().join(".a")).unwrap();
        tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap().unwrap();
        std::fs::remove_dir(&deleted).unwrap();
        tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap().unwrap();
        assert!(watch.add(&deleted).is_err());
    }
}
