//! Mounts that the agent makes for a container in the guest.

use std::io;
use std::path::PathBuf;

use bulkhead_protocol::agent::GuestMount;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::container::error::ContainerError;

/// Mounts in order. On a failure what was mounted is unmounted.
pub(in crate::container) fn attach_all(wanted: &[GuestMount]) -> Result<Vec<PathBuf>, ContainerError> {
    let mut made = Vec::new();
    for wanted in wanted {
        match attach(wanted) {
            Ok(target) => made.push(target),
            Err(source) => {
                detach_all(&made);
                let (fs_type, target) = (wanted.fs_type.clone(), PathBuf::from(&wanted.target));
                return Err(ContainerError::Mount { fs_type, target, source });
            }
        }
    }
    Ok(made)
}

fn attach(wanted: &GuestMount) -> io::Result<PathBuf> {
    let target = PathBuf::from(&wanted.target);
    if !target.is_absolute() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the target is not absolute"));
    }
    std::fs::create_dir_all(&target)?;
    let (flags, data) = options(&wanted.options);
    let data = std::ffi::CString::new(data)?;
    mount(wanted.source.as_str(), &target, wanted.fs_type.as_str(), flags, Some(data.as_c_str()))?;
    Ok(target)
}

/// Unmounts in reverse order. A busy mount is unmounted lazily, when its last user is gone.
pub(in crate::container) fn detach_all(made: &[PathBuf]) {
    for target in made.iter().rev() {
        match unmount(target, UnmountFlags::empty()) {
            // Already unmounted.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => {
                tracing::warn!(target = %target.display(), %error, "a mount is busy, unmounting it lazily");
                if let Err(error) = unmount(target, UnmountFlags::DETACH) {
                    tracing::warn!(target = %target.display(), %error, "a mount was not unmounted");
                }
            }
        }
    }
}

/// Splits mount options as of mount(8) into flags of mount(2) and data for the file system.
fn options(words: &[String]) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for word in words {
        match word.as_str() {
            "ro" => flags |= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "lazytime" => flags |= MountFlags::LAZYTIME,
            "bind" => flags |= MountFlags::BIND,
            "rbind" => flags |= MountFlags::BIND | MountFlags::REC,
            // The defaults.
            "rw" | "suid" | "dev" | "exec" | "async" | "atime" | "diratime" | "defaults" | "" => {}
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn mount_options_are_split_into_flags_and_data() {
        let (flags, data) = options(&words("rw nosuid noexec size=64m mode=1777"));
        assert_eq!(flags, MountFlags::NOSUID | MountFlags::NOEXEC);
        assert_eq!(data, "size=64m,mode=1777");
        assert_eq!(options(&[]), (MountFlags::empty(), String::new()));
        assert_eq!(options(&words("rbind ro")).0, MountFlags::BIND | MountFlags::REC | MountFlags::RDONLY);
    }

    #[test]
    fn a_relative_target_is_refused_and_named() {
        let wanted = GuestMount { fs_type: "tmpfs".into(), target: "x".into(), ..Default::default() };
        let error = attach_all(&[wanted]).unwrap_err();
        assert!(error.to_string().contains("tmpfs at x"), "{error}");
    }
}
