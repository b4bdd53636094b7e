//! A container's cgroup, version 2.

mod oom;
mod resources;
mod stats;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use oom::OomWatch;
pub(crate) use stats::stats;

use crate::kernel::capacity::capacity;
use crate::kernel::clock;

/// Parent of the containers' cgroups, [`GUEST_CGROUPS`](bulkhead_protocol::GUEST_CGROUPS), as a path.
pub(crate) const CONTAINERS: &str = "/sys/fs/cgroup/bulkhead";
/// Where the hierarchy is mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Pause between two reads of a file that has no notification.
const POLL_EVERY: Duration = Duration::from_millis(5);

/// A cgroup file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write {value:?} to {path}")]
    Write { path: PathBuf, value: String, source: io::Error },
    #[error("remove cgroup {path}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("watch {path}")]
    Watch { path: PathBuf, source: io::Error },
    #[error("{limit} is more than the {has} that the pod's VM has; resize the pod first, or make it anew")]
    ExceedsVm { limit: String, has: String },
    #[error("{path} did not become {wanted} within {limit:?}")]
    Timeout { path: PathBuf, wanted: &'static str, limit: Duration },
}

/// A cgroup by its directory, which need not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// The cgroup of a container.
    pub(crate) fn of(container: &str) -> Self {
        Self { dir: Path::new(CONTAINERS).join(container) }
    }

    /// The cgroup of all containers.
    pub(crate) fn all() -> Self {
        Self { dir: CONTAINERS.into() }
    }

    /// Whether it exists.
    pub(crate) fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    /// Pids of the processes in it and below.
    pub(crate) fn pids(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = Vec::new();
        for cgroup in self.tree() {
            match cgroup.read("cgroup.procs") {
                Ok(text) => pids.extend(numbers(&text)),
                // The container may remove cgroups below its own at any time.
                Err(_) if cgroup != *self && !cgroup.exists() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pids)
    }

    /// The cgroup below this one in which an exec must start; `None`: in this one. A cgroup that delegates controllers
    /// to cgroups below it takes no process itself (cgroups(7), "no internal processes"). When the container has done
    /// that, as systemd and dockerd do, its execs start where its init process is.
    pub(crate) fn subgroup_for_exec(&self, init: u32) -> Option<String> {
        let control = self.read("cgroup.subtree_control").ok()?;
        if control.trim().is_empty() {
            return None;
        }
        let of_init = std::fs::read_to_string(format!("/proc/{init}/cgroup")).ok()?;
        self.relative(&of_init)
    }

    /// The cgroup of a `/proc/<pid>/cgroup` (version 2: one line, `0::/path`) relative to this one, if it is below.
    fn relative(&self, of_process: &str) -> Option<String> {
        let path = of_process.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let own = self.dir.strip_prefix(ROOT).unwrap_or(&self.dir);
        let below = Path::new(path).strip_prefix(own).ok()?.to_str()?;
        (!below.is_empty()).then(|| below.to_owned())
    }

    /// Kills every process in it and below. No-op if it does not exist.
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        if self.exists() { self.write("cgroup.kill", "1") } else { Ok(()) }
    }

    /// Waits until no process is left. A zombie does not count.
    pub(crate) async fn wait_empty(&self, limit: Duration) -> Result<(), CgroupError> {
        self.wait_for("populated 0", "empty", limit).await
    }

    /// Freezes or thaws every process in it and below.
    pub(crate) async fn freeze(&self, frozen: bool, limit: Duration) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let (line, wanted) = if frozen { ("frozen 1", "frozen") } else { ("frozen 0", "thawed") };
        self.wait_for(line, wanted, limit).await
    }

    /// How many processes the OOM killer has killed in it.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.read("memory.events").map_or(0, |text| keyed(&text, "oom_kill").unwrap_or(0))
    }

    /// Removes it and the cgroups below. No-op if it does not exist.
    pub(crate) fn remove(&self) -> Result<(), CgroupError> {
        for cgroup in self.tree().into_iter().rev() {
            match std::fs::remove_dir(&cgroup.dir) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(CgroupError::Remove { path: cgroup.dir, source }),
            }
        }
        Ok(())
    }

    /// Sets the limits of an OCI `linux.resources` object. A limit is not raised above what the VM has, because the
    /// caller would rely on it.
    pub(crate) fn update(&self, wanted: &oci_spec::runtime::LinuxResources) -> Result<(), CgroupError> {
        let files = resources::files(wanted);
        let old = |file: &str| self.read(file).ok();
        if let Some((limit, has)) = resources::exceeding(&files, old, capacity()) {
            return Err(CgroupError::ExceedsVm { limit, has });
        }
        files.iter().try_for_each(|(file, value)| self.write(file, value))
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    fn read(&self, file: &str) -> Result<String, CgroupError> {
        let path = self.path(file);
        std::fs::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path(file);
        std::fs::write(&path, value).map_err(|source| CgroupError::Write {
            path,
            value: value.to_owned(),
            source,
        })
    }

    /// Itself and every cgroup below, parents first.
    fn tree(&self) -> Vec<Cgroup> {
        let mut found = vec![self.clone()];
        let mut next = 0;
        while let Some(cgroup) = found.get(next) {
            let entries = std::fs::read_dir(&cgroup.dir).into_iter().flatten().flatten();
            let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let below: Vec<Cgroup> = dirs.map(|entry| Cgroup { dir: entry.path() }).collect();
            found.extend(below);
            next += 1;
        }
        found.retain(Cgroup::exists);
        found
    }

    async fn wait_for(&self, line: &str, wanted: &'static str, limit: Duration) -> Result<(), CgroupError> {
        let deadline =
            clock::boot_nanos().saturating_add(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
        loop {
            if !self.exists() || self.read("cgroup.events")?.lines().any(|found| found == line) {
                return Ok(());
            }
            if clock::boot_nanos() > deadline {
                return Err(CgroupError::Timeout { path: self.dir.clone(), wanted, limit });
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }
}

/// Value of a key in a file of `key value` lines.
fn keyed(text: &str, key: &str) -> Option<u64> {
    pairs(text).find(|(found, _)| *found == key).map(|(_, value)| value)
}

/// The `key value` lines of a file.
fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| line.split_once(' ')).filter_map(|(key, value)| Some((key, limit(value)?)))
}

/// A number, where `max` is the largest there is.
fn limit(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn numbers(text: &str) -> impl Iterator<Item = u32> {
    text.lines().filter_map(|line| line.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake() -> (tempfile::TempDir, Cgroup) {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup { dir: dir.path().join("c1") };
        std::fs::create_dir_all(cgroup.dir.join("sub/deep")).unwrap();
        (dir, cgroup)
    }

    #[test]
    fn keyed_files_and_limits_are_parsed() {
        let text = "low 0\nhigh 3\nmax 7\noom 1\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(keyed(text, "oom_kill"), Some(2));
        assert_eq!(keyed(text, "oom_killer"), None);
        assert_eq!(limit("max\n"), Some(u64::MAX));
        assert_eq!(limit("x"), None);
        assert_eq!(numbers("1\n22\n\n").collect::<Vec<_>>(), [1, 22]);
    }

    #[test]
    fn pids_include_those_of_cgroups_below() {
        let (_dir, cgroup) = fake();
        for (sub, text) in [("", "1\n2\n"), ("sub", ""), ("sub/deep", "3\n")] {
            std::fs::write(cgroup.dir.join(sub).join("cgroup.procs"), text).unwrap();
        }
        assert_eq!(cgroup.pids().unwrap(), [1, 2, 3]);
    }

    #[test]
    fn an_exec_starts_where_its_init_process_is_once_controllers_are_delegated() {
        let (_dir, cgroup) = fake();
        let init = std::process::id();
        assert_eq!(cgroup.subgroup_for_exec(init), None, "nothing is known of the cgroup");
        std::fs::write(cgroup.path("cgroup.subtree_control"), "\n").unwrap();
        assert_eq!(cgroup.subgroup_for_exec(init), None);

        let real = Cgroup::of("c1");
        assert_eq!(real.relative("0::/bulkhead/c1/init.scope\n"), Some("init.scope".to_owned()));
        assert_eq!(real.relative("0::/bulkhead/c1\n"), None);
        assert_eq!(real.relative("0::/bulkhead/c11/x\n"), None);
        assert_eq!(real.relative("1:cpu:/bulkhead/c1/x\n"), None);
    }

    #[test]
    fn removal_goes_from_the_leaves_up_and_is_idempotent() {
        let (_dir, cgroup) = fake();
        cgroup.remove().unwrap();
        assert!(!cgroup.exists());
        cgroup.remove().unwrap();
        cgroup.kill().unwrap();
    }

    #[test]
    fn a_cgroup_that_cannot_be_removed_is_named() {
        let (_dir, cgroup) = fake();
        std::fs::write(cgroup.dir.join("sub/file"), "").unwrap();
        assert!(cgroup.remove().unwrap_err().to_string().contains("c1/sub"));
    }

    #[tokio::test]
    async fn a_wait_that_times_out_says_for_what() {
        let (_dir, cgroup) = fake();
        std::fs::write(cgroup.path("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        let error = cgroup.wait_empty(Duration::from_millis(20)).await.unwrap_err();
        assert!(error.to_string().contains("empty"), "{error}");
        std::fs::write(cgroup.path("cgroup.events"), "populated 0\nfrozen 0\n").unwrap();
        cgroup.wait_empty(Duration::from_millis(20)).await.unwrap();
    }
}
