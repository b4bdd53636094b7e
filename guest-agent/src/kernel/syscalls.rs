//! The only `unsafe` code of this crate: system calls without a safe wrapper in rustix, nix or tokio.
#![allow(unsafe_code, reason = "four calls without a safe wrapper, each with its note")]

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// kill(2) of one process with any signal number: real-time signals have no name in rustix or nix.
///
/// # Errors
/// What the kernel says, kill(2).
pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    let answer = unsafe { libc::kill(pid, signal) };
    Errno::result(answer).map(drop)
}

/// Registers a descriptor of any kind with the runtime, and makes it non-blocking.
///
/// # Errors
/// What fcntl(2) or epoll_ctl(2) says.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    // SAFETY: an OwnedFd is one stable descriptor, closed only by its own drop, which is AsyncFd's.
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    watched.map_err(|error| error.into_parts().1)
}

/// Slews the clock: it runs faster or slower until it has gained `by_micros`. Replaces what is left of an earlier slew
/// (ADJ_OFFSET_SINGLESHOT of adjtimex(2)).
///
/// # Errors
/// What the kernel says, adjtimex(2).
pub(crate) fn slew_clock(by_micros: i64) -> Result<(), Errno> {
    // SAFETY: timex is plain numbers, for which zero is a value.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = libc::ADJ_OFFSET_SINGLESHOT;
    timex.offset = by_micros;
    // SAFETY: the kernel reads and writes this one struct during the call.
    let answer = unsafe { libc::adjtimex(&raw mut timex) };
    Errno::result(answer).map(drop)
}

/// Restores the default action of SIGPIPE, which ends the process. Rust programs ignore SIGPIPE, and ignored signals
/// stay ignored across execve(2).
///
/// # Errors
/// What the kernel says, sigaction(2).
pub(crate) fn heed_sigpipe() -> Result<(), Errno> {
    // SAFETY: the default action is no handler of ours that could break what it interrupts.
    let before = unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    before.map(drop)
}
