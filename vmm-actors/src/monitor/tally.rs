//! How often the host's OOM killer came for a pod, and why: read from the kernel's counters.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroup::{Bound, CgroupRecord, bounds};

const MIB: u64 = 1024 * 1024;

/// The host's OOM killer came for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OomKills {
    /// How many processes of the pod it has killed.
    pub count: u64,
    /// The limit that was reached; none when the host itself had no memory left.
    pub bound: Option<Bound>,
}

impl fmt::Display for OomKills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "killed by the host's OOM killer: ")?;
        match &self.bound {
            Some(Bound { cgroup, limit_bytes }) => write!(
                f,
                "the memory limit of {} MiB on {} was reached; give the pod a larger memory limit, or its \
                 RuntimeClass a larger overhead",
                limit_bytes / MIB,
                cgroup.display()
            ),
            None => write!(
                f,
                "the host had no memory left and no limit of the pod was reached; run fewer pods on this node, or \
                 give them memory requests"
            ),
        }
    }
}

/// Looks whether the host's OOM killer has killed anything of the pod since its cgroup was made. A few reads of files
/// that the kernel makes up on the spot.
#[must_use]
pub fn oom_kills(record: &CgroupRecord) -> Option<OomKills> {
    let directory = memory_directory(record)?;
    let count = count(directory)?;
    (count > 0).then(|| OomKills { count, bound: reached(directory) })
}

/// The directory whose files speak of memory.
pub(super) fn memory_directory(record: &CgroupRecord) -> Option<&Path> {
    let speaks = |directory: &&PathBuf| kills_file(directory).exists();
    record.directories.iter().find(speaks).map(PathBuf::as_path)
}

/// Whether a directory is of cgroup v2.
pub(super) fn is_v2(directory: &Path) -> bool {
    directory.join("memory.events").exists()
}

fn kills_file(directory: &Path) -> PathBuf {
    directory.join(if is_v2(directory) { "memory.events" } else { "memory.oom_control" })
}

/// How many processes of the cgroup were killed. v1 has the count since Linux 4.13.
fn count(directory: &Path) -> Option<u64> {
    field(&kills_file(directory), "oom_kill")
}

/// The smallest limit, of the cgroup or of one above it, that its processes have run into.
fn reached(directory: &Path) -> Option<Bound> {
    bounds(directory).into_iter().filter(was_hit).min_by_key(|bound| bound.limit_bytes)
}

/// Whether a limit left processes without memory. v2 counts apart how often page cache had to go (`max`), which any pod
/// that reads much does. v1 counts both as one, and not where the limit with swap is the same; what was used at most says
/// it, too.
fn was_hit(bound: &Bound) -> bool {
    let file = |name: &str| bound.cgroup.join(name);
    let hits = number(&file("memory.failcnt")).or_else(|| field(&file("memory.events.local"), "oom"));
    let most = number(&file("memory.max_usage_in_bytes")).unwrap_or(0);
    hits.is_some_and(|hits| hits > 0) || most.saturating_add(MIB) > bound.limit_bytes
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.split_once(' ').filter(|(key, _)| *key == name)?.1.trim().parse().ok())
}
