//! The agent's end of a process's terminal.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pty::OpenptFlags;
use rustix::termios::{Winsize, tcsetwinsize};

/// Directory of the console sockets. Their names must fit into a socket address with any container id, so they
/// are numbers.
const DIR: &str = "/run/bulkhead/tty";

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A terminal could not be obtained or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PtyError {
    #[error("listen for the terminal on {path}")]
    Listen { path: PathBuf, source: io::Error },
    #[error("receive the terminal on {path}")]
    Receive { path: PathBuf, source: io::Error },
    #[error("the message on {path} brought no terminal")]
    Missing { path: PathBuf },
    #[error("set the terminal's size to {width}x{height}")]
    Resize { width: u32, height: u32, source: rustix::io::Errno },
}

/// The socket on which libcontainer hands over the terminal that it makes. Removed when dropped.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Listens on a new socket.
    pub(crate) fn new() -> Result<Self, PtyError> {
        let path = Path::new(DIR).join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        let listen = || {
            std::fs::create_dir_all(DIR)?;
            let listener = UnixListener::bind(&path)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = listen().map_err(|source| PtyError::Listen { path: path.clone(), source })?;
        Ok(Self { path, listener })
    }

    /// Where libcontainer connects.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Receives the terminal. Does not wait: libcontainer hands it over before the helper reports.
    pub(crate) fn receive(&self) -> Result<OwnedFd, PtyError> {
        let fail = |source| PtyError::Receive { path: self.path.clone(), source };
        let (stream, _) = self.listener.accept().map_err(fail)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 64];
        recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(|errno| fail(errno.into()))?;
        let mut messages = control.drain();
        let fd = messages.find_map(|message| {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message { fds.next() } else { None }
        });
        fd.ok_or_else(|| PtyError::Missing { path: self.path.clone() })
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "a console socket stays");
        }
    }
}

/// Makes user `uid` the owner of the process's end of a terminal. Its group is that of the devpts mount.
pub(crate) fn give_to(terminal: &OwnedFd, uid: u32) -> io::Result<()> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let theirs = rustix::pty::ioctl_tiocgptpeer(terminal, flags)?;
    Ok(rustix::fs::fchown(theirs, Some(rustix::fs::Uid::from_raw(uid)), None)?)
}

/// Sets a terminal's size in cells. No-op for a size of 0, which means unknown.
pub(crate) fn resize(terminal: &OwnedFd, width: u32, height: u32) -> Result<(), PtyError> {
    if width == 0 || height == 0 {
        return Ok(());
    }
    let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    let size = Winsize { ws_row: cells(height), ws_col: cells(width), ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).map_err(|source| PtyError::Resize { width, height, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resizing_sets_the_terminals_size() {
        let pty = nix::pty::openpty(None, None).unwrap();
        resize(&pty.master, 132, 43).unwrap();
        let size = rustix::termios::tcgetwinsize(&pty.slave).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (132, 43));
        resize(&pty.master, 0, 50).unwrap();
        assert_eq!(rustix::termios::tcgetwinsize(&pty.slave).unwrap().ws_row, 43);
        resize(&pty.master, 1 << 20, 1).unwrap();
        assert_eq!(rustix::termios::tcgetwinsize(&pty.slave).unwrap().ws_col, u16::MAX);
    }

    #[test]
    fn a_terminal_gets_its_user_as_owner() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let uid =
            if rustix::process::geteuid().is_root() { 1234 } else { rustix::process::geteuid().as_raw() };
        let before = rustix::fs::fstat(&pty.slave).unwrap();
        give_to(&pty.master, uid).unwrap();
        let after = rustix::fs::fstat(&pty.slave).unwrap();
        assert_eq!((after.st_uid, after.st_gid), (uid, before.st_gid));
    }

    #[test]
    fn resizing_what_is_no_terminal_fails() {
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(resize(&null, 80, 25).is_err());
    }
}
