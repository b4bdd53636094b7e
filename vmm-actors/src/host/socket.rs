//! Unix sockets that listen before the process that will serve them runs.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;

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

#[cfg(test)]
mod tests {
    use super::*;

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
