//! Unix sockets that listen before the process that will serve them runs.

use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Longest path of a unix socket, in bytes (unix(7): 108 with the zero at its end).
pub const MAX_PATH: usize = 107;

/// Listens on a path, in the place of a socket left there by an earlier try.
///
/// # Errors
/// `InvalidInput` when the path is longer than [`MAX_PATH`], naming both lengths; else what unlink(2), bind(2) or
/// listen(2) says.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let length = path.as_os_str().len();
    if length > MAX_PATH {
        let text = format!(
            "the path has {length} bytes, a unix socket's may have {MAX_PATH}; set a shorter run_dir"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(path)
}

/// A listening socket that only root can connect to, with its path: both go on drop, unless [`keep`](Self::keep) was
/// called.
#[derive(Debug)]
#[must_use = "dropping it closes the socket and removes its path"]
pub struct Listener {
    path: PathBuf,
    socket: Option<UnixListener>,
}

impl Listener {
    /// Listens on a path as [`listen`] does.
    ///
    /// # Errors
    /// What [`listen`] or chmod(2) says; nothing is left then.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = Self { path: path.to_owned(), socket: Some(listen(path)?) };
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another descriptor of the same socket, for a child or a runtime.
    ///
    /// # Errors
    /// What dup(2) says.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        let socket = self.socket.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        socket.try_clone().map(OwnedFd::from)
    }

    /// Gives the socket away and leaves its path in place.
    #[must_use]
    pub fn keep(mut self) -> Option<OwnedFd> {
        self.socket.take().map(OwnedFd::from)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.socket.is_some()
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_guarded_socket_is_private_and_goes_with_its_guard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_was_given_away_lives_as_long_as_its_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        let copy = listener.descriptor().unwrap();
        let kept = listener.keep();
        drop(kept);
        UnixStream::connect(&path).unwrap();
        drop(copy);
        // A child that another test is just starting has copies until it executes its program.
        let start = std::time::Instant::now();
        while UnixStream::connect(&path).is_ok() {
            assert!(start.elapsed() < std::time::Duration::from_secs(10), "somebody listens still");
            std::thread::yield_now();
        }
        assert!(path.exists());
    }

    #[test]
    fn an_old_socket_gives_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(listen(&path).unwrap());
        assert!(path.exists());
        listen(&path).unwrap();
    }

    #[test]
    fn a_path_too_long_is_refused_with_both_lengths() {
        let error = listen(&Path::new("/tmp").join("x".repeat(110))).unwrap_err().to_string();
        assert!(error.contains("115") && error.contains("107"), "{error}");
    }
}
