//! Network namespaces, entered only by threads that end there.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use rustix::fs::fstatfs;
use tokio::sync::oneshot;

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// An open network namespace. It stays alive as long as this is open, so do not keep it: the other ends of its
/// links go only with it.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
}

/// What can go wrong with a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path does not exist.
    #[error("network namespace {} does not exist", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// Something else is there: a plain file whose namespace has been unmounted, for example.
    #[error("{} is no network namespace", path.display())]
    NoNamespace {
        /// What was opened.
        path: PathBuf,
    },
    /// The path could not be opened.
    #[error("cannot open network namespace {}", path.display())]
    Open {
        /// What should have been opened.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error("cannot enter network namespace {}", path.display())]
    Enter {
        /// The namespace.
        path: PathBuf,
        /// What the thread or setns(2) said.
        source: io::Error,
    },
}

impl NetnsError {
    /// There is no namespace behind that path, so nothing is left in it.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Missing { .. } | Self::NoNamespace { .. } => true,
            Self::Open { .. } | Self::Enter { .. } => false,
        }
    }
}

impl Netns {
    /// Opens the namespace that is mounted at a path, or a link in `/proc/<pid>/ns`.
    ///
    /// # Errors
    /// [`NetnsError`], which tells a missing one from one that cannot be opened.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let path = path.to_owned();
        // Without O_NONBLOCK a FIFO would hold us.
        let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path);
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(NetnsError::Missing { path });
            }
            Err(source) => return Err(NetnsError::Open { path, source }),
        };
        match fstatfs(&file) {
            Ok(stat) if stat.f_type == NSFS_MAGIC => Ok(Self { path, file }),
            Ok(_) => Err(NetnsError::NoNamespace { path }),
            Err(errno) => Err(NetnsError::Open { path, source: errno.into() }),
        }
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `act` in the namespace, on a thread of its own that never does anything else. What it opens there, such
    /// as a netlink socket, belongs to the namespace and can be used from anywhere afterwards. The caller's tokio
    /// runtime is at hand in `act`.
    ///
    /// # Errors
    /// [`NetnsError::Enter`] when there is no thread, it cannot enter, or `act` panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NetnsError> {
        let enter = |source| NetnsError::Enter { path: self.path.clone(), source };
        let file = self.file.try_clone().map_err(enter)?;
        let runtime = tokio::runtime::Handle::current();
        let (reply, answer) = oneshot::channel();
        let body = move || {
            let _runtime = runtime.enter();
            let result = setns(&file, CloneFlags::CLONE_NEWNET).map(|()| act());
            drop(file);
            // A caller that went away gets nothing; what was made is released with it.
            drop(reply.send(result));
        };
        std::thread::Builder::new().name("netns".into()).spawn(body).map_err(enter)?;
        match answer.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(errno)) => Err(enter(errno.into())),
            Err(_closed) => Err(enter(io::Error::other("the thread in it panicked"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_told_apart_from_what_is_missing() {
        let dir = tempfile::TempDir::new().unwrap();
        let missing = Netns::open(&dir.path().join("x")).unwrap_err();
        assert!(matches!(missing, NetnsError::Missing { .. }) && missing.is_gone(), "{missing}");
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        let plain = Netns::open(&plain).unwrap_err();
        assert!(matches!(plain, NetnsError::NoNamespace { .. }) && plain.is_gone(), "{plain}");
    }

    #[tokio::test]
    async fn another_kind_of_namespace_cannot_be_entered() {
        let mount = Netns::open(Path::new("/proc/self/ns/uts")).unwrap();
        let error = mount.run(|| ()).await.unwrap_err();
        assert!(matches!(error, NetnsError::Enter { .. }) && !error.is_gone(), "{error}");
    }

    #[tokio::test]
    async fn a_panic_inside_is_an_error_outside() {
        let netns = Netns::open(Path::new("/proc/self/ns/net")).unwrap();
        assert!(netns.run(|| panic!("on purpose")).await.is_err());
        assert_eq!(netns.run(|| 7).await.unwrap(), 7);
    }
}
