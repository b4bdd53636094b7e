//! Private directories.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::mountinfo;

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

/// Removes a directory with all that is in it. One that is gone is fine.
///
/// # Errors
/// [`DirError::Mounted`] before anything is removed when something is mounted in it; [`DirError::Remove`].
pub fn remove(path: &Path) -> Result<(), DirError> {
    let wrap = |source| DirError::Remove { path: path.to_owned(), source };
    if let Some(mount) = mountinfo::below(path).map_err(wrap)?.into_iter().next() {
        return Err(DirError::Mounted { path: path.to_owned(), mount });
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(wrap),
    }
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
    fn a_directory_in_which_something_is_mounted_is_never_removed() {
        let error = remove(Path::new("/proc")).unwrap_err();
        assert!(matches!(error, DirError::Mounted { .. }), "{error}");
    }
}
