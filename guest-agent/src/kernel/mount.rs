//! Questions about mounts, and detaching them.

use std::path::Path;

use rustix::mount::{UnmountFlags, unmount};

/// Whether something is mounted at `path`: a mount point is on another device than its parent.
pub(crate) fn is_mounted(path: &str) -> bool {
    let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev).ok();
    Path::new(path).parent().is_some_and(|parent| device(Path::new(path)) != device(parent))
}

/// Unmounts `path` lazily: nothing can be opened there any more, and the last user's end completes it. No-op where
/// nothing is mounted.
///
/// # Errors
/// What the kernel says, umount2(2).
pub(crate) fn detach(path: &str) -> Result<(), rustix::io::Errno> {
    if is_mounted(path) { unmount(path, UnmountFlags::DETACH) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_a_mount_point_and_its_status_file_is_none() {
        assert!(is_mounted("/proc"));
        assert!(!is_mounted("/proc/self"));
    }
}
