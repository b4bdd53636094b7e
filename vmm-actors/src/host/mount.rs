//! Mounts: made ready before anybody can see them, and gone with their guard.
//!
//! A mount below a shared one appears in other mount namespaces (virtiofsd's) at the moment it is attached, and what
//! is changed afterwards does not follow. So bind mounts are cloned, given their flags and only then attached, which
//! takes Linux 5.12 (mount_setattr(2)).

#![allow(unsafe_code, reason = "mount_setattr has no safe wrapper yet")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
    move_mount, open_tree, unmount as umount2,
};

/// `linux/mount.h`: flags of one mount, as mount_setattr(2) takes them.
pub mod attribute {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// No set-user-ID bits.
    pub const NOSUID: u64 = 0x2;
    /// No devices.
    pub const NODEV: u64 = 0x4;
    /// No programs.
    pub const NOEXEC: u64 = 0x8;
    /// Nothing that is mounted so can give anybody power over the host. A guest is not told of these three, and decides
    /// for its own mounts.
    pub const INERT: u64 = NOSUID | NODEV | NOEXEC;
    /// The three bits of the access time policy; none of them is `relatime`.
    pub const ATIME: u64 = 0x70;
    /// Access times are not kept.
    pub const NOATIME: u64 = 0x10;
    /// Access times are always kept.
    pub const STRICTATIME: u64 = 0x20;
    /// Access times of directories are not kept.
    pub const NODIRATIME: u64 = 0x80;
}

/// Which mounts made on the source later appear in the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// None.
    #[default]
    Private,
    /// Those of the host. Nothing goes the other way.
    Slave,
}

/// How a bind mount differs from its source, beside being [inert](attribute::INERT), which all are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BindFlags {
    /// What is mounted below the source comes along.
    pub recursive: bool,
    /// [`attribute`]s of the topmost mount.
    pub set: u64,
    /// Attributes to be taken away before.
    pub clear: u64,
    /// Read-only for the mounts below as well.
    pub recursive_read_only: bool,
    /// Of all mounts of the copy.
    pub propagation: Propagation,
}

/// A file system to be mounted as mount(2) does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// `overlay`, `tmpfs`, …
    pub kind: String,
    /// A device, or whatever the file system takes for one.
    pub source: PathBuf,
    /// `MS_*` flags that mount(2) has for every file system.
    pub flags: MountFlags,
    /// Options of the file system itself.
    pub data: Vec<String>,
}

/// A mount that is undone on drop, unless [`keep`](Self::keep) was called.
#[derive(Debug)]
#[must_use = "dropping it unmounts"]
pub struct Mount {
    target: PathBuf,
    armed: bool,
}

/// What can go wrong with a mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The source of a bind mount could not be opened.
    #[error("cannot open {} to mount it at {}", source_path.display(), target.display())]
    OpenSource {
        /// What should be mounted.
        source_path: PathBuf,
        /// Where.
        target: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A bind mount could not be given its flags.
    #[error("cannot give the mount of {} at {} its flags; this takes Linux 5.12", source_path.display(), target.display())]
    SetFlags {
        /// What should be mounted.
        source_path: PathBuf,
        /// Where.
        target: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something could not be mounted.
    #[error("cannot mount {} ({kind}) at {}", source_path.display(), target.display())]
    Attach {
        /// `bind` or the file system.
        kind: String,
        /// What should be mounted.
        source_path: PathBuf,
        /// Where.
        target: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A mount could not be made to pass on what is mounted below it.
    #[error("cannot make {} a shared mount", target.display())]
    Share {
        /// The mount.
        target: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A mount could not be undone.
    #[error("cannot unmount {}", target.display())]
    Unmount {
        /// The mount.
        target: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl MountError {
    /// What should be mounted is not there, or the kernel takes no mount of this kind with these options: it is so
    /// however often it is tried. Whatever else the kernel says is about the host.
    #[must_use]
    pub fn is_callers(&self) -> bool {
        match self {
            Self::OpenSource { source, .. } => is_no_such_file(source),
            Self::Attach { source, .. } => {
                let refused = [Errno::INVAL, Errno::NODEV, Errno::NOTBLK];
                let errno = Errno::from_io_error(source);
                is_no_such_file(source) || errno.is_some_and(|errno| refused.contains(&errno))
            }
            Self::SetFlags { .. } | Self::Share { .. } | Self::Unmount { .. } => false,
        }
    }

    /// Somebody still uses it: worth another try.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Unmount { source, .. } if source.kind() == io::ErrorKind::ResourceBusy)
    }
}

/// Whether a path leads to nothing: a file is missing, or the path itself cannot be one.
pub fn is_no_such_file(error: &io::Error) -> bool {
    let nowhere = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::NAMETOOLONG];
    Errno::from_io_error(error).is_some_and(|errno| nowhere.contains(&errno))
}

impl Mount {
    /// Makes a directory or file appear at `target` as well.
    ///
    /// # Errors
    /// [`MountError`]; nothing is mounted then.
    pub fn bind(source: &Path, target: &Path, flags: BindFlags) -> Result<Self, MountError> {
        let tree = Self::copy(source, target, flags)?;
        move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|errno| attach_error("bind", source, target, errno))?;
        Ok(Self { target: target.to_owned(), armed: true })
    }

    /// A copy of what is mounted at a path that is attached nowhere yet. It goes with its descriptor. `target` is for
    /// messages.
    ///
    /// # Errors
    /// [`MountError::OpenSource`], [`MountError::SetFlags`].
    pub(super) fn copy(source: &Path, target: &Path, flags: BindFlags) -> Result<OwnedFd, MountError> {
        let mut how = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if flags.recursive {
            how |= OpenTreeFlags::AT_RECURSIVE;
        }
        let tree = open_tree(CWD, source, how).map_err(|errno| MountError::OpenSource {
            source_path: source.to_owned(),
            target: target.to_owned(),
            source: errno.into(),
        })?;
        set_flags(tree.as_fd(), flags).map_err(|cause| MountError::SetFlags {
            source_path: source.to_owned(),
            target: target.to_owned(),
            source: cause,
        })?;
        Ok(tree)
    }

    /// Mounts a file system, [inert](attribute::INERT) as all. Options that are longer than the kernel takes at once are shortened by naming the
    /// directories of an overlay relative to the one that they have in common.
    ///
    /// # Errors
    /// [`MountError::Attach`].
    pub fn filesystem(filesystem: &Filesystem, target: &Path) -> Result<Self, MountError> {
        let Filesystem { kind, source, flags, data } = filesystem;
        let flags = *flags | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let text = data.join(",");
        let mounted = if text.len() < PAGE {
            mount_here(kind, source, target, flags, &text)
        } else {
            let (base, text) = crate::host::overlay::relative(data);
            mount_from(&base, || mount_here(kind, source, target, flags, &text))
        };
        // The kernel does not say which layer of an overlay is at fault; the options name them all.
        let described = if text.is_empty() { kind.to_owned() } else { format!("{kind}, {text}") };
        mounted.map_err(|errno| attach_error(&described, source, target, errno))?;
        Ok(Self { target: target.to_owned(), armed: true })
    }

    /// Makes what is mounted below this appear in mount namespaces that have copies of it.
    ///
    /// # Errors
    /// [`MountError::Share`].
    pub fn share(&self) -> Result<(), MountError> {
        mount_change(&self.target, MountPropagationFlags::SHARED)
            .map_err(|errno| MountError::Share { target: self.target.clone(), source: errno.into() })
    }

    /// Where it is.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Leaves it mounted when this guard is dropped.
    pub fn keep(mut self) {
        self.armed = false;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        match unmount(&self.target) {
            Err(error) if error.is_busy() => {
                tracing::warn!(target_path = %self.target.display(), "mount is in use, detaching it");
                if let Err(error) = detach(&self.target) {
                    tracing::error!(%error, "cannot detach a mount");
                }
            }
            Err(error) => tracing::error!(%error, "cannot undo a mount"),
            Ok(()) => {}
        }
    }
}

/// Undoes the topmost mount at a path. A path where nothing is mounted, or that is gone, is fine.
///
/// # Errors
/// [`MountError::Unmount`]; see [`MountError::is_busy`].
pub fn unmount(target: &Path) -> Result<(), MountError> {
    undo(target, UnmountFlags::NOFOLLOW)
}

/// Takes the topmost mount out of the tree at once; the kernel undoes it when its last user has gone.
///
/// # Errors
/// [`MountError::Unmount`].
pub fn detach(target: &Path) -> Result<(), MountError> {
    undo(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
}

fn undo(target: &Path, flags: UnmountFlags) -> Result<(), MountError> {
    match umount2(target, flags) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(MountError::Unmount { target: target.to_owned(), source: errno.into() }),
    }
}

pub(super) fn attach_error(kind: &str, source: &Path, target: &Path, errno: Errno) -> MountError {
    MountError::Attach {
        kind: kind.to_owned(),
        source_path: source.to_owned(),
        target: target.to_owned(),
        source: errno.into(),
    }
}

/// The kernel copies one page of options (mount(2)), its end included.
const PAGE: usize = 4096;

fn mount_here(kind: &str, source: &Path, target: &Path, flags: MountFlags, data: &str) -> Result<(), Errno> {
    let data = CString::new(data.as_bytes()).map_err(|_zero_byte| Errno::INVAL)?;
    mount(source, target, kind, flags, data.as_c_str())
}

/// Runs `act` on a thread whose current directory is `base`, without changing that of any other.
fn mount_from(base: &Path, act: impl FnOnce() -> Result<(), Errno> + Send) -> Result<(), Errno> {
    let there = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)
            .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
        rustix::process::chdir(base)?;
        act()
    };
    std::thread::scope(|scope| scope.spawn(there).join()).unwrap_or(Err(Errno::IO))
}

/// `struct mount_attr` of `linux/mount.h`.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

fn set_flags(tree: BorrowedFd<'_>, flags: BindFlags) -> io::Result<()> {
    let propagation = match flags.propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
    };
    let below = if flags.recursive_read_only { attribute::RDONLY } else { 0 };
    let all = MountAttr { attr_set: attribute::INERT | below, attr_clr: 0, propagation, userns_fd: 0 };
    set_attributes(tree, &all, libc::AT_RECURSIVE)?;
    if flags.set == 0 && flags.clear == 0 {
        return Ok(());
    }
    let top = MountAttr { attr_set: flags.set, attr_clr: flags.clear, propagation: 0, userns_fd: 0 };
    set_attributes(tree, &top, 0)
}

fn set_attributes(tree: BorrowedFd<'_>, attributes: &MountAttr, flags: libc::c_int) -> io::Result<()> {
    let fd = tree.as_raw_fd();
    let flags = flags | libc::AT_EMPTY_PATH;
    let size = size_of::<MountAttr>();
    // SAFETY: an open descriptor, an empty C string, a structure of the kernel's layout with its true size.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, std::ptr::from_ref(attributes), size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
