//! The first mounts, and a root that containers can pivot away from.
//!
//! The kernel unpacks the initramfs into `rootfs`, the one mount without a parent, and pivot_root(2) refuses to replace
//! that. Copying all files into a new tmpfs would cost time and memory; a bind mount of `/` over itself has a parent
//! and costs neither.

use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::process::{chdir, chroot};

use bulkhead_protocol::SHARE_DIR;

use crate::cgroup;

/// Directory of everything that belongs to the pod.
pub(crate) const RUN_DIR: &str = "/run/bulkhead";

/// Why the guest cannot boot.
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

/// Needed to find devices and to log.
const ESSENTIAL: [Filesystem; 3] = [
    Filesystem { fs: "devtmpfs", target: "/dev", flags: MountFlags::NOSUID, data: "mode=0755" },
    Filesystem { fs: "proc", target: "/proc", flags: NO_PROGRAMS, data: "" },
    Filesystem { fs: "sysfs", target: "/sys", flags: NO_PROGRAMS, data: "" },
];

/// Needed by the first container; the announcement does not wait for them.
const REMAINING: [Filesystem; 4] = [
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

/// The largest fs.nr_open that the kernel takes (fs/file.c), so that no RLIMIT_NOFILE that was valid on the node is
/// refused in the guest. The kernel's default is far below what systemd gives containerd.
const MAX_OPEN_FILES: &str = "2147483584";

/// Replaces the root and mounts what the agent itself needs.
pub(crate) fn mount_essential() -> Result<(), BootError> {
    switch_root()?;
    ESSENTIAL.iter().try_for_each(mount_one)
}

/// Mounts what containers need.
pub(crate) fn mount_remaining() -> Result<(), BootError> {
    REMAINING.iter().try_for_each(mount_one)?;
    // Containers that start at the same time would make the parent of their cgroups at the same time, and libcontainer
    // fails where the directory exists.
    for path in [RUN_DIR, SHARE_DIR, cgroup::CONTAINERS] {
        std::fs::create_dir_all(path).map_err(|source| BootError::CreateDir { path, source })?;
    }
    if let Err(error) = std::fs::write("/proc/sys/fs/nr_open", MAX_OPEN_FILES) {
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

fn mount_one(wanted: &Filesystem) -> Result<(), BootError> {
    let Filesystem { fs, target, flags, data } = *wanted;
    if !Path::new(target).is_dir() {
        std::fs::create_dir_all(target).map_err(|source| BootError::CreateDir { path: target, source })?;
    }
    let data = std::ffi::CString::new(data).unwrap_or_default();
    match mount(fs, target, fs, flags, Some(data.as_c_str())) {
        // The kernel has mounted it already (CONFIG_DEVTMPFS_MOUNT).
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(errno) => Err(BootError::Mount { fs, target, source: errno.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_below_the_directory_that_is_made_at_boot() {
        assert!(Path::new(SHARE_DIR).starts_with(RUN_DIR));
    }
}
