//! The first mounts, and a root that containers can pivot away from.
//!
//! The kernel unpacks the initramfs into `rootfs`, the one mount without a parent, and pivot_root(2) refuses to
//! replace that. Copying ourselves into a fresh tmpfs would cost time and memory; a bind mount of `/` over itself
//! has a parent and costs neither.

use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::process::{chdir, chroot};

use bulkhead_protocol::SHARE_DIR;

use crate::cgroup;

/// Where everything that belongs to the pod lives in the guest.
pub(crate) const RUN_DIR: &str = "/run/bulkhead";

/// What keeps the guest from coming up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("make a root that pivot_root accepts ({step})")]
    SwitchRoot { step: &'static str, source: io::Error },
    #[error("create directory {path}")]
    CreateDir { path: &'static str, source: io::Error },
    #[error("mount {fs} at {target}")]
    Mount { fs: &'static str, target: &'static str, source: io::Error },
}

struct Filesystem {
    fs: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: &'static str,
}

const NO_PROGRAMS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Needed before anything else can be found or said.
const FIRST: [Filesystem; 3] = [
    Filesystem { fs: "devtmpfs", target: "/dev", flags: MountFlags::NOSUID, data: "mode=0755" },
    Filesystem { fs: "proc", target: "/proc", flags: NO_PROGRAMS, data: "" },
    Filesystem { fs: "sysfs", target: "/sys", flags: NO_PROGRAMS, data: "" },
];

/// Needed before the first container, so the announcement does not wait for them.
const SECOND: [Filesystem; 4] = [
    Filesystem {
        fs: "tmpfs",
        target: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: "mode=0755",
    },
    Filesystem {
        fs: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: "gid=5,mode=0620,ptmxmode=0666",
    },
    Filesystem {
        fs: "tmpfs",
        target: "/dev/shm",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: "mode=1777",
    },
    Filesystem { fs: "cgroup2", target: "/sys/fs/cgroup", flags: NO_PROGRAMS, data: "" },
];

/// The kernel's bound of fs.nr_open (fs/file.c). No limit of open files that held on the node is above it; the default
/// is far below what systemd lets containerd have.
const MOST_OPEN_FILES: &str = "2147483584";

/// Replaces the root and mounts what the agent itself needs.
pub(crate) fn first() -> Result<(), BootError> {
    switch_root()?;
    FIRST.iter().try_for_each(attach)
}

/// Mounts what containers need.
pub(crate) fn second() -> Result<(), BootError> {
    SECOND.iter().try_for_each(attach)?;
    // Containers that start at once would make their cgroups' parent at once, and libcontainer fails the slower ones.
    for path in [RUN_DIR, SHARE_DIR, cgroup::ALL] {
        std::fs::create_dir_all(path).map_err(|source| BootError::CreateDir { path, source })?;
    }
    if let Err(error) = std::fs::write("/proc/sys/fs/nr_open", MOST_OPEN_FILES) {
        tracing::warn!(%error, "a container's limit of open files may be refused");
    }
    Ok(())
}

fn switch_root() -> Result<(), BootError> {
    let fail = |step| move |errno: rustix::io::Errno| BootError::SwitchRoot { step, source: errno.into() };
    mount_bind("/", "/").map_err(fail("bind / over itself"))?;
    // `/..` is looked up through the new mount, a plain `/` still names the old one.
    chdir("/..").map_err(fail("enter the bind mount"))?;
    chroot(".").map_err(fail("chroot"))
}

fn attach(wanted: &Filesystem) -> Result<(), BootError> {
    let Filesystem { fs, target, flags, data } = *wanted;
    if !Path::new(target).is_dir() {
        std::fs::create_dir_all(target).map_err(|source| BootError::CreateDir { path: target, source })?;
    }
    let data = std::ffi::CString::new(data).unwrap_or_default();
    match mount(fs, target, fs, flags, Some(data.as_c_str())) {
        // Mounted already, by the kernel (CONFIG_DEVTMPFS_MOUNT).
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(errno) => Err(BootError::Mount { fs, target, source: errno.into() }),
    }
}
