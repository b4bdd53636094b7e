//! Private directories.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use super::mount::{self, Filesystem, Mount, MountError};
use super::mountinfo;

/// Name of the file system of a bounded directory, in the kernel's list of mounts.
pub const BOUNDED: &str = "bulkhead-vm";
/// The same of releases whose VMs were in the directories of their pods.
const BOUNDED_BEFORE: &str = "bulkhead-pod";

/// A directory that only root can enter, removed on drop with all that is in it, unless [`keep`](Self::keep) was
/// called.
#[derive(Debug)]
#[must_use = "dropping it removes the directory"]
pub struct PrivateDir {
    path: PathBuf,
    armed: bool,
}

/// What can go wrong with a directory.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// The directory could not be made.
    #[error("cannot create directory {}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something is mounted in it, so removing it would remove what is not ours.
    #[error("cannot remove {}: {} is still mounted", path.display(), mount.display())]
    Mounted {
        /// The directory.
        path: PathBuf,
        /// What is mounted in it.
        mount: PathBuf,
    },
    /// The directory could not be made a file system of its own, or that not be undone.
    #[error(transparent)]
    Bound(MountError),
    /// The directory could not be removed.
    #[error("cannot remove directory {}", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl PrivateDir {
    /// Makes a directory with mode 0700, and those above it. One that is there already is taken over, with its
    /// content, and made private.
    ///
    /// # Errors
    /// [`DirError::Create`].
    pub fn create(path: &Path) -> Result<Self, DirError> {
        let wrap = |source| DirError::Create { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(wrap)?;
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(wrap)?;
        Ok(Self { path: path.to_owned(), armed: true })
    }

    /// Makes a directory as [`create`](Self::create) does, that takes `limit` bytes of file content and no more: who
    /// writes beyond gets ENOSPC. One that is bounded already is taken over as it is.
    ///
    /// # Errors
    /// [`DirError::Create`], [`DirError::Bound`]; what was made is removed again then.
    pub fn create_bounded(path: &Path, limit: u64) -> Result<Self, DirError> {
        let made = Self::create(path)?;
        let real = real(path);
        let wrap = |source| DirError::Create { path: path.to_owned(), source };
        if mountinfo::below(&real).map_err(wrap)?.contains(&real) {
            return Ok(made);
        }
        let bounded = Filesystem {
            kind: "tmpfs".to_owned(),
            source: BOUNDED.into(),
            flags: MountFlags::empty(),
            data: vec!["mode=0700".to_owned(), format!("size={limit}")],
        };
        // From here on it goes with the directory.
        Mount::filesystem(&bounded, &real).map_err(DirError::Bound)?.keep();
        Ok(made)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it in place when this guard is dropped.
    pub fn keep(mut self) {
        self.armed = false;
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        if self.armed
            && let Err(error) = remove(&self.path)
        {
            tracing::error!(%error, "cannot remove a directory with its guard");
        }
    }
}

/// Removes a directory with all that is in it, be it bounded or not. One that is gone is fine.
///
/// # Errors
/// [`DirError::Mounted`] before anything is removed when something is mounted in it; [`DirError::Bound`];
/// [`DirError::Remove`].
pub fn remove(path: &Path) -> Result<(), DirError> {
    let wrap = |source| DirError::Remove { path: path.to_owned(), source };
    let real = real(path);
    let mounted = mountinfo::below(&real).map_err(wrap)?;
    if let Some(mount) = mounted.iter().find(|mount| **mount != real || !is_ours(&real)) {
        return Err(DirError::Mounted { path: path.to_owned(), mount: mount.clone() });
    }
    if !mounted.is_empty() {
        unbound(&real).map_err(DirError::Bound)?;
    }
    match fs::remove_dir_all(path) {
        Err(_) if is_gone(path) => Ok(()),
        result => result.map_err(wrap),
    }
}

/// The path as the kernel lists it.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_gone| path.to_owned())
}

/// What is mounted over a directory is the bound that was put on it.
fn is_ours(path: &Path) -> bool {
    mountinfo::source(path)
        .is_ok_and(|source| source.is_some_and(|source| [BOUNDED, BOUNDED_BEFORE].contains(&source.as_str())))
}

fn unbound(path: &Path) -> Result<(), MountError> {
    match mount::unmount(path) {
        Err(error) if error.is_busy() => {
            tracing::warn!(path = %path.display(), "somebody has a file of it open, detaching it");
            mount::detach(path)
        }
        result => result,
    }
}

/// Nothing is there: neither it nor, perhaps, a directory above it.
fn is_gone(path: &Path) -> bool {
    let found = fs::symlink_metadata(path).map_err(|error| error.kind());
    matches!(found, Err(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn a_directory_is_private_and_goes_with_its_guard() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("s/x");
        fs::create_dir_all(&path).unwrap();
        let guard = PrivateDir::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(path.join("file"), "").unwrap();
        drop(guard);
        assert!(!path.exists() && dir.path().join("s").exists());
        remove(&path).unwrap();
    }

    #[test]
    fn a_kept_directory_stays() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("x");
        PrivateDir::create(&path).unwrap().keep();
        assert!(path.exists());
    }

    #[test]
    fn what_is_not_there_is_removed_and_what_is_no_directory_is_not() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        remove(&dir.path().join("missing/x")).unwrap();
        remove(&file.join("x")).unwrap();
        assert!(matches!(remove(&file), Err(DirError::Remove { .. })));
    }

    #[test]
    fn a_directory_in_which_something_is_mounted_is_never_removed() {
        let error = remove(Path::new("/proc")).unwrap_err();
        assert!(matches!(error, DirError::Mounted { .. }), "{error}");
    }

    /// Runs a test on a thread with a mount namespace of its own.
    fn in_own_mounts(test: impl FnOnce(&Path) + Send + 'static) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().to_owned();
        let body = move || {
            use rustix::mount::{MountPropagationFlags, mount_change};
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            test(&path);
        };
        std::thread::spawn(body).join().unwrap();
    }

    #[test]
    fn a_bounded_directory_takes_so_much_and_no_more() {
        in_own_mounts(|dir| {
            let path = dir.join("s/x");
            let guard = PrivateDir::create_bounded(&path, 1 << 20).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
            let error = fs::write(path.join("flood"), vec![b'x'; 2 << 20]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
            assert_eq!(fs::metadata(path.join("flood")).unwrap().len(), 1 << 20);
            // What needs no content can still be made.
            std::os::unix::net::UnixListener::bind(path.join("late.sock")).unwrap();
            fs::create_dir(path.join("late")).unwrap();
            // A repeat changes nothing.
            PrivateDir::create_bounded(&path, 1 << 20).unwrap().keep();
            assert!(path.join("flood").exists());
            assert_eq!(mountinfo::below(dir).unwrap(), [path.as_path()]);
            drop(guard);
            assert!(!path.exists() && mountinfo::below(dir).unwrap().is_empty());
        });
    }

    #[test]
    fn a_bounded_directory_goes_though_a_file_of_it_is_open() {
        in_own_mounts(|dir| {
            let path = dir.join("x");
            PrivateDir::create_bounded(&path, 1 << 20).unwrap().keep();
            let open = fs::File::create(path.join("open")).unwrap();
            remove(&path).unwrap();
            assert!(!path.exists() && mountinfo::below(dir).unwrap().is_empty());
            drop(open);
        });
    }

    #[test]
    fn what_is_mounted_in_a_bounded_directory_keeps_it() {
        in_own_mounts(|dir| {
            let path = dir.join("x");
            PrivateDir::create_bounded(&path, 1 << 20).unwrap().keep();
            let inner = PrivateDir::create_bounded(&path.join("inner"), 1 << 20).unwrap();
            let error = remove(&path).unwrap_err();
            assert!(matches!(&error, DirError::Mounted { mount, .. } if mount.ends_with("inner")), "{error}");
            assert!(path.exists());
            drop(inner);
            remove(&path).unwrap();
        });
    }
}
