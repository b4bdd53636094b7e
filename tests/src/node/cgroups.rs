//! The node's own parent cgroup in every hierarchy of the machine.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where cgroup hierarchies are mounted.
const HIERARCHIES: &str = "/sys/fs/cgroup";

/// Every hierarchy that can hold processes: one directory each on v1, the mount itself on v2.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(HIERARCHIES);
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_path_buf()];
    }
    std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .filter(|path| path.join("cgroup.procs").exists())
        .collect()
}

/// Makes `group` in every hierarchy.
pub(crate) fn create(group: &str) {
    for hierarchy in hierarchies() {
        let path = below(&hierarchy, group);
        std::fs::create_dir_all(&path).unwrap_or_else(|error| panic!("make {}: {error}", path.display()));
        if hierarchy.ends_with("cpuset") {
            inherit_cpuset(&hierarchy, group);
        }
        if hierarchy == Path::new(HIERARCHIES) {
            hand_controllers_down(&hierarchy, group);
        }
    }
}

/// cgroup v2: a group has the files of those controllers that its parent hands down. kubelet sees to it.
fn hand_controllers_down(hierarchy: &Path, group: &str) {
    let mut path = hierarchy.to_path_buf();
    for part in group.trim_matches('/').split('/') {
        let controllers = std::fs::read_to_string(path.join("cgroup.controllers")).expect("read controllers");
        for controller in controllers.split_whitespace() {
            let control = path.join("cgroup.subtree_control");
            std::fs::write(&control, format!("+{controller}"))
                .unwrap_or_else(|error| panic!("+{controller} in {}: {error}", control.display()));
        }
        path.push(part);
    }
}

/// cgroup v1: a new cpuset is empty and takes no process until it is filled.
fn inherit_cpuset(hierarchy: &Path, group: &str) {
    let mut path = hierarchy.to_path_buf();
    for part in group.trim_matches('/').split('/') {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = std::fs::read_to_string(path.join(file)).expect("read a cpuset");
            let own = std::fs::read_to_string(path.join(part).join(file)).expect("read a cpuset");
            if own.trim().is_empty() {
                std::fs::write(path.join(part).join(file), value.trim()).expect("fill a cpuset");
            }
        }
        path.push(part);
    }
}

/// Moves a process into `group` in every hierarchy.
pub(crate) fn enter(group: &str, pid: i32) {
    for hierarchy in hierarchies() {
        let file = below(&hierarchy, group).join("cgroup.procs");
        std::fs::write(&file, pid.to_string())
            .unwrap_or_else(|error| panic!("write {pid} to {}: {error}", file.display()));
    }
}

/// What `file` of `group` says, in the first hierarchy that has it.
pub(crate) fn read(group: &str, file: &str) -> Option<String> {
    hierarchies()
        .iter()
        .find_map(|hierarchy| std::fs::read_to_string(below(hierarchy, group).join(file)).ok())
        .map(|text| text.trim().to_owned())
}

/// Removes `group` and everything below it in every hierarchy. Processes in it must be gone or going.
pub(crate) fn remove(group: &str) {
    for hierarchy in hierarchies() {
        remove_tree(&below(&hierarchy, group));
    }
}

/// Removes the one directory in every hierarchy as kubelet does with a pod's cgroup; the error names what is left.
pub(crate) fn remove_empty(group: &str) -> Result<(), String> {
    for hierarchy in hierarchies() {
        let path = below(&hierarchy, group);
        match std::fs::remove_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}; holds {:?}", path.display(), tree(&path))),
        }
    }
    Ok(())
}

/// Every group below `group` (and itself), as `hierarchy:/path`.
pub(crate) fn list(group: &str) -> Vec<String> {
    hierarchies().iter().flat_map(|hierarchy| tree(&below(hierarchy, group))).collect()
}

fn below(hierarchy: &Path, group: &str) -> PathBuf {
    hierarchy.join(group.trim_start_matches('/'))
}

fn tree(path: &Path) -> Vec<String> {
    if !path.is_dir() {
        return Vec::new();
    }
    let mut found = vec![path.display().to_string()];
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(tree(&entry.path()));
        }
    }
    found
}

fn remove_tree(path: &Path) {
    let mut all = tree(path);
    all.reverse();
    let deadline = Instant::now() + Duration::from_secs(3);
    for group in all {
        while let Err(error) = std::fs::remove_dir(&group) {
            if error.kind() == std::io::ErrorKind::NotFound {
                break;
            }
            if Instant::now() > deadline {
                crate::report::aloud(&format!("cannot remove cgroup {group}: {error}\n"));
                break;
            }
            std::thread::yield_now();
        }
    }
}
