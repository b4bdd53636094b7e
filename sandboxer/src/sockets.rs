//! Directories, the lock that keeps a second instance out, and listening sockets.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tokio::net::UnixListener;

/// Connections that wait to be taken, as tokio has it.
const BACKLOG: i32 = 1024;

/// What keeps the service from starting.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// A directory cannot be made.
    #[error("cannot make directory {}", path.display())]
    MakeDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The lock file cannot be used.
    #[error("cannot lock {}; is its directory writable?", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another instance holds the lock.
    #[error("another bulkhead-sandboxer is running on state_dir {}", path.display())]
    AlreadyRunning {
        /// The state directory.
        path: PathBuf,
    },
    /// Somebody serves the socket.
    #[error("somebody else listens on {}; end it, or set another path", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The old socket cannot be removed.
    #[error("cannot remove the old socket {}", path.display())]
    RemoveOld {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket cannot be bound.
    #[error("cannot listen on {}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes a directory, and missing ones above it, for root only. One that exists stays as it is.
///
/// # Errors
/// [`SocketError::MakeDirectory`].
pub(crate) fn make_directory(path: &Path) -> Result<(), SocketError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| SocketError::MakeDirectory { path: path.to_path_buf(), source })
}

/// Keeps other instances off this state directory for as long as the file lives.
///
/// # Errors
/// [`SocketError::AlreadyRunning`], [`SocketError::Lock`].
pub(crate) fn lock(state_dir: &Path) -> Result<File, SocketError> {
    let path = state_dir.join("lock");
    // Held for reading only: an open writer would keep an administrator from making the file system read-only.
    let made = File::options().create(true).truncate(false).write(true).open(&path);
    let opened = made.and_then(|_| File::open(&path));
    let file = opened.map_err(|source| SocketError::Lock { path: path.clone(), source })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(SocketError::AlreadyRunning { path: state_dir.to_path_buf() })
        }
        Err(errno) => Err(SocketError::Lock { path, source: errno.into() }),
    }
}

/// Listens on a unix socket that only root can open, in the place of one that a dead instance left. Must be called
/// within a tokio runtime.
///
/// # Errors
/// [`SocketError::InUse`], [`SocketError::RemoveOld`], [`SocketError::Bind`].
pub(crate) fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    if UnixStream::connect(path).is_ok() {
        return Err(SocketError::InUse { path: path.to_path_buf() });
    }
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(SocketError::RemoveOld { path: path.to_path_buf(), source }),
    }
    bind(path).map_err(|source| SocketError::Bind { path: path.to_path_buf(), source })
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux gives the file the mode of its socket (unix_bind in net/unix/af_unix.c). A umask would hold for the whole
    // process, and so for what other threads make meanwhile.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn an_old_socket_is_replaced_and_a_served_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let first = listen(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(listen(&path), Err(SocketError::InUse { .. })));
        drop(first);
        assert!(path.exists(), "a closed socket leaves its file");
        listen(&path).unwrap();
    }

    #[tokio::test]
    async fn what_cannot_be_bound_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = listen(&dir.path().join("missing/s.sock")).unwrap_err();
        assert!(matches!(&missing, SocketError::Bind { path, .. } if path.ends_with("missing/s.sock")));
        let in_the_way = listen(dir.path()).unwrap_err();
        assert!(matches!(in_the_way, SocketError::RemoveOld { .. }), "{in_the_way}");
    }

    #[test]
    fn one_instance_owns_a_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(SocketError::AlreadyRunning { .. })));
        drop(held);
        assert!(lock(dir.path()).is_ok());
    }

    #[test]
    fn directories_are_root_s_own() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("a/b");
        make_directory(&made).unwrap();
        assert_eq!(made.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        make_directory(&made).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(matches!(make_directory(&dir.path().join("file/x")), Err(SocketError::MakeDirectory { .. })));
    }
}
