//! Volumes of the share, and what must be unmounted in the guest so that the host can unmount its share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bulkhead_protocol::{SHARE_DIR, SHARE_VOLUMES};

use super::guest::detach_all;

/// Volumes of the share and how many containers have each.
///
/// What the host mounts in the share becomes a mount of ours when it is first visited, with inodes of its own. So a
/// volume is visited here before any container has a mount namespace, and they all get the same; and it stays until
/// the last of them has gone.
#[derive(Debug, Default)]
pub(crate) struct Volumes(Mutex<BTreeMap<PathBuf, usize>>);

impl Volumes {
    /// Visits the volumes behind these paths. What is returned is to be given back.
    pub(in crate::container) fn visit(&self, sources: &[PathBuf]) -> Vec<PathBuf> {
        let mut counts = self.lock();
        let mut held: Vec<PathBuf> = sources.iter().filter_map(|source| volume_of(source)).collect();
        held.sort();
        held.dedup();
        for volume in &held {
            *counts.entry(volume.clone()).or_default() += 1;
            // A file is no mount of its own. "." is what makes the kernel mount.
            if let Err(error) = std::fs::metadata(volume.join(".")) {
                tracing::debug!(volume = %volume.display(), %error, "no directory");
            }
        }
        held
    }

    /// Unmounts those that nobody else has.
    fn leave(&self, held: &[PathBuf]) {
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

/// `<share>/.volumes/<number>`, when that is what a path of the share leads to.
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

/// Lets go of everything below a container's directory of the share and of volumes that only it had, so that virtiofsd
/// does as well: the file systems that the host mounted there show up as mounts of ours when they are visited, and what
/// was read stays cached, with its inodes.
pub(in crate::container) fn leave_share(container: &str, volumes: &Volumes, held: &[PathBuf]) {
    let dir = Path::new(SHARE_DIR).join(container);
    detach_all(&below(&mount_table(), &dir));
    volumes.leave(held);
    // Inodes with pages are not freed, so the pages go first (3, not 2).
    if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "3") {
        tracing::warn!(%error, "caches are kept, the host may find its mounts busy");
    }
}

fn mount_table() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

/// Mount points below a directory, in the order of /proc/self/mountinfo, proc(5): parents first.
fn below(table: &str, dir: &Path) -> Vec<PathBuf> {
    at_and_below(table, dir).into_iter().filter(|point| point != dir).collect()
}

fn at_and_below(table: &str, dir: &Path) -> Vec<PathBuf> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    points.map(PathBuf::from).filter(|point| point.starts_with(dir)).collect()
}

/// Blanks, tabs, newlines and backslashes are written as three octal digits.
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
    fn only_what_is_below_the_container_is_found() {
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
    fn a_path_of_the_share_is_of_a_volume_or_of_none() {
        let volume = Some(PathBuf::from("/run/bulkhead/share/.volumes/3"));
        assert_eq!(volume_at(Path::new("/run/bulkhead/share/.volumes/3")), volume);
        assert_eq!(volume_at(Path::new("/run/bulkhead/share/.volumes/3/sub/file")), volume);
        for other in ["/run/bulkhead/share/c1/rootfs", "/run/bulkhead/share/.volumes", "/etc/hosts"] {
            assert_eq!(volume_at(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_volume_is_kept_while_somebody_has_it() {
        let volumes = Volumes::default();
        let path = PathBuf::from("/run/bulkhead/share/.volumes/3");
        volumes.lock().insert(path.clone(), 2);
        volumes.leave(std::slice::from_ref(&path));
        assert_eq!(volumes.lock().get(&path), Some(&1));
        volumes.leave(std::slice::from_ref(&path));
        assert!(volumes.lock().is_empty());
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape(r"a\134b\012"), "a\\b\n");
        assert_eq!(unescape(r"a\9"), r"a\9");
        assert_eq!(unescape(r"\"), r"\");
    }
}
