//! What is mounted, as `/proc/thread-self/mountinfo` tells it (proc(5)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Every mount point at a path or below it, in an order in which they can be unmounted: what was mounted on top of
/// something comes before it. A path that is mounted over twice is named twice.
///
/// # Errors
/// What reading the kernel's list says.
pub fn below(path: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(select(&list()?, path))
}

/// What the topmost mount at exactly this path is a mount of, as its maker named it. `None` where nothing is mounted.
///
/// # Errors
/// What reading the kernel's list says.
pub fn source(path: &Path) -> io::Result<Option<String>> {
    Ok(source_in(&list()?, path))
}

/// Every mount point of a file system that its maker named so.
///
/// # Errors
/// What reading the kernel's list says.
pub fn of_source(name: &str) -> io::Result<Vec<PathBuf>> {
    Ok(of_source_in(&list()?, name))
}

/// A mount of some file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub point: PathBuf,
    /// What of the file system is mounted there, from its root.
    pub root: PathBuf,
}

impl Mounted {
    /// What a path at or below the mount point is in the file system, from its root and without a slash before it. `None`
    /// if the path lies elsewhere.
    #[must_use]
    pub fn inside(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.point).ok()?;
        let root = self.root.strip_prefix("/").unwrap_or(&self.root);
        // A join with nothing would end with a slash.
        Some(root.components().chain(below.components()).collect())
    }
}

/// Every mount of the file system with this device number, stat(2)'s `st_dev`; the topmost come last.
///
/// # Errors
/// What reading the kernel's list says.
pub fn of_device(device: u64) -> io::Result<Vec<Mounted>> {
    Ok(of_device_in(&list()?, device))
}

/// Of the thread, not of the process: they may be in different mount namespaces.
fn list() -> io::Result<Vec<u8>> {
    fs::read("/proc/thread-self/mountinfo")
}

/// Fields 3 to 5: device, root, mount point.
fn of_device_in(text: &[u8], device: u64) -> Vec<Mounted> {
    let wanted = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let mounted = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        (fields.next()? == wanted.as_bytes()).then_some(())?;
        let root = OsString::from_vec(unescape(fields.next()?)).into();
        Some(Mounted { root, point: mount_point(line)? })
    };
    text.split(|byte| *byte == b'\n').filter_map(mounted).collect()
}

fn source_in(text: &[u8], path: &Path) -> Option<String> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let topmost = lines.rfind(|line| mount_point(line).as_deref() == Some(path))?;
    source_of(topmost)
}

fn of_source_in(text: &[u8], name: &str) -> Vec<PathBuf> {
    let lines = text.split(|byte| *byte == b'\n');
    lines.filter(|line| source_of(line).as_deref() == Some(name)).filter_map(mount_point).collect()
}

/// The second field behind the separator.
fn source_of(line: &[u8]) -> Option<String> {
    let mut fields = line.split(|byte| *byte == b' ').skip_while(|field| *field != b"-");
    let source = fields.nth(2)?;
    Some(String::from_utf8_lossy(&unescape(source)).into_owned())
}

fn select(text: &[u8], path: &Path) -> Vec<PathBuf> {
    let points = text.split(|byte| *byte == b'\n').filter_map(mount_point);
    let mut found: Vec<PathBuf> = points.filter(|point| point.starts_with(path)).collect();
    // The kernel lists parents first; the sort keeps the order of equals.
    found.reverse();
    found.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    found
}

/// Field 5.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    Some(OsString::from_vec(unescape(field)).into())
}

/// Space, tab, newline and backslash are written as three octal digits behind a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..3).filter(|_| *first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = behind.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = behind;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] = b"1 0 8:1 / / rw - ext4 /dev/vda rw\n\
        2 1 0:5 / /p rw shared:3 - tmpfs x rw\n\
        3 2 0:6 / /p/c/rootfs rw - overlay overlay rw\n\
        4 3 0:7 / /p/c/rootfs/sub rw - tmpfs x rw\n\
        5 2 0:8 / /p/c/with\\040space\\134 rw - tmpfs x rw\n\
        6 5 0:9 / /p/c/with\\040space\\134 rw - tmpfs x rw\n\
        7 1 0:9 / /pp rw - tmpfs x rw\n";

    #[test]
    fn the_mounts_of_a_device_say_what_of_it_they_show() {
        let list = b"1 0 8:1 / / rw - ext4 /dev/vda rw\n\
            2 1 0:5 / /pods/v rw - tmpfs x rw\n\
            3 1 0:5 /a/b /sub rw - tmpfs x rw\n\
            4 1 0:50 / /other rw - tmpfs x rw\n";
        let found = of_device_in(list, rustix::fs::makedev(0, 5));
        let points: Vec<_> = found.iter().map(|mount| mount.point.to_str().unwrap()).collect();
        assert_eq!(points, ["/pods/v", "/sub"]);
        let inside = |number: usize, path: &str| found[number].inside(Path::new(path));
        assert_eq!(inside(0, "/pods/v"), Some(PathBuf::new()));
        assert_eq!(inside(0, "/pods/v/c"), Some("c".into()));
        assert_eq!(inside(1, "/sub"), Some("a/b".into()));
        assert_eq!(inside(1, "/sub/c"), Some("a/b/c".into()));
        assert_eq!(inside(1, "/pods/v"), None);
    }

    #[test]
    fn what_lies_on_top_comes_first_and_neighbours_are_not_listed() {
        let found = select(LIST, Path::new("/p"));
        let names: Vec<&str> = found.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(names, ["/p/c/rootfs/sub", "/p/c/with space\\", "/p/c/with space\\", "/p/c/rootfs", "/p"]);
    }

    #[test]
    fn the_topmost_mount_says_what_it_is_of() {
        let list = b"2 1 0:5 / /p rw shared:3 - tmpfs first rw\n3 2 0:6 / /p rw - tmpfs second rw\n\
            4 1 0:7 / /q rw shared:1 master:2 - overlay a\\040b rw\n";
        assert_eq!(source_in(list, Path::new("/p")).as_deref(), Some("second"));
        assert_eq!(source_in(list, Path::new("/q")).as_deref(), Some("a b"));
        assert_eq!(source_in(list, Path::new("/")), None);
        assert_eq!(of_source_in(list, "a b"), [PathBuf::from("/q")]);
        assert_eq!(of_source_in(list, "a"), Vec::<PathBuf>::new());
    }

    #[test]
    fn this_thread_has_a_root() {
        assert!(below(Path::new("/")).unwrap().contains(&PathBuf::from("/")));
    }
}
