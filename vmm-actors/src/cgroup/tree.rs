//! The directories: made, filled, read, emptied, removed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::layout::is_v2;
use super::{CgroupError, CgroupRecord, Limits, PodStats};
use crate::host::process::CgroupProcs;

/// How long killed processes may take to go.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Controllers of cgroup v2 that a pod wants.
const WANTED: [&str; 6] = ["cpu", "memory", "pids", "io", "cpuset", "hugetlb"];

/// Makes the pod's cgroup and sets its limits. Blocks.
///
/// # Errors
/// [`CgroupError`]; what was made is removed again then.
pub fn create(record: &CgroupRecord, limits: &Limits) -> Result<CgroupProcs, CgroupError> {
    let result = record.directories.iter().try_for_each(|directory| {
        make(directory)?;
        limits.apply(directory)
    });
    match result {
        Ok(()) => {
            report_missing(record, limits);
            Ok(procs(record))
        }
        Err(error) => {
            if let Err(second) = remove_all(record) {
                tracing::warn!(%error, undo = %second, "cannot undo a failed cgroup");
            }
            Err(error)
        }
    }
}

/// Where a process of the pod has to be written to.
fn procs(record: &CgroupRecord) -> CgroupProcs {
    CgroupProcs::new(record.directories.iter().map(|directory| directory.join("cgroup.procs")).collect())
}

/// Puts a running process into the pod's cgroup. Blocks.
///
/// # Errors
/// [`CgroupError::PlaceProcess`].
pub fn place(record: &CgroupRecord, pid: u32) -> Result<(), CgroupError> {
    if pid == 0 {
        // The kernel would take it for this process.
        let source = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(CgroupError::PlaceProcess { pid, path: PathBuf::new(), source });
    }
    for directory in &record.directories {
        fs::write(directory.join("cgroup.procs"), pid.to_string())
            .map_err(|source| CgroupError::PlaceProcess { pid, path: directory.clone(), source })?;
    }
    Ok(())
}

/// Sets other limits. Blocks.
///
/// # Errors
/// [`CgroupError::Limit`]; limits before it hold.
pub fn update(record: &CgroupRecord, limits: &Limits) -> Result<(), CgroupError> {
    record.directories.iter().try_for_each(|directory| limits.apply(directory))
}

/// Reads what the pod uses. Blocks.
///
/// # Errors
/// [`CgroupError::Read`], above all when the cgroup is gone.
pub fn stats(record: &CgroupRecord) -> Result<PodStats, CgroupError> {
    let mut stats = PodStats { memory_limit: u64::MAX, ..PodStats::default() };
    for directory in &record.directories {
        if !directory.exists() {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(CgroupError::Read { path: directory.clone(), source });
        }
        read_cpu(directory, &mut stats);
        read_memory(directory, &mut stats);
        if let Some(pids) = number(&directory.join("pids.current")) {
            stats.pids = pids;
        }
    }
    Ok(stats)
}

/// Every process in the pod's cgroup, in any hierarchy and below. Empty when there is no such cgroup.
#[must_use]
pub fn find_pids(record: &CgroupRecord) -> Vec<u32> {
    let mut pids = BTreeSet::new();
    for directory in record.directories.iter().flat_map(|directory| subtree(directory)) {
        pids.extend(pids_in(&directory));
    }
    pids.into_iter().collect()
}

/// Kills whatever is in the pod's cgroup and removes it, with empty parents that are ours.
///
/// # Errors
/// [`CgroupError`], after 10 s when processes do not go.
pub async fn delete(record: &CgroupRecord) -> Result<(), CgroupError> {
    let deadline = tokio::time::Instant::now() + GONE_WITHIN;
    let mut pause = Duration::from_millis(1);
    loop {
        let work = record.clone();
        let step = move || {
            kill_all(&work)?;
            remove_all(&work)
        };
        match tokio::task::spawn_blocking(step).await.unwrap_or(Err(CgroupError::CutOff)) {
            // Neither kernel version tells when the last task has left a cgroup that lies in several hierarchies.
            Err(CgroupError::RemoveDirectory { source, path }) if is_busy(&source) => {
                if tokio::time::Instant::now() >= deadline {
                    return Err(CgroupError::StillBusy { path, pids: find_pids(record) });
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(100));
            }
            result => return result,
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty)
}

/// Makes a directory and those above it, and lets the kernel serve them.
fn make(directory: &Path) -> Result<(), CgroupError> {
    // Another pod may remove an empty parent at the same time.
    let mut attempts = 0;
    while let Err(source) = fs::create_dir_all(directory) {
        attempts += 1;
        if source.kind() != io::ErrorKind::NotFound || attempts > 100 {
            return Err(CgroupError::CreateDirectory { path: directory.to_owned(), source });
        }
    }
    if is_v2(directory) {
        pass_controllers_on(directory);
        return Ok(());
    }
    if directory.join("cpuset.cpus").exists() { inherit_cpuset(directory) } else { Ok(()) }
}

/// A new cpuset of v1 is empty, and nothing can run in it.
fn inherit_cpuset(directory: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let path = directory.join(file);
        let wrap = |source| CgroupError::InheritCpuset { path: path.clone(), source };
        if !fs::read_to_string(&path).map_err(wrap)?.trim().is_empty() {
            continue;
        }
        let Some(parent) = directory.parent().filter(|parent| parent.join(file).exists()) else { continue };
        inherit_cpuset(parent)?;
        let value = fs::read_to_string(parent.join(file)).map_err(wrap)?;
        fs::write(&path, value.trim()).map_err(wrap)?;
    }
    Ok(())
}

/// Asks every directory above, from the root down, to pass on what the pod wants and has not got.
fn pass_controllers_on(directory: &Path) {
    let available = words(&directory.join("cgroup.controllers"));
    let missing: Vec<&str> = WANTED.into_iter().filter(|name| !available.iter().any(|a| a == name)).collect();
    if missing.is_empty() {
        return;
    }
    let mut above: Vec<&Path> = directory.ancestors().skip(1).take_while(|path| is_v2(path)).collect();
    above.reverse();
    for parent in above {
        let available = words(&parent.join("cgroup.controllers"));
        let active = words(&parent.join("cgroup.subtree_control"));
        let wanted =
            |name: &&&str| available.iter().any(|a| a == *name) && !active.iter().any(|a| a == *name);
        for controller in missing.iter().filter(wanted) {
            if let Err(error) = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}")) {
                tracing::debug!(cgroup = %parent.display(), controller, %error, "cannot pass a controller on");
            }
        }
    }
}

/// Says once what is not limited or counted, because its controller is nowhere.
fn report_missing(record: &CgroupRecord, limits: &Limits) {
    let has = |files: [&str; 2]| {
        record.directories.iter().any(|dir| files.iter().any(|file| dir.join(file).exists()))
    };
    let wants_cpu = limits.cpu_quota.is_some() || limits.cpu_shares.is_some();
    for (controller, files, limited) in [
        ("cpu", ["cpu.shares", "cpu.weight"], wants_cpu),
        ("memory", ["memory.limit_in_bytes", "memory.max"], limits.memory.is_some()),
        ("pids", ["pids.max", "pids.max"], false),
    ] {
        if !has(files) {
            tracing::warn!(
                controller,
                limited,
                "the host has no such cgroup controller: no limit, no figures"
            );
        }
    }
}

fn read_cpu(directory: &Path, stats: &mut PodStats) {
    if let Some(nanos) = number(&directory.join("cpuacct.usage")) {
        stats.cpu_usage_nanos = nanos;
    } else if is_v2(directory)
        && let Some(micros) = field(&directory.join("cpu.stat"), "usage_usec")
    {
        stats.cpu_usage_nanos = micros.saturating_mul(1000);
    }
}

fn read_memory(directory: &Path, stats: &mut PodStats) {
    let (usage, limit, inactive) = if is_v2(directory) {
        ("memory.current", "memory.max", "inactive_file")
    } else {
        ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file")
    };
    let Some(usage) = number(&directory.join(usage)) else { return };
    let stat = directory.join("memory.stat");
    stats.memory_usage = usage;
    stats.memory_working_set = usage.saturating_sub(field(&stat, inactive).unwrap_or(0));
    // v1 says "no limit" by the largest multiple of a page.
    let none = u64::try_from(i64::MAX).unwrap_or(u64::MAX) & !0xffff;
    stats.memory_limit = number(&directory.join(limit)).filter(|limit| *limit < none).unwrap_or(u64::MAX);
    let prefix = if is_v2(directory) { "" } else { "total_" };
    stats.major_faults = field(&stat, &format!("{prefix}pgmajfault")).unwrap_or(0);
    let faults = field(&stat, &format!("{prefix}pgfault")).unwrap_or(0);
    stats.minor_faults = faults.saturating_sub(stats.major_faults);
}

fn words(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.split_once(' ').filter(|(key, _)| *key == name)?.1.trim().parse().ok())
}

/// A directory and all below it, the deepest last.
fn subtree(directory: &Path) -> Vec<PathBuf> {
    if !directory.exists() {
        return Vec::new();
    }
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while let Some(current) = found.get(next) {
        let entries = fs::read_dir(current).into_iter().flatten().flatten();
        let below: Vec<PathBuf> = entries
            .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
            .map(|entry| entry.path())
            .collect();
        found.extend(below);
        next += 1;
    }
    found
}

fn pids_in(directory: &Path) -> Vec<u32> {
    // 0 stands for a process that this pid namespace cannot see.
    let pids = words(&directory.join("cgroup.procs")).into_iter().filter_map(|word| word.parse().ok());
    pids.filter(|pid| *pid != 0).collect()
}

fn kill_all(record: &CgroupRecord) -> Result<(), CgroupError> {
    for top in record.directories.iter().filter(|directory| directory.exists()) {
        // cgroup v2 since Linux 5.14: all at once, forks included.
        if top.join("cgroup.kill").exists() && fs::write(top.join("cgroup.kill"), "1").is_ok() {
            continue;
        }
        for directory in subtree(top) {
            for pid in pids_in(&directory) {
                kill(&directory, pid)?;
            }
        }
    }
    Ok(())
}

fn kill(directory: &Path, pid: u32) -> Result<(), CgroupError> {
    let wrap =
        |errno: Errno| CgroupError::KillProcess { pid, path: directory.to_owned(), source: errno.into() };
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    if pid == std::process::id() {
        return Err(wrap(Errno::PERM));
    }
    let process = match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH | Errno::INVAL) => return Ok(()),
        Err(errno) => return Err(wrap(errno)),
    };
    // The pid may have become somebody else's since it was read; what is held now is what is looked up here.
    if !pids_in(directory).contains(&pid) {
        return Ok(());
    }
    match pidfd_send_signal(process, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(wrap(errno)),
    }
}

/// Removes the pod's directories, the deepest first, then parents of ours that are empty.
fn remove_all(record: &CgroupRecord) -> Result<(), CgroupError> {
    for top in &record.directories {
        for directory in subtree(top).into_iter().rev() {
            remove(&directory)?;
        }
    }
    for parent in record.parents.iter().rev() {
        match remove(parent) {
            Err(CgroupError::RemoveDirectory { source, .. }) if is_busy(&source) => {}
            result => result?,
        }
    }
    Ok(())
}

fn remove(directory: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => {
            result.map_err(|source| CgroupError::RemoveDirectory { path: directory.to_owned(), source })
        }
    }
}
