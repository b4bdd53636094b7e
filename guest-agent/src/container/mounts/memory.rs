//! Volumes in memory (`emptyDir` with `medium: Memory`): each is a tmpfs that is made for the first container that
//! names it and kept as long as the VM. A container gets a bind mount of it, or of a directory in it. The bind mount
//! lies where no container can reach it, so that a symbolic link in a volume cannot change what another container gets.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

use bulkhead_protocol::MEMORY_DIR;
use bulkhead_protocol::agent::MemoryVolume;
use rustix::fs::{
    CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, fstat, mkdirat, openat2,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};

use crate::container::error::ContainerError;
use crate::kernel::capacity;

/// Directory of the volumes below [`MEMORY_DIR`]. No container has this name: ids do not begin with a dot.
const VOLUMES: &str = ".volumes";

/// The volumes of the pod. The lock is held while volumes are made for a container.
#[derive(Debug, Default)]
pub(in crate::container) struct MemoryVolumes(Mutex<()>);

impl MemoryVolumes {
    /// Mounts the parts of volumes that a container has, and makes the volumes that do not exist yet. Returns the mount
    /// points; on a failure nothing is left mounted for the container. May block.
    pub(in crate::container) fn attach(
        &self,
        container: &str,
        volumes: &[MemoryVolume],
    ) -> Result<Vec<PathBuf>, ContainerError> {
        let _alone = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut made = Vec::new();
        for volume in volumes {
            let target = container_dir(container).join(volume.number.to_string());
            match mount_part(Path::new(MEMORY_DIR), volume, &target) {
                Ok(()) => made.push(target),
                Err(source) => {
                    super::guest::detach_all(&made);
                    remove_mount_points(container);
                    return Err(ContainerError::Memory { name: volume.name.clone(), source });
                }
            }
        }
        Ok(made)
    }
}

/// Removes the mount points of a container after they were unmounted.
pub(in crate::container) fn remove_mount_points(container: &str) {
    let dir = container_dir(container);
    let points = fs::read_dir(&dir).into_iter().flatten().flatten();
    for point in points.map(|entry| entry.path()).chain([dir.clone()]) {
        // Neither of the two removes what is still mounted.
        match if point.is_dir() { fs::remove_dir(&point) } else { fs::remove_file(&point) } {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %point.display(), %error, "a mount point was not removed"),
        }
    }
}

fn container_dir(container: &str) -> PathBuf {
    Path::new(MEMORY_DIR).join(container)
}

/// Mounts the part of the volume that the container gets at `target`.
fn mount_part(dir: &Path, volume: &MemoryVolume, target: &Path) -> io::Result<()> {
    let root = ensure_volume(dir, volume)?;
    let part = open_part(&root, volume)?;
    make_point(&part, target)?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(&part, "", flags)?;
    move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Makes the mount point of the part. The part can be a file, if a container has put one where another's sub-path
/// leads.
fn make_point(part: &OwnedFd, target: &Path) -> io::Result<()> {
    if FileType::from_raw_mode(fstat(part)?.st_mode) == FileType::Directory {
        return fs::create_dir_all(target);
    }
    target.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::File::create(target).map(drop)
}

/// The path of the volume, which is made if it does not exist.
fn ensure_volume(dir: &Path, volume: &MemoryVolume) -> io::Result<PathBuf> {
    let mut parts = Path::new(&volume.name).components();
    let (Some(Component::Normal(name)), None) = (parts.next(), parts.next()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "its name is no path component"));
    };
    let root = dir.join(VOLUMES).join(name);
    if root.exists() {
        return Ok(root);
    }
    fs::create_dir_all(&root)?;
    let options = options(volume, capacity::memory_bytes());
    let options = std::ffi::CString::new(options)?;
    let mounted = mount(volume.name.as_str(), &root, "tmpfs", MountFlags::empty(), Some(options.as_c_str()));
    if let Err(errno) = mounted {
        // A directory without a mount would be taken for the volume.
        if let Err(error) = fs::remove_dir(&root) {
            tracing::warn!(path = %root.display(), %error, "the directory of a volume that was not mounted is left");
        }
        return Err(errno.into());
    }
    Ok(root)
}

/// How much of the guest's memory no volume may take, so that writing too much fails with ENOSPC instead of an OOM
/// kill. A guest has more than this beside the pod's memory limit, so only volumes of pods without a limit are bounded
/// by it, and those of very large pods, by about a hundredth.
const KEPT_BYTES: u64 = 64 << 20;

fn options(volume: &MemoryVolume, guest_bytes: u64) -> String {
    let most = guest_bytes.saturating_sub(KEPT_BYTES).max(guest_bytes / 2);
    let wanted = if volume.size_bytes == 0 { most } else { volume.size_bytes.min(most) };
    format!("size={wanted},mode={:o},uid={},gid={}", volume.mode, volume.uid, volume.gid)
}

/// Opens the part of a volume that the container gets. Missing directories of the sub-path are made. Symbolic links are
/// followed only within the volume.
fn open_part(root: &Path, volume: &MemoryVolume) -> io::Result<OwnedFd> {
    let root = openat2(CWD, root, PATH | OFlags::DIRECTORY, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let mut sub_path = String::new();
    let mut part = open_beneath(&root, ".")?;
    for name in volume.sub_path.split('/').filter(|name| !name.is_empty()) {
        sub_path = if sub_path.is_empty() { name.to_owned() } else { format!("{sub_path}/{name}") };
        part = match open_beneath(&root, &sub_path) {
            Err(Errno::NOENT) => match make_directory(&part, name, volume) {
                // A container has made it meanwhile, and it is used as it is.
                Err(Errno::EXIST) => open_beneath(&root, &sub_path)?,
                made => made?,
            },
            found => found?,
        };
    }
    Ok(part)
}

const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// How often a path is opened again when something on it is renamed meanwhile (EAGAIN, openat2(2)).
const MAX_TRIES: usize = 16;

fn open_beneath(root: &OwnedFd, sub_path: &str) -> Result<OwnedFd, Errno> {
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut tries =
        std::iter::repeat_with(|| openat2(root, sub_path, PATH, Mode::empty(), inside)).take(MAX_TRIES);
    tries.find(|found| !matches!(found, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN))
}

/// Makes a directory and sets its owner and mode by its descriptor, because its name may lead elsewhere by then.
fn make_directory(parent: &OwnedFd, name: &str, volume: &MemoryVolume) -> Result<OwnedFd, Errno> {
    let mode = Mode::from_raw_mode(volume.sub_mode);
    mkdirat(parent, name, mode)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made =
        openat2(parent, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?;
    fchown(&made, Some(Uid::from_raw(volume.sub_uid)), Some(Gid::from_raw(volume.sub_gid)))?;
    // The umask and a change of owner clear bits.
    fchmod(&made, mode)?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn volume(sub_path: &str) -> MemoryVolume {
        let uid = rustix::process::getuid().as_raw();
        let gid = rustix::process::getgid().as_raw();
        MemoryVolume {
            name: "v".into(),
            sub_path: sub_path.into(),
            sub_uid: uid,
            sub_gid: gid,
            sub_mode: 0o2770,
            ..Default::default()
        }
    }

    #[test]
    fn missing_directories_of_a_sub_path_get_owner_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        let part = open_part(dir.path(), &volume("a/b/c")).unwrap();
        let made = fs::metadata(dir.path().join("a/b/c")).unwrap();
        assert_eq!(fstat(&part).unwrap().st_ino, made.ino());
        assert_eq!(made.mode() & 0o7777, 0o2770);
        let again = open_part(dir.path(), &volume("a/b/c")).unwrap();
        assert_eq!(fstat(&again).unwrap().st_ino, made.ino());
        let whole = open_part(dir.path(), &volume("")).unwrap();
        assert_eq!(fstat(&whole).unwrap().st_ino, fs::metadata(dir.path()).unwrap().ino());
    }

    #[test]
    fn a_symbolic_link_cannot_leave_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        symlink("real", dir.path().join("inside")).unwrap();
        let inside = open_part(dir.path(), &volume("inside/x")).unwrap();
        assert_eq!(fstat(&inside).unwrap().st_ino, fs::metadata(dir.path().join("real/x")).unwrap().ino());
        for (name, target) in [("absolute", "/etc"), ("above", "../../etc"), ("magic", "/proc/self/root")] {
            symlink(target, dir.path().join(name)).unwrap();
            for sub_path in [name.to_owned(), format!("{name}/x")] {
                let error = open_part(dir.path(), &volume(&sub_path)).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::CrossesDevices, "{sub_path}: {error}");
            }
        }
        fs::write(dir.path().join("file"), "").unwrap();
        let error = open_part(dir.path(), &volume("file/x")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory, "{error}");
    }

    #[test]
    fn a_volumes_size_is_bounded_by_the_guests_memory() {
        let of = |size_bytes, guest_bytes| {
            let volume = MemoryVolume { size_bytes, mode: 0o2777, gid: 7, ..Default::default() };
            options(&volume, guest_bytes)
        };
        let size = |bytes: u64| format!("size={bytes},mode=2777,uid=0,gid=7");
        assert_eq!(of(1 << 20, 1 << 28), size(1 << 20));
        for much in [0, 1 << 28, u64::MAX] {
            assert_eq!(of(much, 1 << 28), size((1 << 28) - (64 << 20)), "{much}");
        }
        assert_eq!(of(0, 80 << 20), size(40 << 20), "half of a tiny guest");
    }

    #[test]
    fn a_name_that_is_no_single_path_component_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "..", "a/b", "/a"] {
            let error = ensure_volume(dir.path(), &MemoryVolume { name: name.into(), ..Default::default() })
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
