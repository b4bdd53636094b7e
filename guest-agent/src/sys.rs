//! The one fence around `unsafe` of this crate: system calls without a safe wrapper in rustix or nix.
#![allow(unsafe_code, reason = "kill(2) with real-time signal numbers has no safe wrapper")]

use nix::errno::Errno;

/// kill(2) of one process with any signal number.
///
/// # Errors
/// What the kernel says, kill(2).
pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    let answer = unsafe { libc::kill(pid, signal) };
    Errno::result(answer).map(drop)
}
