//! The cgroup of a sandbox that nothing but its name speaks of any more.

use std::fs;
use std::path::{Path, PathBuf};

use super::CgroupError;
use super::layout::Layout;
use super::record::{CgroupRecord, directory_name};
use crate::id::SandboxId;

/// How deep below a hierarchy's root a pod's cgroup can be: kubelet's own tree has four levels.
const MAX_DEPTH: usize = 8;

/// Looks in every hierarchy for cgroups with the sandbox's name, for a sandbox whose record cannot be read. Blocks.
///
/// # Errors
/// [`CgroupError::NotMounted`].
pub fn find_by_name(id: &SandboxId) -> Result<CgroupRecord, CgroupError> {
    let mut directories = Vec::new();
    for root in Layout::detect()?.roots() {
        find(root, &directory_name(id), MAX_DEPTH, &mut directories);
    }
    Ok(CgroupRecord { directories, ..CgroupRecord::default() })
}

fn find(directory: &Path, name: &str, depth: usize, found: &mut Vec<PathBuf>) {
    // A cgroup that vanishes while it is looked at holds nothing.
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name() == name {
            found.push(entry.path());
        } else if depth > 0 {
            find(&entry.path(), name, depth - 1, found);
        }
    }
}
