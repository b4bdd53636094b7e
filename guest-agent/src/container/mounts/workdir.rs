//! Makes a container's working directory if it is missing, as runc does. libcontainer only changes into it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

use super::targets::Tree;
use crate::container::error::ContainerError;

/// Where the agent finds the directory before the container has a mount namespace.
#[derive(Debug, PartialEq, Eq)]
struct Location {
    /// The container's root, or the source of the mount that covers the directory.
    root: PathBuf,
    /// The rest of the path.
    path: PathBuf,
}

/// Makes the working directory of a container and its parents, unless it exists.
pub(in crate::container) fn make(id: &str, tree: &Tree, spec: &Spec) -> Result<(), ContainerError> {
    let path = spec.process().as_ref().map(|process| process.cwd().clone()).unwrap_or_default();
    let Some(location) = locate(tree, &path) else { return Ok(()) };
    location.make().map_err(|errno| ContainerError::MakeWorkDir {
        id: id.to_owned(),
        path,
        source: errno.into(),
    })
}

/// None for the root itself, and for a directory on a mount that does not exist yet.
fn locate(tree: &Tree, cwd: &Path) -> Option<Location> {
    let cwd = tree.resolve(cwd);
    let (root, path) = tree.split(&cwd)?;
    (path != Path::new("")).then_some(Location { root, path })
}

impl Location {
    fn make(&self) -> Result<(), Errno> {
        let root = openat(CWD, &self.root, DIRECTORY, Mode::empty())?;
        if within(&root, &self.path).is_ok() {
            return Ok(());
        }
        let mut above = PathBuf::from(".");
        for part in self.path.components() {
            let path = above.join(part);
            match within(&root, &path) {
                Ok(_there) => {}
                Err(Errno::NOENT) => {
                    mkdirat(within(&root, &above)?, Path::new(part.as_os_str()), Mode::from_raw_mode(0o755))?;
                }
                Err(error) => return Err(error),
            }
            above = path;
        }
        Ok(())
    }
}

/// To open a directory without access to its content.
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a directory. Symbolic links are the container's and cannot lead out of `root` (openat2(2)).
fn within(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    openat2(root, path, DIRECTORY, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn the_directory_is_in_the_root_or_in_the_volume_that_covers_it() {
        let mut spec: Spec = serde_json::from_str(
            r#"{"ociVersion": "1.1.0", "mounts": [
                {"destination": "/data", "type": "bind", "source": "/volume", "options": ["rbind"]},
                {"destination": "/data/deep", "type": "bind", "source": "/other", "options": ["rbind"]},
                {"destination": "/run", "type": "tmpfs", "source": "tmpfs"}]}"#,
        )
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        symlink("/data", dir.path().join("link")).unwrap();
        let tree = crate::container::mounts::targets::resolve_all(dir.path(), &mut spec);
        let found = |cwd: &str| locate(&tree, Path::new(cwd)).map(|location| (location.root, location.path));
        let at = |root: &Path, path: &str| Some((root.to_owned(), PathBuf::from(path)));
        assert_eq!(found("/a/b"), at(dir.path(), "a/b"));
        assert_eq!(found("/database"), at(dir.path(), "database"));
        assert_eq!(found("/data/x"), at(Path::new("/volume"), "x"));
        assert_eq!(found("/link/x"), at(Path::new("/volume"), "x"));
        assert_eq!(found("/data/deep/y/z"), at(Path::new("/other"), "y/z"));
        for there in ["/", "/data", "/link", "/run/x", "/data/deep"] {
            assert_eq!(found(there), None, "{there}");
        }
    }

    #[test]
    fn the_directory_is_made_with_its_parents_and_never_outside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("there")).unwrap();
        symlink("/there", root.join("absolute")).unwrap();
        symlink("../../outside", root.join("up")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        let make = |path: &str| Location { root: root.clone(), path: path.into() }.make();
        for path in ["a/b/c", "a/b/c", "there", "absolute/x"] {
            make(path).unwrap();
        }
        assert!(root.join("a/b/c").is_dir() && root.join("there/x").is_dir());
        let mode = std::fs::metadata(root.join("a/b")).unwrap().permissions().mode();
        assert_eq!(mode & 0o700, 0o700);
        assert_eq!(make("file/x"), Err(Errno::NOTDIR));
        assert_eq!(make("up/x"), Err(Errno::EXIST), "the link leads nowhere inside");
        assert_eq!(make("dangling"), Err(Errno::EXIST));
        assert!(!dir.path().join("outside").exists());
        assert!(make("../../escaped").is_err() || root.join("escaped").is_dir());
        assert!(!dir.path().join("escaped").exists());
    }
}
