//! Volumes in memory (`emptyDir` with `medium: Memory`): a tmpfs each, made for the first container that names it and
//! kept as long as the VM. A container gets a bind mount of it, or of a directory in it, at a place that no container can
//! reach: a link that one puts into a volume must not decide what another one gets.

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

/// Below [`MEMORY_DIR`], where the volumes are; no container is called so.
const VOLUMES: &str = ".volumes";

/// The volumes of the pod. One container at a time looks which are there.
#[derive(Debug, Default)]
pub(in crate::container) struct Memory(Mutex<()>);

impl Memory {
    /// Makes what a container has of its volumes, and those volumes that are not there yet. Says what has been mounted for
    /// the container; on failure nothing has. May block.
    pub(in crate::container) fn attach(
        &self,
        container: &str,
        volumes: &[MemoryVolume],
    ) -> Result<Vec<PathBuf>, ContainerError> {
        let _alone = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut made = Vec::new();
        for volume in volumes {
            let target = place(container).join(volume.number.to_string());
            match show(Path::new(MEMORY_DIR), volume, &target) {
                Ok(()) => made.push(target),
                Err(source) => {
                    super::guest::detach_all(&made);
                    forget(container);
                    return Err(ContainerError::Memory { name: volume.name.clone(), source });
                }
            }
        }
        Ok(made)
    }
}

/// Removes the mount points of a container, whose mounts are gone.
pub(in crate::container) fn forget(container: &str) {
    let dir = place(container);
    let points = fs::read_dir(&dir).into_iter().flatten().flatten();
    for point in points.map(|entry| entry.path()).chain([dir.clone()]) {
        // Neither of them takes anything that is still mounted.
        match if point.is_dir() { fs::remove_dir(&point) } else { fs::remove_file(&point) } {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %point.display(), %error, "a mount point stays"),
        }
    }
}

fn place(container: &str) -> PathBuf {
    Path::new(MEMORY_DIR).join(container)
}

/// Mounts at `target` what the container gets of the volume.
fn show(dir: &Path, volume: &MemoryVolume, target: &Path) -> io::Result<()> {
    let root = there(dir, volume)?;
    let part = open_part(&root, volume)?;
    make_point(&part, target)?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(&part, "", flags)?;
    move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Makes what the part is mounted on. A container may have put a file where another one's sub-path leads to.
fn make_point(part: &OwnedFd, target: &Path) -> io::Result<()> {
    if FileType::from_raw_mode(fstat(part)?.st_mode) == FileType::Directory {
        return fs::create_dir_all(target);
    }
    target.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::File::create(target).map(drop)
}

/// The volume, made if it is not there.
fn there(dir: &Path, volume: &MemoryVolume) -> io::Result<PathBuf> {
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
        // One without a mount would be taken for the volume.
        if let Err(error) = fs::remove_dir(&root) {
            tracing::warn!(path = %root.display(), %error, "a volume that is none stays");
        }
        return Err(errno.into());
    }
    Ok(root)
}

/// What no volume takes of the guest's memory: who fills one hears that it is full, instead of being ended for want of
/// memory. A pod's guest has more beside the pod's own limit, so this bounds volumes of pods without a limit, and makes
/// those of very large pods a hundredth smaller.
const KEPT_BYTES: u64 = 64 << 20;

fn options(volume: &MemoryVolume, guest_bytes: u64) -> String {
    let most = guest_bytes.saturating_sub(KEPT_BYTES).max(guest_bytes / 2);
    let wanted = if volume.size_bytes == 0 { most } else { volume.size_bytes.min(most) };
    format!("size={wanted},mode={:o},uid={},gid={}", volume.mode, volume.uid, volume.gid)
}

/// Opens what the container gets of a volume. Directories on the way that are missing are made. A link is followed where
/// it leads to something in the volume.
fn open_part(root: &Path, volume: &MemoryVolume) -> io::Result<OwnedFd> {
    let root = openat2(CWD, root, PATH | OFlags::DIRECTORY, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let mut way = String::new();
    let mut part = look(&root, ".")?;
    for name in volume.sub_path.split('/').filter(|name| !name.is_empty()) {
        way = if way.is_empty() { name.to_owned() } else { format!("{way}/{name}") };
        part = match look(&root, &way) {
            Err(Errno::NOENT) => match make_directory(&part, name, volume) {
                // A container was quicker: it is as that has made it.
                Err(Errno::EXIST) => look(&root, &way)?,
                made => made?,
            },
            found => found?,
        };
    }
    Ok(part)
}

const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// How often it is looked again where something on the way is renamed meanwhile.
const LOOKS: usize = 16;

fn look(root: &OwnedFd, way: &str) -> Result<OwnedFd, Errno> {
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut looks = std::iter::repeat_with(|| openat2(root, way, PATH, Mode::empty(), inside)).take(LOOKS);
    looks.find(|found| !matches!(found, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN))
}

/// Makes a directory and gives it owner and mode by its descriptor: its name may lead elsewhere by then.
fn make_directory(parent: &OwnedFd, name: &str, volume: &MemoryVolume) -> Result<OwnedFd, Errno> {
    let mode = Mode::from_raw_mode(volume.sub_mode);
    mkdirat(parent, name, mode)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made =
        openat2(parent, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?;
    fchown(&made, Some(Uid::from_raw(volume.sub_uid)), Some(Gid::from_raw(volume.sub_gid)))?;
    // The umask, and a change of owner, take bits away.
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
    fn directories_of_a_sub_path_are_made_as_the_hosts_are() {
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
    fn a_link_that_a_container_made_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        symlink("real", dir.path().join("inside")).unwrap();
        let inside = open_part(dir.path(), &volume("inside/x")).unwrap();
        assert_eq!(fstat(&inside).unwrap().st_ino, fs::metadata(dir.path().join("real/x")).unwrap().ino());
        for (name, target) in [("absolute", "/etc"), ("above", "../../etc"), ("magic", "/proc/self/root")] {
            symlink(target, dir.path().join(name)).unwrap();
            for way in [name.to_owned(), format!("{name}/x")] {
                let error = open_part(dir.path(), &volume(&way)).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::CrossesDevices, "{way}: {error}");
            }
        }
        fs::write(dir.path().join("file"), "").unwrap();
        let error = open_part(dir.path(), &volume("file/x")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory, "{error}");
    }

    #[test]
    fn a_volume_has_its_size_as_far_as_the_guest_has_memory() {
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
    fn a_name_with_more_than_one_part_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "..", "a/b", "/a"] {
            let error =
                there(dir.path(), &MemoryVolume { name: name.into(), ..Default::default() }).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
