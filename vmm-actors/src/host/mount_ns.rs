//! The mount namespace of another process: what is mounted there is in nobody else's way.
//!
//! A directory that is a mount point in the namespace of whoever wants to remove it is busy; in any other it goes, and
//! what is mounted there with it (Linux 3.18).

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};

use super::mount::{BindFlags, Mount, MountError, attach_error};
use super::process::{ProcessError, ProcessIdentity, pidfd_of};

/// A process that lives in a mount namespace.
#[derive(Debug)]
pub struct MountNs {
    /// Entered through this: it is never another process's.
    pidfd: OwnedFd,
    root: PathBuf,
}

impl MountNs {
    /// The namespace of a process; `None` when it is gone.
    ///
    /// # Errors
    /// [`ProcessError`] when the kernel does not let us find out.
    pub fn of(process: &ProcessIdentity) -> Result<Option<Self>, ProcessError> {
        let root = PathBuf::from(format!("/proc/{}/root", process.pid));
        Ok(pidfd_of(process)?.map(|pidfd| Self { pidfd, root }))
    }

    /// Makes a directory of ours appear there and only there, at `target` below what the process has for its root. It
    /// goes with the directory that it is mounted on, or with the namespace.
    ///
    /// # Errors
    /// [`MountError`]; nothing is mounted then.
    pub fn bind(&self, source: &Path, target: &Path, flags: BindFlags) -> Result<(), MountError> {
        let fail = |errno| attach_error("bind", source, target, errno);
        let tree = Mount::copy(source, target, flags)?;
        let point = self.open(target).map_err(fail)?;
        self.enter(|| {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            move_mount(&tree, "", &point, "", flags)
        })
        .map_err(fail)
    }

    /// Through the link in /proc a path leads into that namespace, proc(5).
    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, &self.root, flags | OFlags::DIRECTORY, Mode::empty())?;
        let inner = path.strip_prefix("/").unwrap_or(path);
        openat2(&root, inner, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
    }

    /// Runs `act` there, on a thread of its own that never does anything else.
    fn enter(&self, act: impl FnOnce() -> Result<(), Errno> + Send) -> Result<(), Errno> {
        let there = || {
            let wrap = |errno: nix::errno::Errno| Errno::from_raw_os_error(errno as i32);
            // Whoever shares its directories with others must not leave them behind, setns(2).
            unshare(CloneFlags::CLONE_FS).map_err(wrap)?;
            setns(self.pidfd.as_fd(), CloneFlags::CLONE_NEWNS).map_err(wrap)?;
            act()
        };
        std::thread::scope(|scope| scope.spawn(there).join()).unwrap_or(Err(Errno::IO))
    }
}
