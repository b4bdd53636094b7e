//! Waiting for something to appear in a directory.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// Tells that a name was added to a directory. What happens between two waits is not lost.
#[derive(Debug)]
pub struct DirWatch {
    events: AsyncFd<OwnedFd>,
}

impl DirWatch {
    /// Watches a directory from now on. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// What inotify(7) says; a user's number of instances is limited.
    pub fn new(dir: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&fd, dir, inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO)?;
        Ok(Self { events: super::process::watch_readable(fd)? })
    }

    /// Waits until a name was added since the last call.
    ///
    /// # Errors
    /// What inotify(7) says.
    pub async fn changed(&self) -> io::Result<()> {
        // Room for one event with the longest name.
        let mut buffer = [0u8; 512];
        loop {
            let mut ready = self.events.readable().await?;
            match rustix::io::read(self.events.get_ref(), &mut buffer) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_new_name_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let watch = DirWatch::new(dir.path()).unwrap();
        std::fs::write(dir.path().join("a"), "").unwrap();
        watch.changed().await.unwrap();
        let again = tokio::time::timeout(std::time::Duration::from_millis(20), watch.changed()).await;
        assert!(again.is_err(), "nothing had changed");
    }
}
