//! Volumes of the share, and what must be unmounted in the guest so that the host can unmount its share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bulkhead_protocol::{SHARE_DIR, SHARE_VOLUMES};

use super::guest::detach_all;

/// The volumes of the share, and how many containers have each.
///
/// What the host mounts in the share becomes a mount of the guest when a process first enters it, with inodes of its
/// own. So the agent enters a volume before any container has a mount namespace, and all containers get the same mount.
/// It stays mounted until the last of them is deleted.
#[derive(Debug, Default)]
pub(crate) struct Volumes(Mutex<BTreeMap<PathBuf, usize>>);

impl Volumes {
    /// Mounts the volumes behind these paths, and counts them. Returns the volumes, which the caller must release.
    pub(in crate::container) fn acquire(&self, sources: &[PathBuf]) -> Vec<PathBuf> {
        let mut counts = self.lock();
        let mut held: Vec<PathBuf> = sources.iter().filter_map(|source| volume_of(source)).collect();
        held.sort();
        held.dedup();
        for volume in &held {
            *counts.entry(volume.clone()).or_default() += 1;
            // The "." makes the kernel mount it. A volume that is a file has no mount of its own.
            if let Err(error) = std::fs::metadata(volume.join(".")) {
                tracing::debug!(volume = %volume.display(), %error, "no directory");
            }
        }
        held
    }

    /// Releases volumes, and unmounts those that no other container has.
    fn release(&self, held: &[PathBuf]) {
        let mut counts = self.lock();
        for volume in held {
            let left = counts.get(volume).map_or(0, |count| count.saturating_sub(1));
            if left > 0 {
                counts.insert(volume.clone(), left);
            } else {
                counts.remove(volume);
                detach_all(&at_and_below(&mount_table(), volume));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The volume, `<share>/.volumes/<number>`, that a path of the share leads to, if any.
fn volume_of(source: &Path) -> Option<PathBuf> {
    if !source.starts_with(SHARE_DIR) {
        return None;
    }
    volume_at(&std::fs::canonicalize(source).ok()?)
}

fn volume_at(path: &Path) -> Option<PathBuf> {
    let dir = Path::new(SHARE_DIR).join(SHARE_VOLUMES);
    let name = path.strip_prefix(&dir).ok()?.components().next()?;
    Some(dir.join(name))
}

/// Unmounts everything below a container's directory of the share, and volumes that only it had, and drops caches.
/// Otherwise virtiofsd keeps files open: what the host mounted there are mounts of the guest, and what was read stays
/// cached with its inodes.
pub(in crate::container) fn release_share(container: &str, volumes: &Volumes, held: &[PathBuf]) {
    let dir = Path::new(SHARE_DIR).join(container);
    detach_all(&below(&mount_table(), &dir));
    volumes.release(held);
    // 3, not 2: inodes are freed only once their pages are.
    if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "3") {
        tracing::warn!(%error, "caches were not dropped, mounts of the host may be busy");
    }
}

fn mount_table() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

/// Mount points below a directory, in the order of /proc/self/mountinfo (proc(5)): parents first.
fn below(table: &str, dir: &Path) -> Vec<PathBuf> {
    at_and_below(table, dir).into_iter().filter(|point| point != dir).collect()
}

fn at_and_below(table: &str, dir: &Path) -> Vec<PathBuf> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    points.map(PathBuf::from).filter(|point| point.starts_with(dir)).collect()
}

/// Decodes blanks, tabs, newlines and backslashes, which mountinfo has as three octal digits.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut parts = text.split('\\');
    plain.extend(parts.next());
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code, part.get(3..)) {
            (Some(code), Some(rest)) => {
                plain.push(char::from(code));
                plain.push_str(rest);
            }
            (_, _) => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_the_containers_directory_are_found() {
        let table = "\
            22 1 0:5 / / rw - rootfs rootfs rw\n\
            30 22 0:30 / /run/bulkhead/share rw - virtiofs bulkhead rw\n\
            31 30 0:31 / /run/bulkhead/share/c1/rootfs rw - virtiofs bulkhead rw\n\
            32 31 0:32 / /run/bulkhead/share/c1/rootfs/a\\040b rw - tmpfs x rw\n\
            33 30 0:33 / /run/bulkhead/share/c10/rootfs rw - virtiofs bulkhead rw\n";
        let found = below(table, Path::new("/run/bulkhead/share/c1"));
        let found: Vec<_> = found.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(found, ["/run/bulkhead/share/c1/rootfs", "/run/bulkhead/share/c1/rootfs/a b"]);
    }

    #[test]
    fn the_volume_of_a_path_is_found() {
        let volume = Some(PathBuf::from("/run/bulkhead/share/.volumes/3"));
        assert_eq!(volume_at(Path::new("/run/bulkhead/share/.volumes/3")), volume);
        assert_eq!(volume_at(Path::new("/run/bulkhead/share/.volumes/3/sub/file")), volume);
        for other in ["/run/bulkhead/share/c1/rootfs", "/run/bulkhead/share/.volumes", "/etc/hosts"] {
            assert_eq!(volume_at(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_volume_is_kept_until_its_last_release() {
        let volumes = Volumes::default();
        let path = PathBuf::from("/run/bulkhead/share/.volumes/3");
        volumes.lock().insert(path.clone(), 2);
        volumes.release(std::slice::from_ref(&path));
        assert_eq!(volumes.lock().get(&path), Some(&1));
        volumes.release(std::slice::from_ref(&path));
        assert!(volumes.lock().is_empty());
    }

    #[test]
    fn malformed_escapes_are_kept() {
        assert_eq!(unescape(r"a\134b\012"), "a\\b\n");
        assert_eq!(unescape(r"a\9"), r"a\9");
        assert_eq!(unescape(r"\"), r"\");
    }
}
