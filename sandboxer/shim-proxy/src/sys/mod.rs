//! The only place with `unsafe`: inherited descriptors, descriptors for which tokio has no type, and bpf(2).
#![allow(unsafe_code, reason = "there is no safe interface to these; see the SAFETY notes")]

pub(crate) mod bpf;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::socket_acceptconn;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Takes over an inherited listening socket. Call it once for each descriptor, before anything else is opened.
///
/// # Errors
/// When the descriptor is not open, or is no listening socket.
pub(crate) fn inherited_listener(fd: i32) -> io::Result<UnixListener> {
    // Checks without using the descriptor whether it is open.
    std::fs::symlink_metadata(format!("/proc/self/fd/{fd}"))?;
    // SAFETY: the descriptor is open (checked above), and by the contract with the sandboxer it is inherited for
    // this process alone; `serve` calls this once for each number before it opens any descriptor of its own.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    if !socket_acceptconn(&owned)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a listening socket"));
    }
    fcntl_setfd(&owned, FdFlags::CLOEXEC)?;
    let listener = UnixListener::from(owned);
    listener.set_nonblocking(true)?;
    debug_assert_eq!(listener.as_raw_fd(), fd);
    Ok(listener)
}

/// Registers a descriptor that only becomes readable (a pidfd) with the event loop.
///
/// # Errors
/// What epoll_ctl(2) says.
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned and open, and nobody replaces or closes it while the result holds it: its
    // users only borrow it, and never take it out mutably.
    let joined = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    joined.map_err(io::Error::from)
}
