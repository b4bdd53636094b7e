//! Resolves the targets of a container's mounts: symbolic links are followed inside the container's root, also when
//! they lead to what does not exist. libcontainer makes what is missing of a path without links.
//!
//! Images have such links: `/etc/resolv.conf` to systemd's file, `/var/run` to a `/run` that does not exist yet.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use crate::container::spec;

/// As many links as the kernel follows (MAXSYMLINKS). The path behind the last one is taken as it is.
const MAX_LINKS: usize = 40;

/// A mount of the container: its target and, if it is a bind mount, its source in the guest.
#[derive(Debug, Clone)]
struct MountPoint {
    at: PathBuf,
    source: Option<PathBuf>,
}

/// The container's file tree, as far as the agent can see it before the container has its mounts.
#[derive(Debug)]
pub(in crate::container) struct Tree {
    rootfs: PathBuf,
    mounts: Vec<MountPoint>,
}

/// Replaces the target of every mount of the spec by one without links. Reads root file system and volumes, so it may
/// block.
pub(in crate::container) fn resolve_all(rootfs: &Path, spec: &mut Spec) -> Tree {
    let mut tree = Tree { rootfs: rootfs.to_owned(), mounts: Vec::new() };
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        let at = tree.resolve(mount.destination());
        mount.set_destination(at.clone());
        tree.mounts.push(MountPoint { at, source: source(mount) });
    }
    spec.set_mounts(Some(mounts));
    tree
}

fn source(mount: &Mount) -> Option<PathBuf> {
    mount.source().clone().filter(|_| spec::is_bind(mount))
}

impl Tree {
    /// `path` in the container, without symbolic links. What does not exist, or cannot be read, is no link.
    pub(in crate::container) fn resolve(&self, path: &Path) -> PathBuf {
        let mut found = PathBuf::from("/");
        let mut rest: VecDeque<OsString> = names(path);
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                found.pop();
                continue;
            }
            let next = found.join(&name);
            match self.link(&next) {
                Some(target) if links < MAX_LINKS => {
                    links += 1;
                    if target.is_absolute() {
                        found = PathBuf::from("/");
                    }
                    for name in names(&target).into_iter().rev() {
                        rest.push_front(name);
                    }
                }
                Some(_) | None => found = next,
            }
        }
        found
    }

    /// The target of the link at a path without links above it. A mount point is no link, even if its source is one.
    fn link(&self, path: &Path) -> Option<PathBuf> {
        let (base, rest) = self.split(path)?;
        if rest == Path::new("") { None } else { std::fs::read_link(base.join(rest)).ok() }
    }

    /// Where the agent finds a path of the container: the container's root, or the source of the mount that covers the
    /// path, and the rest of the path. None for what is on a mount that does not exist yet.
    pub(in crate::container) fn split(&self, path: &Path) -> Option<(PathBuf, PathBuf)> {
        // The deepest one; of two with the same target the later one, which covers the other.
        let covering = self.mounts.iter().rev().filter(|mount| path.starts_with(&mount.at));
        let covering = covering.reduce(|deepest, mount| if deeper(mount, deepest) { mount } else { deepest });
        let (base, rest) = match covering {
            Some(mount) => (mount.source.as_deref()?, path.strip_prefix(&mount.at).ok()?),
            None => (self.rootfs.as_path(), path.strip_prefix("/").ok()?),
        };
        Some((base.to_owned(), rest.to_owned()))
    }
}

fn deeper(one: &MountPoint, other: &MountPoint) -> bool {
    one.at.components().count() > other.at.components().count()
}

fn names(path: &Path) -> VecDeque<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A root with links, and a volume with a link of its own, mounted at `/data`.
    fn tree() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let (rootfs, volume) = (dir.path().join("root"), dir.path().join("volume"));
        for path in [rootfs.join("etc"), rootfs.join("var"), rootfs.join("data"), volume.join("real")] {
            std::fs::create_dir_all(path).unwrap();
        }
        for (target, at) in [
            ("/run/systemd/resolve/stub-resolv.conf", "etc/resolv.conf"),
            ("../run2", "var/run2"),
            ("/var/run2", "twice"),
            ("../../../../etc", "up"),
            ("loop", "loop"),
            ("/data/inner", "into"),
        ] {
            symlink(target, rootfs.join(at)).unwrap();
        }
        symlink("real", volume.join("inner")).unwrap();
        // As volumes lie in the share.
        symlink("volume", dir.path().join("0")).unwrap();
        let mounts = vec![MountPoint { at: "/data".into(), source: Some(dir.path().join("0")) }];
        (dir, Tree { rootfs, mounts })
    }

    #[test]
    fn links_are_followed_inside_the_root_even_if_dangling() {
        let (_dir, tree) = tree();
        for (path, resolved) in [
            ("/etc/hosts", "/etc/hosts"),
            ("/etc/resolv.conf", "/run/systemd/resolve/stub-resolv.conf"),
            ("/var/run2/x/y", "/run2/x/y"),
            ("/twice/x", "/run2/x"),
            ("/up/passwd", "/etc/passwd"),
            ("/a/../../b", "/b"),
            ("/data/inner/x", "/data/real/x"),
            ("/into/x", "/data/real/x"),
            ("/data", "/data"),
        ] {
            assert_eq!(tree.resolve(Path::new(path)), Path::new(resolved), "{path}");
        }
        assert_eq!(
            tree.resolve(Path::new("/loop/x")),
            Path::new("/loop/x"),
            "it ends, and fails where it is used"
        );
    }

    #[test]
    fn a_later_mount_covers_what_is_below_it() {
        let (dir, mut tree) = tree();
        let parts = |base: &str, rest: &str| Some((dir.path().join(base), PathBuf::from(rest)));
        assert_eq!(tree.split(Path::new("/data/x")), parts("0", "x"));
        assert_eq!(tree.split(Path::new("/x")), parts("root", "x"));
        tree.mounts.push(MountPoint { at: "/data".into(), source: None });
        assert_eq!(tree.split(Path::new("/data/x")), None, "a file system that is yet to be mounted");
        assert_eq!(tree.resolve(Path::new("/data/inner")), Path::new("/data/inner"));
    }

    #[test]
    fn every_mount_gets_a_target_without_links() {
        let (_dir, tree) = tree();
        let mut spec: Spec = serde_json::from_str(
            r#"{"ociVersion": "1.2.0", "mounts": [
                {"destination": "/etc/resolv.conf", "type": "bind", "source": "/x", "options": ["rbind"]},
                {"destination": "/proc", "type": "proc", "source": "proc"}]}"#,
        )
        .unwrap();
        let settled = resolve_all(&tree.rootfs, &mut spec);
        let at: Vec<_> = spec.mounts().iter().flatten().map(|mount| mount.destination().clone()).collect();
        assert_eq!(at, [Path::new("/run/systemd/resolve/stub-resolv.conf"), Path::new("/proc")]);
        assert_eq!(settled.split(Path::new("/proc/x")), None);
    }
}
